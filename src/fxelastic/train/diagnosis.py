"""Where a NaN comes from: the data, the model, a branch, or the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fxelastic.errors import TrainingError
from fxelastic.train.batches import Batch, count_not_finite
from fxelastic.train.execution import Execution
from fxelastic.train.objective import Plan


def diagnose(
    execution: Execution, batch: Batch, values: Mapping[str, Any], plan: Plan, branch: str
) -> str:
    """Say where a loss stopped being finite, in words.

    Args:
        execution: Runs the branches.
        batch: The batch on which it happened.
        values: The model's inputs by name.
        plan: What learned.
        branch: The branch whose loss is not finite.
    """
    data = batch.not_finite()
    if data:
        return f"batch {batch.number} holds {data}"
    with torch.no_grad():
        for path in (execution.originals, *map(execution.path, plan.archs)):
            current = dict(values)
            for part in path:
                execution.run(part, current)
                masks = execution.is_context(part)
                for name in part.outputs:
                    if count_not_finite(current.get(name), masks=masks):
                        whose = "the model itself" if part in execution.originals else "branch"
                        return f"{whose} {part.id!r} computes NaN or infinity"
    data = batch.not_finite(masks=False)
    if data:
        return f"batch {batch.number} holds {data}"
    return f"the loss of branch {branch!r} is, though what it compares is finite"


def not_finite(where: str, branch: str, reason: str) -> TrainingError:
    """The error that ends a run."""
    return TrainingError(
        f"the loss is not finite at {where}: {reason}",
        expected="finite losses",
        got=f"NaN or infinity for branch {branch!r}",
        fix="correct the data, lower lr, or train with precision='fp32'; the last checkpoint "
        "is kept",
    )
