"""What a stage of training minimises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from fxelastic.spec import Arch
from fxelastic.train.batches import Batch

#: Adds the gradients of a loss.
Backward = Callable[[Tensor], None]


@dataclass(frozen=True)
class Plan:
    """What learns in a step; the same for all of its batches and in all processes.

    Attributes:
        branches: Ids of the new branches that learn.
        archs: The subnets they are in; empty where branches learn alone.
    """

    branches: tuple[str, ...]
    archs: tuple[Arch, ...] = ()


class Objective(Protocol):
    """Turns batches into gradients of the new branches.

    Attributes:
        stage: ``distill`` or ``tune``.
        independent: Whether every branch has a loss of its own. Then gradients are clipped, rates
            chosen and best states kept for each branch.
    """

    stage: str
    independent: bool

    def plan(self, step: int) -> Plan:
        """Choose what learns; a function of the step alone.

        Args:
            step: The number of the step, from 0.
        """
        ...  # pragma: no cover

    def backward(
        self, batch: Batch, values: Mapping[str, Any], plan: Plan, backward: Backward
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch and their gradients.

        Args:
            batch: The batch.
            values: The model's inputs by name; not changed.
            plan: What learns.
            backward: Called with each loss that is to be minimised.

        Returns:
            The loss of each branch of the plan, detached, without the branches that get nothing to
            learn from this batch, such as an expert to which it sends no row.
        """
        ...  # pragma: no cover

    def numerics(self) -> dict[str, str]:
        """The options that decide the numbers that come out, in words."""
        ...  # pragma: no cover
