"""What a run reports: a step, an epoch, and in the end its history."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fxelastic.spec import Arch


@dataclass(frozen=True)
class StepReport:
    """One optimiser step.

    Attributes:
        stage: ``distill`` or ``tune``.
        step: Steps made, from 1.
        epoch: The pass over the loader, from 0.
        batch: Batches of the epoch consumed.
        loss: The mean loss; 0 where no branch had anything to learn from.
        losses: The loss of each branch that learned; in tuning, of the subnets it was in.
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
        best: The highest of them.
        n: Subnets sampled, each different.
    """

    low: float
    high: float
    mean: float | None
    best: float | None
    n: int


@dataclass(frozen=True)
class EpochReport:
    """One pass over the loader.

    Attributes:
        stage: ``distill`` or ``tune``.
        epoch: From 0.
        step: Steps made so far.
        loss: The mean loss of the epoch's steps.
        losses: For each branch that learned, the mean of its losses.
        coverage: For each new branch, in how many steps it learned since the run began.
        ranges: The latency-range accuracy; empty without a validation loader.
        seconds: Wall time since the run began or was resumed.
    """

    stage: str
    epoch: int
    step: int
    loss: float
    losses: Mapping[str, float]
    coverage: Mapping[str, int]
    ranges: tuple[Bucket, ...] = ()
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As plain data for ``json.dumps``."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EpochReport:
        """The inverse of `to_json`."""
        return cls(**{**data, "ranges": tuple(Bucket(**bucket) for bucket in data["ranges"])})


@dataclass(frozen=True)
class History:
    """What a run did.

    Attributes:
        stage: ``distill`` or ``tune``.
        steps: Optimiser steps.
        epochs: A report for each epoch, also of those before an interruption.
        coverage: For each new branch, in how many steps it learned.
        resumed_at: The step that the run was resumed at; 0 where it began anew.
        refused: Checkpoints that could not be used, each with the reason.
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

    def __str__(self) -> str:
        n = len(self.coverage)
        least, most = min(self.coverage.values()), max(self.coverage.values())
        per_branch = f"{least}" if least == most else f"{least} to {most}"
        lines = [
            f"{self.stage}: {self.steps} steps; {n} branch{'es' * (n != 1)} "
            f"learned in {per_branch} steps each"
        ]
        lines += [f"  epoch {e.epoch}: loss {e.loss:.4g}{_ranges(e.ranges)}" for e in self.epochs]
        return "\n".join(lines)


def _ranges(buckets: tuple[Bucket, ...]) -> str:
    if not buckets:
        return ""
    means = ("-" if bucket.mean is None else f"{bucket.mean:.3f}" for bucket in buckets)
    return f"; mean scores from the cheapest range to the dearest: {' '.join(means)}"
