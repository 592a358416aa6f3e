"""Compare a captured graph with the model it came from, by running both."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fxelastic.errors import CaptureError
from fxelastic.ir import trees
from fxelastic.ir.traced import Traced
from fxelastic.passes.batch import batch_leaves, with_batch_size


def check_capture(
    traced: Traced, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], certain: bool
) -> Traced:
    """Run the model and its capture on the example inputs and compare.

    Args:
        traced: The capture.
        model: The clone that was captured.
        args: Positional example inputs.
        kwargs: Keyword example inputs.
        certain: Whether torch proved the dynamic batch; otherwise other sizes are run too.

    Returns:
        The same capture, with a warning added where the results agree only approximately.

    Raises:
        CaptureError: They differ.
    """
    leaves, tree = trees.flatten((args, kwargs))
    batched = batch_leaves(leaves) if traced.dynamic_batch else []
    sizes = [leaves[batched[0]].shape[0]] if batched else [None]
    if batched and not certain:
        sizes += [sizes[0] + 1, sizes[0] + 4]
    found = list(traced.warnings)
    for size in sizes:
        example = leaves if size is None else with_batch_size(leaves, batched, size)
        worst = _difference(traced, model, tree, example)
        if worst == 0:
            continue
        if worst > 1e-3:
            if not _deterministic(model, tree, example):
                found.append("the model is random in eval mode: its capture can't be compared")
                break
            raise CaptureError(
                f"the captured graph of {traced.model_name} computes something else",
                expected="the model's own result" + (f" at batch size {size}" if size else ""),
                got=f"a relative difference of {worst:.1e}",
                fix="look for state that forward() changes, or Python code that depends on values",
            )
        found.append(f"the capture agrees with the model to {worst:.0e}, not bit for bit")
        break
    return dataclasses.replace(traced, warnings=tuple(found))


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
    return all(_relative(a, b) <= 1e-3 for a, b in zip(*results, strict=True))


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
