"""The scores of a subnet so far, by batch and by sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from fxelastic.edge.executor import Array
from fxelastic.edge.searching.scores import mean
from fxelastic.spec import Arch


class BatchScore(NamedTuple):
    """A subnet's score on one batch, as the metric returns it, and the samples' margins if kept."""

    total: Any
    count: Any
    n_samples: int
    margins: Array | None


def joined_scores(parts: Sequence[BatchScore], places: Sequence[Array]) -> BatchScore:
    """The score on all samples of some batches.

    Args:
        parts: A subnet's score on each batch.
        places: For each batch the places of its samples among all of them, for the margins.
    """
    if len(parts) == 1:
        return parts[0]
    totals, counts, sizes, margins = zip(*parts, strict=True)
    kept = None
    if margins[0] is not None:
        kept = np.concatenate(margins)[np.argsort(np.concatenate(places), kind="stable")]
    return BatchScore(sum(totals), sum(counts), sum(sizes), kept)


@dataclass
class Tally:
    """The score of a subnet so far.

    Attributes:
        total: The sum of the batches' sums.
        count: The sum of the batches' counts.
        n_samples: The number of samples so far.
        margins: The margins of each batch, if they are kept.
        batches: The score of each batch alone, and its number of samples.
        means: The score after each batch, if the metric's sums and counts are scalars.
    """

    total: Any = 0.0
    count: Any = 0.0
    n_samples: int = 0
    margins: list[Array] = field(default_factory=list)
    batches: list[tuple[float, int]] = field(default_factory=list)
    means: list[float] = field(default_factory=list)

    def add(self, part: BatchScore) -> None:
        """Add the next batch."""
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


#: The number of samples whose margins are kept: enough to guide the search.
_MARGINS = 1000
_CLIPPED = (-8.0, 8.0)
_FAR = 1e30


class Margins:
    """The margins of the first samples, for each subnet as far as it was evaluated.

    Once some subnets are known, the samples with the smallest margins come first. The order does
    not change which subnet wins, but a subnet that can't win ends sooner: most samples are easy,
    and every subnet gets them right.

    Attributes:
        order: The samples' indices in the order of evaluation; None for the order of the data.
        by_arch: Margins in that order; fewer if a subnet ended early.
    """

    def __init__(self, n_samples: int, batch_size: int, *, reorder: bool) -> None:
        """Start with no margins.

        Args:
            n_samples: The number of samples in the data.
            batch_size: The number of samples in a batch; margins of whole batches are kept.
            reorder: Whether the order may change.
        """
        self.order: Array | None = None
        self.by_arch: dict[Arch, Array] = {}
        self._n_samples = n_samples
        self._n_kept = min(n_samples, -(-_MARGINS // batch_size) * batch_size)
        self._reorder = reorder

    def wanted(self, seen: int) -> bool:
        """Whether the margins of the next batch are kept, after ``seen`` samples."""
        return seen < self._n_kept

    def add(self, found: Mapping[Arch, Sequence[Array]]) -> None:
        """Add a group's margins, batch by batch in the order of evaluation."""
        new = {a: _finite(np.concatenate(m)[: self._n_kept]) for a, m in found.items() if m}
        if self._reorder and self.order is None:
            # Subnets that ended early have no margins in another order.
            new = {arch: m for arch, m in new.items() if len(m) == self._n_kept}
            if new:
                self.order = self._hardest_first(list(new.values()))
                new = {arch: m[self.order[: self._n_kept]] for arch, m in new.items()}
        # A subnet that ended early for one limit may have gone farther for another.
        longer = {a: m for a, m in new.items() if len(m) > len(self.by_arch.get(a, ()))}
        self.by_arch |= longer

    def _hardest_first(self, margins: Sequence[Array]) -> Array:
        mean = np.mean([np.clip(m, *_CLIPPED) for m in margins], axis=0)
        rest = np.arange(self._n_kept, self._n_samples)
        order: Array = np.concatenate([np.argsort(mean, kind="stable"), rest])
        return order


def _finite(margins: Array) -> Array:
    """The margins with NaN as -1, a wrong sample."""
    return np.nan_to_num(margins, nan=-1.0, posinf=_FAR, neginf=-_FAR).astype(np.float32)
