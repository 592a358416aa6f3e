"""The public functions `distill` and `tune`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from fxelastic.errors import UsageError
from fxelastic.ir.supernet import Supernet
from fxelastic.train.distillation import BranchLoss, Chained, TeacherForced
from fxelastic.train.execution import Execution
from fxelastic.train.loop import Loop
from fxelastic.train.losses import cross_entropy, normalised_error, soft_cross_entropy
from fxelastic.train.new_branches import NewBranches
from fxelastic.train.processes import Processes
from fxelastic.train.reports import History
from fxelastic.train.sampling import Sampling, Uniform
from fxelastic.train.training import Training
from fxelastic.train.tuning import TaskLoss, Tuning

MODES = ("teacher_forced", "chained")


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
    """Teach each new branch what the blocks it stands in for compute; no labels are needed.

    The supernet's new branches change in place; its originals, and the model, never do.

    Args:
        supernet: What to train, on the device it is on.
        loader: A DataLoader or any iterable of batches; see `BatchReader` for their forms.
            Targets do not count.
        mode: ``"teacher_forced"``: every branch learns from the model's own features, alone.
            ``"chained"``, as published: the branches of a sampled subnet learn together, each from
            the features that the one before it computes.
        loss: Compares the outputs of a branch with the teacher's, each a tuple of tensors;
            `normalised_error` where None.
        branches_per_step: How many branches learn in a step when teacher-forced, in turn; all
            where None.
        sampling: Draws the subnets when chained: `Uniform` where None, `Bucketed`, `Sandwich`.
        options: Any field of `Training`: ``epochs``, ``lr``, ``checkpoints``, …

    Returns:
        What was done. A run that finds its own checkpoints goes on from the newest.

    Raises:
        UsageError: An option or a batch is not what it should be.
        TrainingError: A loss is not finite, or no checkpoint can be used.

    Source: AdaptiveNet, section 4.2, Eq. 1.
    """
    training = Training.of(options)
    if mode not in MODES:
        raise UsageError(
            f"there is no mode {mode!r}", expected=" or ".join(map(repr, MODES)), got=repr(mode)
        )
    other = ("sampling", sampling) if mode == MODES[0] else ("branches_per_step", branches_per_step)
    if other[1] is not None:
        raise UsageError(
            f"{other[0]} has no meaning in the mode {mode!r}",
            expected=f"{other[0]}=None, or the other mode",
            got=repr(other[1]),
        )
    new = NewBranches(_checked(supernet))
    execution = Execution(supernet, training.compile)
    processes = Processes.of(training.distributed)
    error: BranchLoss = loss or partial(normalised_error, processes=processes)
    objective = (
        TeacherForced(execution, new, error, branches_per_step, training.seed)
        if mode == MODES[0]
        else Chained(execution, new, error, sampling or Uniform(), training.seed)
    )
    return Loop(execution, new, objective, loader, training, processes).run()


def tune(
    supernet: Supernet,
    loader: Iterable[Any],
    *,
    loss: TaskLoss = cross_entropy,
    soft_loss: TaskLoss = soft_cross_entropy,
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
        soft_loss: Compares a subnet's result with the original's on the same inputs.
        soft: The share of ``soft_loss`` in the loss, from 0 to 1. A batch without a target has
            nothing else: no labels are needed then.
        sampling: Draws the subnets of a step: `Uniform` where None, `Bucketed`, `Sandwich`.
        options: Any field of `Training`: ``epochs``, ``lr``, ``checkpoints``, …

    Returns:
        What was done. A run that finds its own checkpoints goes on from the newest.

    Raises:
        UsageError: An option or a batch is not what it should be.
        TrainingError: A loss is not finite, or no checkpoint can be used.

    Source: AdaptiveNet, section 4.2.
    """
    training = Training.of(options)
    new = NewBranches(_checked(supernet))
    execution = Execution(supernet, training.compile)
    objective = Tuning(execution, new, loss, soft_loss, soft, sampling or Uniform(), training.seed)
    processes = Processes.of(training.distributed)
    return Loop(execution, new, objective, loader, training, processes).run()


def _checked(supernet: object) -> Supernet:
    if isinstance(supernet, Supernet):
        return supernet
    raise UsageError(
        "there is no supernet to train",
        expected="what fxelastic.expand returns",
        got=type(supernet).__name__,
        fix="expand the model first",
    )
