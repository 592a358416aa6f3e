"""What a stage of training minimises: the distance of branches or subnets from their teacher.

An objective is a frozen dataclass whose fields are its options. It turns a batch into losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from fxelastic.errors import FxElasticError, TrainingError, UsageError
from fxelastic.ir import trees
from fxelastic.ir.branch import Branch
from fxelastic.processes import Processes
from fxelastic.spec import EXIT, Arch
from fxelastic.spec.options import is_number
from fxelastic.train.batches import Batch, count_not_finite
from fxelastic.train.evaluation import Prefix, results_of
from fxelastic.train.learners import BranchRunner
from fxelastic.train.losses import cross_entropy, is_empty, normalised_error, soft_cross_entropy
from fxelastic.train.metrics import counts
from fxelastic.train.sampling import Plan

#: The model's inputs, and what branches compute from them, by name.
Values = Mapping[str, Any]
#: Adds the gradients of a loss.
Backward = Callable[[Tensor], None]
#: Compares a branch's outputs with the teacher's; each is a tuple of tensors.
BranchLoss = Callable[[tuple[Any, ...], tuple[Any, ...]], Tensor]
#: Compares a subnet's result with the batch's target, or with the original's result.
TaskLoss = Callable[[Any, Any], Tensor]


class Objective(Protocol):
    """Turns batches into gradients of the branches that learn.

    Attributes:
        name: The name of its stages in checkpoints, logs and reports, unless they have their own.
        independent: Whether every branch has a loss of its own. Then gradients are clipped, rates
            chosen and best states kept for each branch.
        default_rate: The learning rate of a run that is too short to choose one.
    """

    name: ClassVar[str]
    independent: ClassVar[bool]
    default_rate: ClassVar[float]

    def backward(
        self, runner: BranchRunner, values: Values, target: Any, plan: Plan, backward: Backward
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch and their gradients.

        Args:
            runner: Runs the branches.
            values: The model's inputs by name; not changed.
            target: The target of the batch; None where it has none.
            plan: What learns.
            backward: Called with each loss to minimise.

        Returns:
            The loss of each branch of the plan, detached. Branches that get nothing to learn from
            this batch are left out, such as an expert to which it sends no row.
        """
        ...  # pragma: no cover

    def among(self, processes: Processes) -> Objective:
        """This objective, for a batch of which each process has a share."""
        ...  # pragma: no cover

    def numerics(self) -> dict[str, str]:
        """The options that the numbers depend on, as text."""
        ...  # pragma: no cover


_D = TypeVar("_D", bound="_Distillation")


@dataclass(frozen=True)
class _Distillation:
    loss: BranchLoss | None = None
    name: ClassVar[str] = "distill"
    independent: ClassVar[bool] = False
    default_rate: ClassVar[float] = 1e-3

    def among(self: _D, processes: Processes) -> _D:
        """See `Objective.among`: `normalised_error` needs the variance of the whole batch."""
        if self.loss is not None:
            return self
        return replace(self, loss=partial(normalised_error, processes=processes))

    def _error(self, branch: Branch, outputs: tuple[Any, ...], targets: tuple[Any, ...]) -> Tensor:
        loss = self.loss or normalised_error
        default = isinstance(loss, partial) or loss is normalised_error
        # An exit computes the model's result, of which only the classes count.
        chosen = soft_cross_entropy if default and branch.kind == EXIT else loss
        return _scalar(_computed(chosen, outputs, targets))


