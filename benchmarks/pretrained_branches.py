"""Measure the error of each branch on the original's features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.bootstrap import Array, Bootstrap, Figure
from benchmarks.pretrained_data import Samples
from benchmarks.pretrained_models import PretrainedModel
from fxelastic import Supernet

PROBED_STEPS = 5
HELD_OUT = 256
BATCH = 32


def batches(model: PretrainedModel, samples: Samples) -> Iterator[tuple[Tensor, ...]]:
    """The samples in order, as inputs of the model."""
    for start in range(0, len(samples), BATCH):
        yield model.tensors(samples, slice(start, start + BATCH))


@torch.no_grad()
def branch_sums(
    supernet: Supernet, model: PretrainedModel, inputs: Iterable[tuple[Tensor, ...]]
) -> dict[str, Array]:
    """The sums that errors are computed from, for each branch that can learn.

    A branch gets the original's value before it, and should return the original's value after it.
    In padded sentences, only positions with a token count: padding is most of all positions, is
    easily learned, and has no influence on the result.

    Returns:
        For each branch ``(N, results, 4)``: for each sample and each floating-point result, the
        sums of the squared error, of the target and of its square, and the number of elements.
    """
    learning = [
        branch
        for branch in supernet.branches.values()
        if not branch.frozen and any(p.requires_grad for p in branch.module.parameters())
    ]
    originals = supernet.path()
    found: dict[str, list[Array]] = {branch.id: [] for branch in learning}
    for batch in inputs:
        values = supernet.bind(batch, {})
        waiting = []
        for original in originals:
            for branch in (b for b in learning if b.start == original.start):
                operands = [values[name] for name in (*branch.inputs, *branch.context)]
                waiting.append((branch, operands))
            supernet.run_branch(original, values)
            for branch, operands in [w for w in waiting if w[0].stop == original.stop]:
                result = branch.module(*operands)
                results = (result,) if len(branch.outputs) == 1 else result
                targets = [values[name] for name in branch.outputs]
                found[branch.id].append(_sums(results, targets, model.tokens(batch)))
            waiting = [w for w in waiting if w[0].stop != original.stop]
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _sums(results: Any, targets: list[Tensor], tokens: Tensor | None) -> Array:
    rows = []
    for result, target in zip(results, targets, strict=True):
        if not target.is_floating_point():
            continue
        counted = torch.ones((len(target), 1))
        if tokens is not None and target.shape[:2] == tokens.shape:
            counted = tokens.to(target.dtype)
        # Samples, positions, and the numbers at a position.
        error, value = (
            x.reshape(*counted.shape, -1) * counted[..., None]
            for x in ((result - target).square(), target)
        )
        sums = [x.sum((1, 2), dtype=torch.float64) for x in (error, value, value.square())]
        n = counted.sum(1, dtype=torch.float64) * value.shape[2]
        rows.append(torch.stack([*sums, n], 1))
    return torch.stack(rows, 1).numpy()


def normalised_errors(sums: Array) -> Array:
    """Squared errors as shares of the targets' variance, averaged over a branch's results.

    Args:
        sums: Totals of `branch_sums` over samples, ``(…, results, 4)``.

    Returns:
        ``(…)``.
    """
    error, total, squares, n = np.moveaxis(sums, -1, 0)
    found: Array = (error / (squares - total**2 / n)).mean(-1)
    return found


def compared(before: dict[str, Array], after: dict[str, Array], groups: Array) -> dict[str, Any]:
    """The errors of all branches before and after training, with intervals.

    Args:
        before: `branch_sums` of the supernet before.
        after: `branch_sums` of the supernet after.
        groups: The source of each sample.
    """
    bootstrap = Bootstrap(groups)
    errors: dict[str, list[Figure]] = {}
    for name in before:
        sums = [bootstrap.sums(values[name]) for values in (before, after)]
        errors[name] = [
            Figure(
                float(normalised_errors(part.sum(0))),
                normalised_errors(bootstrap.resampled(part)),
            )
            for part in sums
        ]
    ratios = {name: b.value and a.value / b.value for name, (b, a) in errors.items()}
    worst = max(ratios, key=lambda name: ratios[name])
    mean_before, mean_after = (
        Figure(
            float(np.mean([pair[i].value for pair in errors.values()])),
            np.mean([pair[i].draws for pair in errors.values()], axis=0),
        )
        for i in (0, 1)
    )
    return {
        "n": len(errors),
        "improved": sum(ratio < 1 for ratio in ratios.values()) / len(ratios),
        "worst": [worst, ratios[worst]],
        "before": mean_before.to_json(),
        "after": mean_after.to_json(),
        "ratio": (mean_after / mean_before).to_json(),
        "errors": {name: [b.value, a.value] for name, (b, a) in errors.items()},
    }
