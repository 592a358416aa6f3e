"""Compare a captured graph with the model it came from, by running both."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fxelastic.errors import CaptureError
from fxelastic.ir import trees
from fxelastic.ir.traced import Traced
from fxelastic.passes.batch import batch_leaves, with_batch_size

logger = logging.getLogger(__name__)

#: Largest relative difference that rounding explains.
_TOLERANCE = 1e-3


class BatchFixedError(Exception):
    """The captured graph holds for the example's batch size only."""


def check_capture(
    traced: Traced, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Traced:
    """Run the model and its capture on the example inputs, at other batch sizes too, and compare.

    Args:
        traced: The capture.
        model: The clone that was captured.
        args: Positional example inputs.
        kwargs: Keyword example inputs.

    Returns:
        The same capture, with a warning added where the results agree only approximately.

    Raises:
        CaptureError: They differ on the example inputs.
        BatchFixedError: They differ at another batch size, or the capture does not run there.
    """
    leaves, tree = trees.flatten((args, kwargs))
    found = list(traced.warnings)
    try:
        worst = _difference(traced, model, tree, leaves)
    except RuntimeError as e:
        raise _mismatch(traced, f"{type(e).__name__}: {e}") from e
    if worst > _TOLERANCE:
        _refuse_state(traced, model, tree, leaves)
        if _deterministic(model, tree, leaves):
            raise _mismatch(traced, f"a relative difference of {worst:.1e}")
        found.append("the model is random in eval mode: its capture can't be compared")
        return dataclasses.replace(traced, warnings=tuple(found))
    if traced.dynamic_batch:
        worst = max(worst, _worst_at_other_sizes(traced, model, tree, leaves))
    if worst:
        found.append(f"the capture agrees with the model to {worst:.0e}, not bit for bit")
    return dataclasses.replace(traced, warnings=tuple(found))


def _worst_at_other_sizes(
    traced: Traced, model: nn.Module, tree: trees.Tree, leaves: list[Any]
) -> float:
    batched = batch_leaves(leaves)
    size = leaves[batched[0]].shape[0]
    worst = 0.0
    # One sample more, and a number with other divisors: graphs may have guessed at either.
    for other in (size + 1, size + 4):
        example = with_batch_size(leaves, batched, other)
        try:
            args, kwargs = trees.unflatten(tree, _copies(example))
            _run(model, args, kwargs)
        except Exception as e:  # noqa: BLE001  # the user's own code
            logger.debug("the model itself does not run at batch size %d: %s", other, e)
            continue
        try:
            difference = _difference(traced, model, tree, example)
        except RuntimeError as e:
            raise BatchFixedError(f"at batch size {other}, {type(e).__name__}: {e}") from e
        if difference > _TOLERANCE:
            raise BatchFixedError(f"at batch size {other} the capture computes something else")
        worst = max(worst, difference)
    return worst


def _mismatch(traced: Traced, got: str) -> CaptureError:
    return CaptureError(
        f"the captured graph of {traced.model_name} computes something else",
        expected="the model's own result on the example inputs",
        got=got,
        fix="look for state that forward() changes, or Python code that depends on values",
    )


def _refuse_state(traced: Traced, model: nn.Module, tree: trees.Tree, leaves: list[Any]) -> None:
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    args, kwargs = trees.unflatten(tree, _copies(leaves))
    _run(model, args, kwargs)
    after = dict(model.named_buffers())
    changed = [
        name
        for name, buffer in before.items()
        if name not in after or not torch.equal(buffer, after[name])
    ]
    if changed:
        raise CaptureError(
            f"{traced.model_name} writes to its own state in forward: {', '.join(changed)}",
            expected="a model whose output depends on its inputs and weights alone",
            got="a buffer that changes with every call",
            fix="disable that bookkeeping (a counter, a cache) for inference",
        )


def _difference(traced: Traced, model: nn.Module, tree: trees.Tree, leaves: list[Any]) -> float:
    args, kwargs = trees.unflatten(tree, _copies(leaves))
    expected, shape = _run(model, args, kwargs)
    args, kwargs = trees.unflatten(tree, _copies(leaves))
    got, other = _run(traced, args, kwargs)
    if shape != other:
        return float("inf")
    return max((_relative(a, b) for a, b in zip(expected, got, strict=True)), default=0.0)


def _deterministic(model: nn.Module, tree: trees.Tree, leaves: list[Any]) -> bool:
    results = []
    for _ in range(2):
        args, kwargs = trees.unflatten(tree, _copies(leaves))
        results.append(_run(model, args, kwargs)[0])
    return all(_relative(a, b) <= _TOLERANCE for a, b in zip(*results, strict=True))


def _run(function: Any, args: Any, kwargs: Any) -> tuple[list[Any], trees.Tree]:
    with torch.no_grad(), torch.random.fork_rng(devices=[]), _slow_attention():
        return trees.flatten(function(*args, **kwargs))


@contextlib.contextmanager
def _slow_attention() -> Iterator[None]:
    """Turn off nn.MultiheadAttention's inference kernel, which tracing can't record."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _copies(leaves: list[Any]) -> list[Any]:
    return [leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]


def _relative(a: Any, b: Any) -> float:
    if not isinstance(a, torch.Tensor):
        return 0.0 if a == b else float("inf")
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if torch.equal(a, b) or a.numel() == 0:
        return 0.0
    if not (a.is_floating_point() or a.is_complex()):
        return float("inf")
    if a.isnan().any() or b.isnan().any():
        same = torch.equal(a.isnan(), b.isnan())
        a, b = a.nan_to_num(), b.nan_to_num()
        if not same:
            return float("inf")
    scale = max(float(a.abs().max()), 1e-12)
    return float((a - b).abs().max()) / scale
