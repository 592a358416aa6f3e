"""Reports of a run: of a step, of an epoch, and of the whole run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fxelastic.spec import Arch


@dataclass(frozen=True)
class StepReport:
    """One optimiser step.

    Attributes:
        stage: The name of the stage, such as ``distill`` or ``tune``.
        step: Steps made, from 1.
        epoch: The pass over the loader, from 0.
        batch: Batches of the epoch consumed.
        loss: The mean loss; 0 where no branch had anything to learn from.
        losses: The loss of each branch that learned; in tuning, of its subnets.
        archs: The subnets of the step; empty in teacher-forced distillation.
        lr: The learning rate of the first parameter group.
        grad_norm: The largest norm of the gradients before they were clipped.
        n_samples: Samples of the step, over all processes.
        seconds: Wall time since the run began or was resumed.
    """

    stage: str
    step: int
    epoch: int
    batch: int
    loss: float
    losses: Mapping[str, float]
    archs: tuple[Arch, ...]
    lr: float
    grad_norm: float
    n_samples: int
    seconds: float


@dataclass(frozen=True)
class Bucket:
    """The subnets of one range of costs.

    Attributes:
        low: Least cost, inclusive.
        high: Largest cost, inclusive.
        mean: Mean score of the sampled subnets; None where the range has no subnet.
        best: The highest score; None where the range has no subnet.
        n: Different subnets that were sampled.
    """

    low: float
    high: float
    mean: float | None
    best: float | None
    n: int


@dataclass(frozen=True)
class HeldOutReport:
    """Errors on held-out batches, in inference mode.

    The errors are means of the stage's loss over the batches. Where branches learn alone, each has
    an error under its id; branches that share weights have one, under the first one's id. Where
    sampled subnets learn, there is one error for all, named ``subnets``. Lower is better.

    Attributes:
        before: The errors before training.
        now: The present errors.
        best: The errors of the best states so far, with which the run ends.
        steps_left: The number of further steps that pay off: while an epoch is expected to
            reduce the mean error by a hundredth. None where it is not known yet.
    """

    before: Mapping[str, float]
    now: Mapping[str, float]
    best: Mapping[str, float]
    steps_left: int | None = None

    @property
    def n_better(self) -> int:
        """How many of the errors training has reduced."""
        return sum(self.best[name] < error for name, error in self.before.items())

    def __str__(self) -> str:
        n = len(self.before)
        if not n:
            return "no errors were measured"
        before, best = (sum(x.values()) / n for x in (self.before, self.best))
        return f"{self.n_better} of {n} better, mean error {before:.3g} -> {best:.3g}"


@dataclass(frozen=True)
class EpochReport:
    """One pass over the loader.

    Attributes:
        stage: The name of the stage, such as ``distill`` or ``tune``.
        epoch: The number of the epoch, from 0.
        step: Steps made so far.
        loss: The mean loss of the epoch's steps.
        losses: For each branch that learned, the mean of its losses.
        coverage: For each new branch, in how many steps it learned since the run began.
        ranges: The latency-range accuracy; empty without a validation loader.
        seconds: Wall time since the run began or was resumed.
        held_out: The errors on held-out batches; None where they were not measured.
        scores: The score of each subnet on ``validate``, in a stage of fixed subnets.
    """

    stage: str
    epoch: int
    step: int
    loss: float
    losses: Mapping[str, float]
    coverage: Mapping[str, int]
    ranges: tuple[Bucket, ...] = ()
    seconds: float = 0.0
    held_out: HeldOutReport | None = None
    scores: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EpochReport:
        """The inverse of `to_json`."""
        held_out = data.get("held_out")
        parts = {
            "ranges": tuple(Bucket(**bucket) for bucket in data["ranges"]),
            "held_out": None if held_out is None else HeldOutReport(**held_out),
            "scores": tuple(data.get("scores", ())),
        }
        return cls(**{**data, **parts})


@dataclass(frozen=True)
class History:
    """What a stage did.

    Attributes:
        stage: The name of the stage, such as ``distill`` or ``tune``.
        steps: Optimiser steps.
        epochs: A report for each epoch, including those before an interruption.
        coverage: For each new branch, in how many steps it learned.
        resumed_at: The step at which the stage was resumed; 0 where it started from scratch.
        refused: Checkpoints that could not be used, with their reasons.
    """

    stage: str
    steps: int
    epochs: tuple[EpochReport, ...]
    coverage: Mapping[str, int]
    resumed_at: int = 0
    refused: tuple[str, ...] = field(default=())

    @property
    def loss(self) -> float:
        """The mean loss of the last epoch; NaN where there was none."""
        return self.epochs[-1].loss if self.epochs else float("nan")

    @property
    def held_out(self) -> HeldOutReport | None:
        """The errors on held-out batches at the end; None where they were not measured."""
        return self.epochs[-1].held_out if self.epochs else None

    def __str__(self) -> str:
        n = len(self.coverage)
        least, most = min(self.coverage.values()), max(self.coverage.values())
        per_branch = f"{least}" if least == most else f"{least} to {most}"
        lines = [
            f"{self.stage}: {self.steps} steps; {n} branch{'es' * (n != 1)} "
            f"learned in {per_branch} steps each"
        ]
        lines += [
            f"  epoch {e.epoch}: loss {e.loss:.4g}{_ranges(e.ranges)}{_scores(e.scores)}"
            for e in self.epochs
        ]
        if self.held_out is not None:
            lines.append(f"  on held-out batches: {self.held_out}{_rest(self.held_out)}")
        return "\n".join(lines)


def _rest(report: HeldOutReport) -> str:
    if report.steps_left is None:
        return ""
    if not report.steps_left:
        return "; more steps would hardly help"
    return f"; about {report.steps_left} more steps are worth it"


def _scores(scores: tuple[float, ...]) -> str:
    if not scores:
        return ""
    return f"; score{'s' * (len(scores) > 1)} {' '.join(f'{score:.3f}' for score in scores)}"


def _ranges(buckets: tuple[Bucket, ...]) -> str:
    if not buckets:
        return ""
    means = ("-" if bucket.mean is None else f"{bucket.mean:.3f}" for bucket in buckets)
    return f"; mean scores from the cheapest range to the most expensive: {' '.join(means)}"
