"""A learning rate for each branch, from a short range test."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fxelastic.train.held_out import HeldOut

#: The rates that are tried.
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
#: The rate of a run that is too short for a test, by stage.
DEFAULT = {"distill": 1e-3, "tune": 3e-4}
#: The least steps of a run that is worth a test, and the least and most steps with each rate.
_LEAST_STEPS, _LEAST_TRIED, _MOST_TRIED = 50, 3, 8
_SHARE = 0.02

logger = logging.getLogger(__name__)


def n_steps_tried(total_steps: int | None) -> int:
    """Steps with each rate: a fiftieth of the run, from 3 to 8; 0 for a run that is too short."""
    if total_steps is None:
        return _MOST_TRIED
    if total_steps < _LEAST_STEPS:
        return 0
    return min(_MOST_TRIED, max(_LEAST_TRIED, math.ceil(_SHARE * total_steps)))


@dataclass(frozen=True)
class RangeTest:
    """Takes a few steps with each rate from the same state, and compares held-out errors.

    Attributes:
        held_out: Measures the errors, and has the state to begin from.
        train: Takes the steps with a rate; returns whether all was finite.
    """

    held_out: HeldOut
    train: Callable[[float], bool]

    def rates(self, rates: Sequence[float] = RATES) -> Mapping[str, float]:
        """The best rate of each branch: the lowest where several are equal.

        Returns:
            Rates by branch id. The state is what it was before.
        """
        held_out = self.held_out
        found: dict[str, tuple[float, float]] = {}
        for rate in sorted(rates):
            finite = self.train(rate)
            means = held_out.means(held_out.measure()) if finite else {}
            held_out.restore(held_out.units)
            for unit in held_out.units:
                error = means.get(unit, math.inf)
                error = error if math.isfinite(error) else math.inf
                if unit not in found or error < found[unit][0]:
                    found[unit] = (error, rate)
            if not finite:
                break
        chosen = {b: found[unit][1] for unit, own in held_out.units.items() for b in own}
        counts = {rate: list(chosen.values()).count(rate) for rate in sorted(rates)}
        logger.info(
            "learning rates by a range test: %s",
            ", ".join(f"{rate:g} for {n}" for rate, n in counts.items() if n),
        )
        return chosen
