"""Where a run is, and what it has seen so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fxelastic.train.randomness import restore_random_state
from fxelastic.train.reports import EpochReport


@dataclass
class Position:
    """The only thing of a run that changes, besides weights and the optimiser.

    Attributes:
        coverage: For each new branch, in how many steps it learned.
        step: Steps made.
        epoch: The current pass over the loader, from 0.
        batch: Batches of this epoch consumed.
        epochs: Reports of the epochs that have ended.
        threads: The number of threads that the run has chosen; None before it has.
        frozen: Whether the statistics of norms stay as they are.
        random: The random state in which a resumed epoch goes on.
    """

    coverage: dict[str, int]
    step: int = 0
    epoch: int = 0
    batch: int = 0
    epochs: list[EpochReport] = field(default_factory=list)
    threads: int | None = None
    frozen: bool = True
    random: bytes | None = None
    _sums: dict[str, float] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)
    _loss: float = 0.0
    _steps: int = 0

    def advance(self, n_batches: int, losses: Mapping[str, float]) -> None:
        """A step was made.

        Args:
            n_batches: Batches of the step.
            losses: The loss of each branch that learned.
        """
        self.step += 1
        self.batch += n_batches
        if losses:
            self._steps += 1
            self._loss += sum(losses.values()) / len(losses)
        for name, loss in losses.items():
            self.coverage[name] += 1
            self._sums[name] = self._sums.get(name, 0.0) + loss
            self._counts[name] = self._counts.get(name, 0) + 1

    @property
    def mean_loss(self) -> float:
        """The mean loss of this epoch's steps; NaN before the first that had one."""
        return self._loss / self._steps if self._steps else float("nan")

    def mean_losses(self) -> dict[str, float]:
        """For each branch that learned in this epoch, the mean of its losses."""
        names = (name for name in self.coverage if name in self._sums)
        return {name: self._sums[name] / self._counts[name] for name in names}

    def end_epoch(self, report: EpochReport) -> None:
        """An epoch has ended."""
        self.epochs.append(report)
        self.epoch += 1
        self.batch = 0
        self._sums, self._counts, self._loss, self._steps = {}, {}, 0.0, 0

    def restore_random_state(self) -> None:
        """Put the random state of the checkpoint back, once."""
        if self.random is not None:
            restore_random_state(self.random)
            self.random = None

    def to_json(self) -> dict[str, Any]:
        """As plain data, without the random state."""
        return {
            "coverage": self.coverage,
            "step": self.step,
            "epoch": self.epoch,
            "batch": self.batch,
            "epochs": [report.to_json() for report in self.epochs],
            "sums": self._sums,
            "counts": self._counts,
            "loss": self._loss,
            "steps": self._steps,
            "threads": self.threads,
            "frozen": self.frozen,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], random: bytes) -> Position:
        """The inverse of `to_json`."""
        return cls(
            coverage=dict(data["coverage"]),
            step=data["step"],
            epoch=data["epoch"],
            batch=data["batch"],
            epochs=[EpochReport.from_json(report) for report in data["epochs"]],
            threads=data.get("threads"),
            frozen=data.get("frozen", True),
            random=random,
            _sums=dict(data["sums"]),
            _counts=dict(data["counts"]),
            _loss=data["loss"],
            _steps=data["steps"],
        )
