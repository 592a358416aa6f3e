"""Branch distillation: each new branch learns what the blocks it replaces compute (§4.2.1)."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fxelastic.errors import UsageError
from fxelastic.ir.branch import Branch
from fxelastic.ir.values import data_dims
from fxelastic.train.batches import Batch
from fxelastic.train.execution import Execution
from fxelastic.train.losses import is_empty, normalised_error
from fxelastic.train.new_branches import NewBranches
from fxelastic.train.objective import Backward, Plan
from fxelastic.train.planning import sampled_plan
from fxelastic.train.sampling import Sampling, Uniform, derived_seed
from fxelastic.train.training import described

#: Compares a branch's outputs with the teacher's; each is a tuple of tensors.
BranchLoss = Callable[[tuple[Any, ...], tuple[Any, ...]], Tensor]


@dataclass(frozen=True)
class TeacherForced:
    """Every branch learns alone, from the teacher's own features.

    One pass of the model gives the input and the target of every interval. Branches are
    independent then: each has its loss in every step, a backward pass goes through one branch
    only, and its memory is freed before the next branch runs.

    Attributes:
        execution: Runs the branches.
        new: What learns.
        loss: Compares outputs with targets.
        branches_per_step: How many branches learn in a step, in turn; all where None.
        seed: Of the order in which they take turns.
    """

    execution: Execution
    new: NewBranches
    loss: BranchLoss = normalised_error
    branches_per_step: int | None = None
    seed: int = 0
    stage = "distill"
    independent = True

    def __post_init__(self) -> None:
        """Refuse a number of branches that is none.

        Raises:
            UsageError: It is below 1.
        """
        n = self.branches_per_step
        if n is not None and (isinstance(n, bool) or n < 1):
            raise UsageError(
                "branches_per_step is no count", expected="an integer above 0", got=repr(n)
            )

    def plan(self, step: int) -> Plan:
        """All branches, or those whose turn it is: in any run of steps evenly, within one."""
        names = tuple(self.new.branches)
        n = min(self.branches_per_step or len(names), len(names))
        if n == len(names):
            return Plan(names)
        chosen: list[str] = []
        for i in range(step * n, (step + 1) * n):
            turn, place = divmod(i, len(names))
            chosen.append(self._order(turn, names)[place])
        return Plan(tuple(name for name in names if name in chosen))

    def _order(self, turn: int, names: tuple[str, ...]) -> list[str]:
        order = list(names)
        random.Random(derived_seed(self.seed, "turn", turn)).shuffle(order)
        return order

    def backward(
        self, batch: Batch, values: Mapping[str, Any], plan: Plan, backward: Backward
    ) -> dict[str, Tensor]:
        """See `Objective.backward`."""
        starting: dict[int, list[Branch]] = {}
        for name in plan.branches:
            branch = self.execution.branch(name)
            starting.setdefault(branch.start, []).append(branch)
        waiting: list[tuple[Branch, list[Any]]] = []
        losses: dict[str, Tensor] = {}
        current = dict(values)
        for original in self.execution.originals:
            for branch in starting.get(original.start, ()):
                operands = [current[name] for name in (*branch.inputs, *branch.context)]
                waiting.append((branch, operands))
            with torch.no_grad():
                self.execution.run(original, current)
            for branch, operands in [w for w in waiting if w[0].stop == original.stop]:
                outputs = as_tuple(branch, branch.module(*operands))
                targets = tuple(current[name] for name in branch.outputs)
                # Called for empty targets, too: those of other processes may not be empty.
                loss = self.loss(outputs, targets)
                if not is_empty(targets):
                    losses[branch.id] = loss.detach()
                    backward(loss)
            waiting = [w for w in waiting if w[0].stop != original.stop]
        return losses

    def numerics(self) -> dict[str, str]:
        """See `Objective.numerics`."""
        facts = {"mode": "teacher_forced", "loss": described(self.loss)}
        return {**facts, "branches_per_step": repr(self.branches_per_step)}


@dataclass(frozen=True)
class Chained:
    """The branches of a sampled subnet learn together, each from what the one before computes.

    The loss is the mean over the subnet's new branches of the distance between a branch's output
    and the teacher's value at that cut. Gradients go back through the whole chain. Where data
    choose how many rows the output has, the chain may choose other rows than the teacher: the
    target is what the blocks that the branch replaces compute from the chain's own values.

    Attributes:
        execution: Runs the branches.
        new: What learns.
        loss: Compares outputs with targets.
        sampling: Draws the subnets.
        seed: Of the subnets.

    Source: AdaptiveNet, section 4.2, Eq. 1.
    """

    execution: Execution
    new: NewBranches
    loss: BranchLoss = normalised_error
    sampling: Sampling = Uniform()  # noqa: RUF009 - a frozen dataclass
    seed: int = 0
    stage = "distill"
    independent = False

    def plan(self, step: int) -> Plan:
        """Subnets with at least one new branch."""
        space = self.execution.supernet.space
        return sampled_plan(space, self.new, self.sampling, step, self.seed)

    def backward(
        self, batch: Batch, values: Mapping[str, Any], plan: Plan, backward: Backward
    ) -> dict[str, Tensor]:
        """See `Objective.backward`."""
        targets = self._targets(values, plan)
        found: dict[str, list[Tensor]] = {}
        for arch in plan.archs:
            current = dict(values)
            errors: list[Tensor] = []
            for branch in self.execution.path(arch):
                wanted = targets.get(branch.id, ())
                if branch.id in self.new.branches and not self._chosen.isdisjoint(branch.outputs):
                    wanted = self._replaced(branch, current)
                self.execution.run(branch, current)
                if branch.id in self.new.branches:
                    outputs = tuple(current[name] for name in branch.outputs)
                    error = self.loss(outputs, wanted)
                    if not is_empty(wanted):
                        errors.append(error)
                        found.setdefault(branch.id, []).append(error.detach())
            if errors:
                backward(torch.stack(errors).mean() / len(plan.archs))
        return {name: torch.stack(values).mean() for name, values in found.items()}

    @cached_property
    def _chosen(self) -> frozenset[str]:
        """Names of the values whose sizes data choose."""
        nodes = self.execution.supernet.partition.graph.nodes
        return frozenset(node.name for node in nodes if data_dims(node.meta.get("val")))

    def _replaced(self, branch: Branch, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """The results of the blocks that a branch replaces, for values of the chain."""
        current = dict(values)
        with torch.no_grad():
            for original in self.execution.originals[branch.start : branch.stop]:
                self.execution.run(original, current)
        return tuple(current[name] for name in branch.outputs)

    def _targets(self, values: Mapping[str, Any], plan: Plan) -> dict[str, tuple[Any, ...]]:
        """The teacher's values at the end of each branch of the plan."""
        ending: dict[int, list[Branch]] = {}
        for name in plan.branches:
            branch = self.execution.branch(name)
            ending.setdefault(branch.stop, []).append(branch)
        targets: dict[str, tuple[Any, ...]] = {}
        current = dict(values)
        with torch.no_grad():
            for original in self.execution.originals:
                self.execution.run(original, current)
                for branch in ending.get(original.stop, ()):
                    targets[branch.id] = tuple(current[name] for name in branch.outputs)
        return targets

    def numerics(self) -> dict[str, str]:
        """See `Objective.numerics`."""
        facts = {"mode": "chained", "loss": described(self.loss)}
        return {**facts, "sampling": repr(self.sampling)}


def as_tuple(branch: Branch, result: Any) -> tuple[Any, ...]:
    """What a branch's module returned, as a tuple of its outputs."""
    return (result,) if len(branch.outputs) == 1 else tuple(result)
