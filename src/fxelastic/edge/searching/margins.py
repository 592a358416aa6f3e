"""How subnets did on single samples, and the order of samples that follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fxelastic.edge.execution import Array
from fxelastic.spec import Arch

#: Samples whose margins are kept; they tell where to search, and need not be all.
_MARGINS = 1000
_CLIPPED = (-8.0, 8.0)
_FAR = 1e30


class Margins:
    """The margins of the first samples, for each subnet as far as it was evaluated.

    Once some subnets are known, the samples that they came closest to missing come first. Which
    subnets win does not depend on the order, but a subnet that can't win is found out sooner, for
    most samples tell nothing: every subnet gets them right.

    Attributes:
        order: The samples' indices, in the order of evaluation; None for the data's own.
        by_arch: Margins in that order; fewer where a subnet ended early.
    """

    def __init__(self, n_samples: int, batch_size: int, *, reorder: bool) -> None:
        """Know nothing yet.

        Args:
            n_samples: Samples of the data.
            batch_size: Samples of a batch: margins of whole batches are kept.
            reorder: Whether the order may change.
        """
        self.order: Array | None = None
        self.by_arch: dict[Arch, Array] = {}
        self._n_samples = n_samples
        self._n_kept = min(n_samples, -(-_MARGINS // batch_size) * batch_size)
        self._reorder = reorder

    def wanted(self, seen: int) -> bool:
        """Whether the margins of a batch are kept, after so many samples."""
        return seen < self._n_kept

    def add(self, found: Mapping[Arch, Sequence[Array]]) -> None:
        """Take in a group's margins, batch by batch in the order that it was evaluated in."""
        new = {a: _finite(np.concatenate(m)[: self._n_kept]) for a, m in found.items() if m}
        if self._reorder and self.order is None:
            # What ended early is not known in another order.
            new = {arch: m for arch, m in new.items() if len(m) == self._n_kept}
            if new:
                self.order = self._hardest_first(list(new.values()))
                new = {arch: m[self.order[: self._n_kept]] for arch, m in new.items()}
        # What ended early for one budget may have gone farther for another one.
        longer = {a: m for a, m in new.items() if len(m) > len(self.by_arch.get(a, ()))}
        self.by_arch |= longer

    def _hardest_first(self, margins: Sequence[Array]) -> Array:
        mean = np.mean([np.clip(m, *_CLIPPED) for m in margins], axis=0)
        rest = np.arange(self._n_kept, self._n_samples)
        order: Array = np.concatenate([np.argsort(mean, kind="stable"), rest])
        return order


def _finite(margins: Array) -> Array:
    """Margins that a metric could not tell are taken for wrong ones."""
    return np.nan_to_num(margins, nan=-1.0, posinf=_FAR, neginf=-_FAR).astype(np.float32)