@dataclass(frozen=True)
class TeacherForced(_Distillation):
    """Every branch learns alone, from the teacher's own features (distillation).

    One pass of the model gives the input and the target of every interval. Branches are
    independent then: a backward pass goes through one branch only, and its memory is freed before
    the next branch runs.

    Attributes:
        loss: Compares outputs with targets. Where None, `normalised_error`, and for early exits
            `soft_cross_entropy`.
    """

    independent: ClassVar[bool] = True

    def backward(
        self, runner: BranchRunner, values: Values, target: Any, plan: Plan, backward: Backward
    ) -> dict[str, Tensor]:
        """See `Objective.backward`."""
        starting: dict[int, list[Branch]] = {}
        for name in plan.branches:
            branch = runner.branch(name)
            starting.setdefault(branch.start, []).append(branch)
        waiting: list[tuple[Branch, list[Any]]] = []
        losses: dict[str, Tensor] = {}
        current = dict(values)
        for original in runner.originals:
            for branch in starting.get(original.start, ()):
                waiting.append((branch, branch.operands(current)))
            with torch.no_grad():
                runner.run(original, current)
            for branch, operands in [w for w in waiting if w[0].stop == original.stop]:
                result = branch.module(*operands)
                outputs = (result,) if len(branch.outputs) == 1 else tuple(result)
                outputs = outputs[: len(branch.features)]
                targets = tuple(current[name] for name in branch.features)
                # Called for empty targets, too: those of other processes may not be empty.
                loss = self._error(branch, outputs, targets)
                if not is_empty(targets):
                    losses[branch.id] = loss.detach()
                    backward(loss)
            waiting = [w for w in waiting if w[0].stop != original.stop]
        return losses

    def numerics(self) -> dict[str, str]:
        """See `Objective.numerics`."""
        return {"mode": "teacher_forced", "loss": described(self.loss)}


@dataclass(frozen=True)
class Chained(_Distillation):
    """The branches of a sampled subnet learn together, each from the output of the one before.

    The loss is the mean over the subnet's new branches of the distance between a branch's output
    and the teacher's value at that cut. Gradients flow back through the whole chain. Where data
    choose how many rows the output has, the chain may choose other rows than the teacher: the
    target is then what the replaced blocks compute from the chain's own values.

    Attributes:
        loss: Compares outputs with targets. Where None, `normalised_error`, and for early exits
            `soft_cross_entropy`.

    Source: AdaptiveNet, section 4.2, Eq. 1.
    """

    def backward(
        self, runner: BranchRunner, values: Values, target: Any, plan: Plan, backward: Backward
    ) -> dict[str, Tensor]:
        """See `Objective.backward`."""
        targets, _ = _taught(runner, values, plan)
        found: dict[str, list[Tensor]] = {}
        for arch in plan.archs:
            current = dict(values)
            errors: list[Tensor] = []
            for branch in runner.path(arch):
                learns = branch.id in plan.branches
                wanted = targets.get(branch.id, ())
                if learns and not runner.data_sized.isdisjoint(branch.outputs):
                    wanted = _replaced(runner, branch, current)
                runner.run(branch, current)
                if learns:
                    outputs = tuple(current[name] for name in branch.features)
                    error = self._error(branch, outputs, wanted)
                    if not is_empty(wanted):
                        errors.append(error)
                        found.setdefault(branch.id, []).append(error.detach())
            if errors:
                backward(torch.stack(errors).mean() / len(plan.archs))
        return _means(found)

    def numerics(self) -> dict[str, str]:
        """See `Objective.numerics`."""
        return {"mode": "chained", "loss": described(self.loss)}


