"""Confidence intervals of means over samples from few sources, by resampling the sources."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Figure:
    """A figure and its value in each resample.

    Figures of one `Bootstrap` are paired: they are computed on the same resamples.
    """

    value: float
    draws: Array

    def __sub__(self, other: Figure) -> Figure:
        return Figure(self.value - other.value, self.draws - other.draws)

    def __truediv__(self, other: Figure) -> Figure:
        return Figure(self.value / other.value, self.draws / other.draws)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval: percentiles of the resamples."""
        low, high = np.percentile(self.draws, (2.5, 97.5))
        return float(low), float(high)

    def to_json(self) -> list[float]:
        """The value, and both ends of the interval."""
        return [float(self.value), *self.interval]


class Bootstrap:
    """Resamples sources, such as photographs, with replacement.

    Samples of one source resemble each other, so resampling them one by one would give intervals
    that are too narrow.
    """

    def __init__(self, groups: Array, n_resamples: int = 4000, seed: int = 0) -> None:
        """Draw the resamples.

        Args:
            groups: The source of each sample, ``(N,)``.
            n_resamples: Number of resamples to draw.
            seed: Seed of the random numbers.
        """
        names, self._of = np.unique(groups, return_inverse=True)
        self.n_groups = n = len(names)
        rng = np.random.default_rng(seed)
        self._weights = rng.multinomial(n, np.full(n, 1 / n), size=n_resamples).astype(float)

    def sums(self, values: Array) -> Array:
        """The sum over each source's samples: ``(N, …)`` becomes ``(sources, …)``."""
        found = np.zeros((self.n_groups, *values.shape[1:]))
        np.add.at(found, self._of, values)
        return found

    def mean(self, values: Array) -> Figure:
        """The mean over all samples of a value, ``(N,)``."""
        total, count = self.sums(values.astype(float)), self.sums(np.ones(len(values)))
        draws = (self._weights @ total) / (self._weights @ count)
        return Figure(float(values.mean()), draws)

    def resampled(self, sums: Array) -> Array:
        """Totals of the resamples, ``(resamples, …)``, from sums of each source."""
        return np.tensordot(self._weights, sums, axes=1)


def mean_of(figures: list[Figure]) -> Figure:
    """The mean of several figures of one bootstrap."""
    return Figure(
        float(np.mean([figure.value for figure in figures])),
        np.mean([figure.draws for figure in figures], axis=0),
    )
