"""Where a NaN comes from when the data holds none: the model, a branch, or the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fxelastic.ir.branch import Branch
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
    alone = () if plan.archs else tuple(map(execution.branch, plan.branches))
    with torch.no_grad():
        for path in (execution.originals, *map(execution.path, plan.archs)):
            current = dict(values)
            for part in path:
                for learner in (b for b in alone if b.start == part.start):
                    outcome = dict(current)
                    execution.run(learner, outcome)
                    if _fails(execution, learner, outcome):
                        return f"branch {learner.id!r} computes NaN or infinity"
                execution.run(part, current)
                if _fails(execution, part, current):
                    whose = "the model itself" if part in execution.originals else "branch"
                    return f"{whose} {part.id!r} computes NaN or infinity"
    masked = batch.not_finite(masks=False)
    if masked:
        return masked
    return f"the loss of branch {branch!r} is, though what it compares is finite"


def _fails(execution: Execution, branch: Branch, values: Mapping[str, Any]) -> bool:
    masks = execution.is_context(branch)
    return any(count_not_finite(values.get(name), masks=masks) for name in branch.outputs)