@dataclass(frozen=True)
class EndToEnd:
    """Sampled subnets learn the task from labels, from the original model, or both (tuning).

    Attributes:
        loss: Compares a result with the target.
        soft_loss: Compares a result with the original model's result on the same inputs.
        soft: The share of ``soft_loss`` in the loss; the whole loss of a batch without a target.
        features: What the mean error of the features at the cuts counts in addition. Losses that
            are reported, and that choose the best state, leave it out.
        feature_loss: Compares the features at a cut with the original's; each is a tuple.

    Source: AdaptiveNet, section 4.2.
    """

    loss: TaskLoss = cross_entropy
    soft_loss: TaskLoss = soft_cross_entropy
    soft: float = 0.0
    features: float = 0.0
    feature_loss: BranchLoss = normalised_error
    name: ClassVar[str] = "tune"
    independent: ClassVar[bool] = False
    default_rate: ClassVar[float] = 3e-4

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UsageError: ``soft`` is not in [0, 1], or ``features`` is not a finite number of at
                least 0.
        """
        if not is_number(self.soft) or not 0 <= self.soft <= 1:
            raise UsageError(
                f"soft must be between 0 and 1, got {self.soft!r}",
                expected="a number from 0 to 1",
                got=repr(self.soft),
            )
        if not is_number(self.features) or not 0 <= self.features < math.inf:
            raise UsageError(
                f"features must be at least 0, got {self.features!r}",
                expected="a finite number of at least 0",
                got=repr(self.features),
            )

    def backward(
        self, runner: BranchRunner, values: Values, target: Any, plan: Plan, backward: Backward
    ) -> dict[str, Tensor]:
        """See `Objective.backward`."""
        soft = 1.0 if target is None else self.soft
        teacher, targets = None, dict[str, tuple[Any, ...]]()
        if soft or self.features:
            targets, teacher = _taught(runner, values, plan if self.features else Plan(()))
        found: dict[str, list[Tensor]] = {}
        for arch in plan.archs:
            result, errors = self._result(runner, arch, values, targets)
            loss = torch.zeros(())
            if soft < 1:
                loss = (1 - soft) * _task_loss(self.loss, runner, result, target)
            if soft:
                loss = loss + soft * _scalar(runner.layout.compare(self.soft_loss, result, teacher))
            total = loss + self.features * torch.stack(errors).mean() if errors else loss
            backward(total / len(plan.archs))
            for name in arch:
                if name in plan.branches:
                    found.setdefault(name, []).append(loss.detach())
        return _means(found)

    def _result(
        self,
        runner: BranchRunner,
        arch: Arch,
        values: Values,
        targets: Mapping[str, tuple[Any, ...]],
    ) -> tuple[Any, list[Tensor]]:
        """A subnet's result, and the errors of its features at cuts that have targets."""
        current = dict(values)
        errors: list[Tensor] = []
        for branch in runner.path(arch):
            wanted = targets.get(branch.id, ())
            if wanted and not runner.data_sized.isdisjoint(branch.outputs):
                wanted = _replaced(runner, branch, current)
            runner.run(branch, current)
            # The features after the last block are the result.
            if wanted and branch.stop < runner.supernet.space.n_blocks:
                outputs = tuple(current[name] for name in branch.features)
                error = self.feature_loss(outputs, wanted)
                errors += [error] if error.requires_grad else []
        return runner.supernet.result(current, caches=False), errors

    def among(self, processes: Processes) -> EndToEnd:
        """See `Objective.among`: `normalised_error` needs the variance of the whole batch."""
        if self.feature_loss is not normalised_error:
            return self
        return replace(self, feature_loss=partial(normalised_error, processes=processes))

    def numerics(self) -> dict[str, str]:
        """See `Objective.numerics`."""
        losses = {"loss": described(self.loss), "soft_loss": described(self.soft_loss)}
        # Left out at its default, so that runs of earlier versions can resume.
        features = {"features": repr(self.features)} if self.features else {}
        return {**losses, "soft": repr(self.soft), **features}


@dataclass(frozen=True)
class Supervised:
    """Subnets learn the task from labels alone, whatever their weights are before.

    The loss is the mean over the subnets of a step, whose common blocks run once.

    Attributes:
        loss: Compares a result with the target.

    Source: AdaScale, section III-B.
    """

    loss: TaskLoss = cross_entropy
    name: ClassVar[str] = "train"
    independent: ClassVar[bool] = False
    default_rate: ClassVar[float] = 1e-3

    def backward(
        self, runner: BranchRunner, values: Values, target: Any, plan: Plan, backward: Backward
    ) -> dict[str, Tensor]:
        """See `Objective.backward`."""
        if target is None:
            raise UsageError(
                "a batch of the loader has no target",
                expected="labelled batches",
                got="inputs alone",
                fix="add the labels, or pass split= to say where a batch holds them",
            )
        tree = Prefix.tree(plan.archs, {branch.id for branch in runner.before(plan.start)})
        found: dict[str, list[Tensor]] = {}
        losses: list[Tensor] = []
        for arch, result in results_of(tree, runner, dict(values)):
            losses.append(_task_loss(self.loss, runner, result, target))
            for name in arch:
                if name in plan.branches:
                    found.setdefault(name, []).append(losses[-1].detach())
        backward(torch.stack(losses).mean())
        return _means(found)

    def among(self, processes: Processes) -> Supervised:
        """See `Objective.among`."""
        return self

    def numerics(self) -> dict[str, str]:
        """See `Objective.numerics`."""
        return {"loss": described(self.loss)}


def described(value: object) -> str:
    """An option as text that is the same in every process: functions by their names."""
    if not callable(value):
        return repr(value)
    kind = type(value)
    name = getattr(value, "__qualname__", None) or kind.__qualname__
    return f"{getattr(value, '__module__', kind.__module__)}.{name}"


