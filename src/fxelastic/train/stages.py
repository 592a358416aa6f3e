"""The public functions that train: `run`, `distill` and `tune`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fxelastic.errors import UsageError
from fxelastic.ir.supernet import Supernet
from fxelastic.train.learners import Learners
from fxelastic.train.loop import Loop
from fxelastic.train.losses import cross_entropy, soft_cross_entropy, soft_loss_of
from fxelastic.train.objectives import BranchLoss, Chained, EndToEnd, TaskLoss, TeacherForced
from fxelastic.train.reports import History
from fxelastic.train.sampling import Fixed, Sampling, Turns
from fxelastic.train.training import Stage, Training

MODES = ("teacher_forced", "chained")


def run(
    supernet: Supernet, loader: Iterable[Any], stages: Sequence[Stage], **options: Any
) -> tuple[History, ...]:
    """Train the new branches of a supernet in stages, one after the other.

    The supernet's new branches change in place; its originals, and the model, never do. With
    ``checkpoints=folder``, an interrupted run resumes in the stage, the epoch and the batch where
    it was; finished stages are not run again.

    Args:
        supernet: What to train, on the device it is on.
        loader: A DataLoader or any iterable of batches; see `BatchReader` for their forms.
        stages: The stages.
        options: Fields of `Training` for all stages; a stage's own options come first.

    Returns:
        For each stage what was done.

    Raises:
        UsageError: An option or a batch has a wrong type or value, or two stages have one name.
        TrainingError: A loss is not finite, or no checkpoint can be used.
    """
    if not isinstance(supernet, Supernet):
        raise UsageError(
            f"supernet must be a Supernet, got {type(supernet).__name__}",
            expected="the result of fxelastic.expand",
            got=type(supernet).__name__,
            fix="expand the model first",
        )
    # Options and ids of all stages are checked before the first one begins.
    trainings = [Training.of({**options, **stage.options}) for stage in stages]
    learners = [Learners(supernet, stage.learns, stage.start) for stage in stages]
    for stage, training, learner in zip(stages, trainings, learners, strict=True):
        _check_fixed(supernet, stage, training, learner)
    plans = list(zip(stages, _names(stages), trainings, learners, strict=True))
    return tuple(Loop(supernet, loader, *plan).run() for plan in plans)


def _check_fixed(supernet: Supernet, stage: Stage, training: Training, learners: Learners) -> None:
    """Check that the subnets of a stage belong to the supernet, and that one can learn."""
    if not isinstance(stage.sampling, Fixed):
        if training.until is not None:
            raise UsageError(
                "until is for a stage of fixed subnets",
                expected="sampling=Fixed((arch,))",
                got=f"sampling={stage.sampling!r}",
            )
        return
    for arch in stage.sampling.subnets:
        supernet.space.validate(arch)
    if not any(name in learners.branches for arch in stage.sampling.subnets for name in arch):
        raise UsageError(
            "the fixed subnets hold no branch that learns",
            expected="sampling=Fixed((arch,)) with a new branch in an arch",
            got=", ".join(map(str, stage.sampling.subnets)) or "no subnet",
            fix="draw a subnet with supernet.space.sample(n)",
        )


def _names(stages: Sequence[Stage]) -> list[str]:
    """The names of stages; those without one are numbered from the objective's second stage on."""
    names: list[str] = []
    for stage in stages:
        objective = stage.objective.name
        n = sum(earlier.objective.name == objective for earlier in stages[: len(names)])
        name = stage.name or (f"{objective}-{n + 1}" if n else objective)
        if name in names:
            raise UsageError(
                f"two stages are named {name!r}",
                expected="a name for each stage",
                got=", ".join([*names, name]),
                fix="pass name= to Stage",
            )
        names.append(name)
    return names


def distill(
    supernet: Supernet,
    loader: Iterable[Any],
    *,
    mode: str = "teacher_forced",
    loss: BranchLoss | None = None,
    branches_per_step: int | None = None,
    sampling: Sampling | None = None,
    **options: Any,
) -> History:
    """Teach each new branch to compute the outputs of the blocks it replaces, without labels.

    The supernet's new branches change in place; its originals, and the model, never do.

    Args:
        supernet: What to train, on the device it is on.
        loader: A DataLoader or any iterable of batches; see `BatchReader` for their forms.
            Targets do not count.
        mode: ``"teacher_forced"``: every branch learns from the model's own features, alone.
            ``"chained"``, as published: the branches of a sampled subnet learn together, each from
            the features that the one before it computes.
        loss: Compares the outputs of a branch with the teacher's, each a tuple of tensors;
            where None, `normalised_error`, and `soft_cross_entropy` for early exits.
        branches_per_step: How many branches learn in a step when teacher-forced, in turn; all
            where None.
        sampling: Draws the subnets when chained: `Uniform` (the default), `Bucketed`, `Sandwich`,
            `Attentive` or `Fixed`.
        options: Any field of `Training`: ``epochs``, ``lr``, ``checkpoints``, …

    Returns:
        What was done. A run that finds its own checkpoints resumes from the newest.

    Raises:
        UsageError: An option or a batch has a wrong type or value.
        TrainingError: A loss is not finite, or no checkpoint can be used.

    Source: AdaptiveNet, section 4.2, Eq. 1.
    """
    if mode not in MODES:
        raise UsageError(
            f"there is no mode {mode!r}", expected=" or ".join(map(repr, MODES)), got=repr(mode)
        )
    alone = mode == "teacher_forced"
    other = ("sampling", sampling) if alone else ("branches_per_step", branches_per_step)
    if other[1] is not None:
        raise UsageError(
            f"{other[0]} has no meaning in the mode {mode!r}",
            expected=f"{other[0]}=None, or the other mode",
            got=repr(other[1]),
        )
    stage = (
        Stage(TeacherForced(loss), sampling=Turns(branches_per_step))
        if alone
        else Stage(Chained(loss), sampling=sampling)
    )
    return run(supernet, loader, [stage], **options)[0]


def tune(
    supernet: Supernet,
    loader: Iterable[Any],
    *,
    loss: TaskLoss = cross_entropy,
    soft_loss: str | TaskLoss = soft_cross_entropy,
    soft: float = 0.0,
    sampling: Sampling | None = None,
    **options: Any,
) -> History:
    """Train the new branches of sampled subnets on the task, end to end.

    Usually after `distill`. The supernet's new branches change in place; its originals, and the
    model, never do.

    Args:
        supernet: What to train, on the device it is on.
        loader: A DataLoader or any iterable of batches; see `BatchReader` for their forms.
        loss: Compares a subnet's result with a batch's target.
        soft_loss: Compares a subnet's result with the original's on the same inputs, by name or as
            a function: ``"soft_cross_entropy"``, ``"alpha_divergence"`` or ``"normalised_error"``.
        soft: The share of ``soft_loss`` in the loss, from 0 to 1. A batch without a target has
            nothing else: no labels are needed then.
        sampling: Draws the subnets of a step: `Uniform` (the default), `Bucketed`, `Sandwich`,
            `Attentive` or `Fixed`.
        options: Any field of `Training`: ``epochs``, ``lr``, ``checkpoints``, …

    Returns:
        What was done. A run that finds its own checkpoints resumes from the newest.

    Raises:
        UsageError: An option or a batch has a wrong type or value.
        TrainingError: A loss is not finite, or no checkpoint can be used.

    Source: AdaptiveNet, section 4.2.
    """
    stage = Stage(EndToEnd(loss, soft_loss_of(soft_loss), soft), sampling=sampling)
    return run(supernet, loader, [stage], **options)[0]
