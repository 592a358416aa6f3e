"""What a subnet scored on the batches so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from fxelastic.edge.execution import Array
from fxelastic.edge.searching.scores import mean


class BatchScore(NamedTuple):
    """A subnet's score on one batch, as the metric gives it; and the samples' margins, if kept."""

    total: Any
    count: Any
    n_samples: int
    margins: Array | None


@dataclass
class Tally:
    """What a subnet scored so far.

    Attributes:
        total: The sum of the batches' sums.
        count: The sum of the batches' counts.
        n_samples: Samples so far.
        margins: The margins of each batch, where they are kept.
        batches: The score of each batch by itself, and its number of samples.
        means: The score after each batch, where the metric's sums and counts are numbers.
    """

    total: Any = 0.0
    count: Any = 0.0
    n_samples: int = 0
    margins: list[Array] = field(default_factory=list)
    batches: list[tuple[float, int]] = field(default_factory=list)
    means: list[float] = field(default_factory=list)

    def add(self, part: BatchScore) -> None:
        """Take in the next batch."""
        self.total, self.count = self.total + part.total, self.count + part.count
        self.n_samples += part.n_samples
        self.batches.append((mean(part.total, part.count), part.n_samples))
        if np.ndim(self.count) == 0:
            self.means.append(mean(self.total, self.count))
        if part.margins is not None:
            self.margins.append(part.margins)

    @property
    def score(self) -> float:
        """The score on the samples so far."""
        return mean(self.total, self.count)
