"""State that a model keeps between calls: buffers whose values change in ``forward``."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fxelastic.errors import CaptureError, listed
from fxelastic.ir import trees

logger = logging.getLogger(__name__)


def refuse_state(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a model that changes its own buffers.

    A buffer that is written with the value that it has already, as by an observer that is off, is
    not state. Only values show this, so the model runs on the example inputs and on others.

    Args:
        model: The clone that is captured; its buffers are restored afterwards.
        args: Positional example inputs.
        kwargs: Keyword example inputs.

    Raises:
        CaptureError: Some buffers change; the message names them.
    """
    before = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    changed: dict[str, None] = {}
    for example in _examples(args, kwargs):
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                model(*example[0], **example[1])
        except Exception as e:  # noqa: BLE001  # the user's own code, on made-up inputs
            logger.debug("the model does not run on other inputs: %s", e)
        changed |= dict.fromkeys(_take_back(model, before))
    if not changed:
        return
    observed = [name for name in changed if _is_observer(model, name)]
    raise CaptureError(
        f"{type(model).__name__} writes to its own state in forward: {listed(changed)}",
        expected="a model whose output depends on its inputs and weights alone",
        got="buffers whose values change with a call",
        fix="call model.apply(torch.ao.quantization.disable_observer)"
        if observed
        else "disable that bookkeeping (a counter, a cache) for inference",
    )


def _examples(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The example inputs, and larger and negative ones, which change a running extreme."""
    leaves, tree = trees.flatten((args, kwargs))
    for factor in (1, 3, -3):
        yield trees.unflatten(
            tree,
            [
                leaf.detach() * factor
                if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
                else leaf.clone()
                if isinstance(leaf, torch.Tensor)
                else leaf
                for leaf in leaves
            ],
        )


def _take_back(model: nn.Module, before: dict[str, torch.Tensor]) -> list[str]:
    """Restore the values of buffers; returns the names of the buffers that had changed."""
    changed = []
    for name, buffer in model.named_buffers():
        if name not in before:
            changed.append(name)
        elif not _equal(buffer, before[name]):
            changed.append(name)
            path, _, last = name.rpartition(".")
            model.get_submodule(path)._buffers[last] = before[name].clone()
    now = dict(model.named_buffers())
    return changed + [name for name in before if name not in now]


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a, b) or (a.is_floating_point() and torch.allclose(a, b, 0, 0, True))


def _is_observer(model: nn.Module, name: str) -> bool:
    """Whether a buffer belongs to a module that observes for quantisation."""
    path = name.rpartition(".")[0]
    parts = path.split(".") if path else []
    owners = [model.get_submodule(".".join(parts[: n + 1])) for n in range(len(parts))]
    return any(type(owner).__module__.startswith("torch.ao.quantization") for owner in owners)
