"""How far a run of training is: what its checkpoints hold besides weights."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin, get_type_hints

from fxelastic.spec.json_fields import MAX_COUNT
from fxelastic.train.reports import EpochReport


@dataclass
class Position:
    """How far a run is. Only this, the weights and the optimiser's state change in a run.

    Attributes:
        coverage: For each branch that learns, in how many steps it did.
        step: Steps made.
        epoch: The current pass over the loader, from 0.
        batch: Batches of this epoch consumed.
        epochs: Reports of the epochs that have ended.
        threads: The number of threads that the run has chosen; None before it has.
        frozen: Whether the statistics of norms stay as they are.
        sums: For each branch that learned in this epoch, the sum of its losses.
        counts: For each branch that learned in this epoch, in how many steps it did.
        loss: The sum of this epoch's losses.
        steps: The steps of this epoch that had a loss.
    """

    coverage: dict[str, int]
    step: int = 0
    epoch: int = 0
    batch: int = 0
    epochs: list[EpochReport] = field(default_factory=list)
    threads: int | None = None
    frozen: bool = True
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    loss: float = 0.0
    steps: int = 0

    def advance(self, n_batches: int, losses: Mapping[str, float]) -> None:
        """Count a step.

        Args:
            n_batches: Batches of the step.
            losses: The loss of each branch that learned.
        """
        self.step += 1
        self.batch += n_batches
        if losses:
            self.steps += 1
            self.loss += sum(losses.values()) / len(losses)
        for name, loss in losses.items():
            self.coverage[name] += 1
            self.sums[name] = self.sums.get(name, 0.0) + loss
            self.counts[name] = self.counts.get(name, 0) + 1

    @property
    def mean_loss(self) -> float:
        """The mean loss of this epoch's steps; NaN before the first that had one."""
        return self.loss / self.steps if self.steps else float("nan")

    def mean_losses(self) -> dict[str, float]:
        """For each branch that learned in this epoch, the mean of its losses."""
        names = (name for name in self.coverage if name in self.sums)
        return {name: self.sums[name] / self.counts[name] for name in names}

    def end_epoch(self, report: EpochReport) -> None:
        """Go on to the next epoch."""
        self.epochs.append(report)
        self.epoch += 1
        self.batch = 0
        self.sums, self.counts, self.loss, self.steps = {}, {}, 0.0, 0

    @classmethod
    def from_json(cls, data: Mapping[str, Any], branches: Collection[str]) -> Position:
        """The inverse of ``dataclasses.asdict``.

        Args:
            data: What ``asdict`` returned.
            branches: The branches that learn.

        Raises:
            AttributeError, KeyError, TypeError, ValueError: It has other fields, or values of other
                types, or is about other branches.
        """
        epochs = [EpochReport.from_json(report) for report in data["epochs"]]
        found = cls(**{**data, "epochs": epochs})
        _check_fields(found)
        if found.coverage.keys() != set(branches) or not found.counts.keys() <= set(branches):
            raise ValueError("it is about other branches")
        if found.sums.keys() != found.counts.keys() or not all(found.counts.values()):
            raise ValueError("a sum of losses has no number of steps")
        return found


def _check_fields(value: Any) -> None:
    """Check that the fields of a dataclass have the types that it states.

    Raises:
        ValueError: One has another type, or is a count that no run has.
    """
    for name, hint in get_type_hints(type(value)).items():
        if not _conforms(getattr(value, name), hint):
            raise ValueError(f"{name} is not of the type {hint}")


def _conforms(value: Any, hint: Any) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is types.UnionType:
        return any(_conforms(value, part) for part in parts)
    if origin in (list, tuple):
        return isinstance(value, origin) and all(_conforms(item, parts[0]) for item in value)
    if origin is not None:  # of names to numbers
        return isinstance(value, dict) and all(_conforms(x, parts[1]) for x in value.values())
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            _check_fields(value)
            return True
        return False
    if hint is float:
        return type(value) in (int, float)
    if hint is int:
        return type(value) is int and 0 <= value <= MAX_COUNT
    return type(value) is hint
