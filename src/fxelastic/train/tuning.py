"""Tuning: sampled subnets learn the task end to end (§4.2.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxelastic.errors import TrainingError, UsageError
from fxelastic.train.batches import Batch
from fxelastic.train.execution import Execution
from fxelastic.train.losses import cross_entropy, soft_cross_entropy
from fxelastic.train.new_branches import NewBranches
from fxelastic.train.objective import Backward, Plan
from fxelastic.train.planning import sampled_plan
from fxelastic.train.sampling import Sampling, Uniform
from fxelastic.train.training import described

#: Compares a subnet's result with the batch's target, or with the original's result.
TaskLoss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Tuning:
    """The new branches of sampled subnets learn from labels, from the original model, or both.

    Attributes:
        execution: Runs the branches.
        new: What learns.
        loss: Compares a result with the target.
        soft_loss: Compares a result with that of the original model on the same inputs.
        soft: The share of ``soft_loss`` in the loss; a batch without a target has nothing else.
        sampling: Draws the subnets.
        seed: Of the subnets.

    Source: AdaptiveNet, section 4.2.
    """

    execution: Execution
    new: NewBranches
    loss: TaskLoss = cross_entropy
    soft_loss: TaskLoss = soft_cross_entropy
    soft: float = 0.0
    sampling: Sampling = Uniform()  # noqa: RUF009 - a frozen dataclass
    seed: int = 0
    stage = "tune"
    independent = False

    def __post_init__(self) -> None:
        """Refuse a share that is none.

        Raises:
            UsageError: ``soft`` is not in [0, 1].
        """
        if isinstance(self.soft, bool) or not 0 <= self.soft <= 1:
            raise UsageError(
                "soft is no share", expected="a number from 0 to 1", got=str(self.soft)
            )

    def plan(self, step: int) -> Plan:
        """Subnets with at least one new branch."""
        space = self.execution.supernet.space
        return sampled_plan(space, self.new, self.sampling, step, self.seed)

    def backward(
        self, batch: Batch, values: Mapping[str, Any], plan: Plan, backward: Backward
    ) -> dict[str, Tensor]:
        """See `Objective.backward`."""
        soft = 1.0 if batch.target is None else self.soft
        teacher = None
        if soft:
            with torch.no_grad():
                teacher = self.execution.result(self.execution.supernet.space.original, values)
        found: dict[str, list[Tensor]] = {}
        for arch in plan.archs:
            result = self.execution.result(arch, values)
            loss: Tensor | float = 0.0
            if soft < 1:
                loss = (1 - soft) * _scalar(self._hard(result, batch.target))
            if soft:
                loss = loss + soft * _scalar(self.soft_loss(result, teacher))
            assert isinstance(loss, Tensor)
            backward(loss / len(plan.archs))
            for name in arch:
                if name in self.new.branches:
                    found.setdefault(name, []).append(loss.detach())
        return {name: torch.stack(losses).mean() for name, losses in found.items()}

    def _hard(self, result: Any, target: Any) -> object:
        try:
            return self.loss(result, target)
        except TypeError as e:
            raise TrainingError(
                "the loss can't be computed",
                expected="a function of (results, targets), as the data gives them",
                got=f"{type(e).__name__}: {e}",
                fix="pass a loss that takes what the model returns and what the data holds",
            ) from e

    def numerics(self) -> dict[str, str]:
        """See `Objective.numerics`."""
        losses = {"loss": described(self.loss), "soft_loss": described(self.soft_loss)}
        return {**losses, "soft": repr(self.soft), "sampling": repr(self.sampling)}


def _scalar(loss: object) -> Tensor:
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss.reshape(())
    raise UsageError(
        "the loss is no scalar",
        expected="a function of (result, target) that returns a tensor of one element",
        got=f"a tensor of shape {tuple(loss.shape)}"
        if isinstance(loss, Tensor)
        else type(loss).__name__,
        fix="average it over the batch: loss.mean()",
    )