def diagnose(runner: BranchRunner, batch: Batch, values: Values, plan: Plan, branch: str) -> str:
    """Find what made a loss non-finite on finite data: the model, a branch or the loss.

    Args:
        runner: Runs the branches.
        batch: The batch on which it happened.
        values: The model's inputs by name.
        plan: What learned.
        branch: The branch whose loss is not finite.

    Returns:
        A clause of the error message.
    """
    alone = () if plan.archs else tuple(map(runner.branch, plan.branches))
    with torch.no_grad():
        for path in (runner.originals, *map(runner.path, plan.archs)):
            current = dict(values)
            for part in path:
                if part.start < plan.start:
                    continue
                for learner in (b for b in alone if b.start == part.start):
                    outcome = dict(current)
                    runner.run(learner, outcome)
                    if _fails(runner, learner, outcome):
                        return f"branch {learner.id!r} computes NaN or infinity"
                runner.run(part, current)
                if _fails(runner, part, current):
                    whose = "the model's own block" if part in runner.originals else "branch"
                    return f"{whose} {part.id!r} computes NaN or infinity"
    masked = batch.not_finite(masks=False)
    if masked:
        return masked
    return f"the loss of branch {branch!r} is not finite, though its operands are finite"


def _fails(runner: BranchRunner, branch: Branch, values: Values) -> bool:
    masks = runner.is_context(branch)
    return any(count_not_finite(values.get(name), masks=masks) for name in branch.outputs)


def _taught(
    runner: BranchRunner, values: Values, plan: Plan
) -> tuple[dict[str, tuple[Any, ...]], Any]:
    """The teacher's values at the end of each branch of the plan, and its result."""
    branches = [runner.branch(name) for name in plan.branches]
    targets: dict[str, tuple[Any, ...]] = {}
    current = dict(values)
    with torch.no_grad():
        for original in runner.originals:
            runner.run(original, current)
            for branch in branches:
                if branch.stop == original.stop:
                    targets[branch.id] = tuple(current[name] for name in branch.features)
        result = runner.supernet.result(current, caches=False)
    return targets, result


def _replaced(runner: BranchRunner, branch: Branch, values: Values) -> tuple[Any, ...]:
    """The results of the blocks that a branch replaces, for values of the chain."""
    current = dict(values)
    with torch.no_grad():
        for original in runner.originals[branch.start : branch.stop]:
            runner.run(original, current)
    return tuple(current[name] for name in branch.features)


def _means(losses: Mapping[str, list[Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack(own).mean() for name, own in losses.items()}


def _task_loss(loss: TaskLoss, runner: BranchRunner, result: Any, target: Any) -> Tensor:
    compare = partial(runner.layout.compare, loss)
    found = _scalar(_computed(compare, result, target))
    nothing = is_empty(result) or not counts(target)
    if torch.is_grad_enabled() and not found.requires_grad and not nothing:
        # The original has nothing to learn; but a loss must depend on what a subnet returns.
        leaves, tree = trees.flatten(result)
        varied = [
            leaf.detach().requires_grad_() if leaf.is_floating_point() else leaf for leaf in leaves
        ]
        if not _scalar(_computed(compare, trees.unflatten(tree, varied), target)).requires_grad:
            raise TrainingError(
                "the loss has no gradient, so nothing would learn",
                expected="a loss that can be differentiated by the model's results",
                got="a loss that does not require gradients, as after argmax or detach",
                fix="pass for example torch.nn.functional.cross_entropy",
            )
    return found


def _computed(loss: Callable[[Any, Any], object], result: Any, target: Any) -> object:
    """What a loss of the user's returns."""
    try:
        return loss(result, target)
    except (FxElasticError, torch.OutOfMemoryError):
        raise
    except (TypeError, ValueError, RuntimeError) as e:
        raise TrainingError(
            "the loss can't be computed",
            expected="a function of (results, targets), as the data gives them",
            got=f"{type(e).__name__}: {e}",
            fix="pass a loss that takes what the model returns and what the data holds",
        ) from e


def _scalar(loss: object) -> Tensor:
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss.reshape(())
    raise UsageError(
        "the loss must be a scalar",
        expected="a function of (result, target) that returns a tensor of one element",
        got=f"a tensor of shape {tuple(loss.shape)}"
        if isinstance(loss, Tensor)
        else type(loss).__name__,
        fix="average it over the batch: loss.mean()",
    )
