"""Which samples a subnet may get right, by the margins of subnets like it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fxelastic.edge.searching.prior import Matrix, Prior, logits
from fxelastic.spec import Arch


class Prediction(NamedTuple):
    """What is expected of subnets' accuracy.

    Attributes:
        accuracy: The expected share of samples on the right side, for each subnet.
        deviation: Its standard deviation, for the samples near the border.
        unknown: How little is known of the subnet: the margins' standard deviation, in units of
            that of nothing known.
    """

    accuracy: Matrix
    deviation: Matrix
    unknown: Matrix


class MarginModel:
    """Predicts the accuracy of a subnet sample by sample.

    Each sample's margin, its target's logit less the largest other, is taken for a Gaussian process
    over subnets: a sum over branches, and besides that what subnets have in common whose features
    differ alike. For what a branch costs depends on the others: the errors of some cancel, and a
    sample that one has lost another can't lose. So an evaluated subnet tells as many numbers as
    there are samples, not one; what is predicted is which samples change sides. Subnets that are
    about as good as the best that fits count most; of many, only these are fitted.
    """

    _COST = 2.0  # typical margins that a unit of distortion is expected to cost
    _OWN, _COMMON = 0.2, 40.0  # of the sum over branches
    # How far two subnets are from each other, of what is no sum: its variance, and the square of
    # the distance within which it is alike, in medians of those between subnets that are known.
    # With a sum alone, searches of 500 subnets missed the best in 9 of 16 seeds; with both, all of
    # 260 found it. `_NEAR` from 2 to 16 and `_TOGETHER` from 1 to 10 did as well.
    _OWN_FAR, _COMMON_FAR = 1.0, 20.0
    _TOGETHER, _NEAR = 10.0, 16.0
    _NOISE = 0.012  # variance of what neither tells
    _LIMIT = 1.6  # margins beyond it are no surer
    _EDGE = 0.03  # margin from which a side is fairly sure
    _MOST = 500  # subnets to fit: the time grows with their number's cube
    _AT_ONCE = 100  # subnets to predict at once, so that not much memory is taken

    def __init__(
        self,
        prior: Prior,
        margins: Mapping[Arch, NDArray[np.float32]],
        fits: Callable[[Arch], bool] = lambda _: True,
    ) -> None:
        """Fit.

        Args:
            prior: Of the branches.
            margins: Of each subnet for the same samples in the same order; fewer for those that
                ended early.
            fits: Whether a subnet keeps the budget; others tell of it what they have in common.
        """
        self._prior = prior
        self._sum_root = prior.root(self._OWN, self._COMMON)
        self._far_root = prior.root(self._OWN_FAR, self._COMMON_FAR)
        lengths = np.array([len(m) for m in margins.values()])
        right = np.zeros((len(margins), lengths.max()), bool)
        for row, found in zip(right, margins.values(), strict=True):
            row[: len(found)] = found > 0
        weights = _weights(right, lengths, np.array([fits(arch) for arch in margins]))
        # One at least that was evaluated to its end.
        whole = np.where(lengths == lengths.max(), weights, -1.0).argmax()
        heaviest = np.argsort(-weights, kind="stable")[: self._MOST - 1]
        kept = np.unique([whole, *heaviest])
        all_archs = list(margins)
        archs = [all_archs[i] for i in kept]
        lengths, weights = lengths[kept], weights[kept]
        values = np.zeros((len(kept), lengths.max()))
        for row, arch in zip(values, archs, strict=True):
            row[: len(margins[arch])] = margins[arch]
        self._unit = _typical(values[weights.argmax(), : lengths[weights.argmax()]])
        values = np.clip(values / self._unit, -self._LIMIT, self._LIMIT)
        design = prior.of(archs)
        values -= self._expected(design)
        self._sums, self._places = design @ self._sum_root, design @ self._far_root
        self._typical_square = _typical_square(self._places)
        # The first samples are those that all subnets were evaluated on.
        known = self._covariance(self._sums, self._places)
        known[np.diag_indices_from(known)] += self._NOISE / weights
        self._level = np.zeros(values.shape[1])
        self._found = np.zeros(values.shape)
        # Samples that the same subnets were evaluated on are fitted together.
        ends = np.unique(lengths).tolist()
        for start, end in zip([0, *ends], ends, strict=False):
            seen = np.flatnonzero(lengths >= end)
            own = known[np.ix_(seen, seen)]
            level = weights[seen] @ values[seen, start:end] / weights[seen].sum()
            self._level[start:end] = level
            self._found[seen, start:end] = np.linalg.solve(own, values[seen, start:end] - level)
        self._precision = np.linalg.inv(known)

    @classmethod
    def needed_bytes(cls, n_subnets: int, n_samples: int) -> int:
        """About what it takes to fit one, in bytes."""
        n = min(n_subnets, cls._MOST)
        return 8 * n * (5 * n + 3 * n_samples)

    def margins(self, archs: Sequence[Arch]) -> Matrix:
        """What is expected of each sample's margin, in typical ones: ``(subnets, samples)``."""
        return self._margins(self._prior.of(archs))[0]

    def predict(self, archs: Sequence[Arch]) -> Prediction:
        """The accuracy of each subnet."""
        parts = [self._predicted(part) for part in self._parts(archs)]
        return Prediction(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def _parts(self, archs: Sequence[Arch]) -> list[Sequence[Arch]]:
        return [archs[i : i + self._AT_ONCE] for i in range(0, len(archs), self._AT_ONCE)]

    def _predicted(self, archs: Sequence[Arch]) -> Prediction:
        design = self._prior.of(archs)
        margins, covariance = self._margins(design)
        chances = self._chances(margins)
        n = margins.shape[1]
        deviation = np.sqrt((chances * (1 - chances)).sum(axis=1)) / n
        sums = design @ self._sum_root
        nothing = (sums * sums).sum(axis=1) + self._TOGETHER
        told = (covariance * (covariance @ self._precision)).sum(axis=1)
        unknown = np.sqrt(np.clip(1 - told / nothing, 1e-12, 1.0))
        return Prediction(chances.mean(axis=1), deviation, unknown)

    def completed(self, margins: Mapping[Arch, NDArray[np.float32]]) -> dict[Arch, float]:
        """The accuracy of subnets that ended early: what they had, and the rest as expected.

        Args:
            margins: Of each subnet, for the first samples.
        """
        found = {}
        for part in self._parts(list(margins)):
            for arch, expected in zip(part, self.margins(part), strict=True):
                seen = margins[arch]
                rest = self._chances(expected[len(seen) :])
                found[arch] = float(((seen > 0).sum() + rest.sum()) / len(expected))
        return found

    def _chances(self, margins: Matrix) -> Matrix:
        """Of each sample, that its margin is above 0."""
        chances: Matrix = 1 / (1 + np.exp(-np.clip(margins / self._EDGE, -50.0, 50.0)))
        return chances

    def _margins(self, design: Matrix) -> tuple[Matrix, Matrix]:
        """Subnets' expected margins, and their covariances with the subnets that are known."""
        covariance = self._covariance(design @ self._sum_root, design @ self._far_root)
        return covariance @ self._found + self._level + self._expected(design), covariance

    def _covariance(self, sums: Matrix, places: Matrix) -> Matrix:
        """Of subnets with those that are known, before anything is."""
        # In place: there are as many numbers as pairs of subnets.
        found = _squares(places, self._places)
        found *= -0.5 / (self._NEAR * self._typical_square)
        np.exp(found, out=found)
        found *= self._TOGETHER
        found += sums @ self._sums.T
        return found

    def _expected(self, design: Matrix) -> Matrix:
        """What subnets' margins change by before anything is known: ``(subnets, 1)``."""
        expected: Matrix = -self._COST * (design @ self._prior.errors)[:, None]
        return expected


def _weights(
    right: NDArray[np.bool_], lengths: NDArray[np.int64], fits: NDArray[np.bool_]
) -> Matrix:
    """How much each subnet counts: by its accuracy, relative to the best of those that fit.

    On samples that a subnet was not evaluated on it is taken for as good as the others.
    """
    seen = np.arange(right.shape[1]) < lengths[:, None]
    share = right.sum(axis=0) / seen.sum(axis=0)
    odds = logits((right.sum(axis=1) + ~seen @ share) / right.shape[1])
    best = odds[fits].max() if fits.any() else odds.max()
    weights: Matrix = np.exp(-np.minimum(np.abs(odds - best), 4.0))
    return weights


def _typical(margins: Matrix) -> float:
    return float(np.median(np.abs(margins))) or 1.0


def _squares(one: Matrix, other: Matrix) -> Matrix:
    """Squares of distances between rows."""
    squares: Matrix = -2 * one @ other.T
    squares += (one * one).sum(axis=1)[:, None]
    squares += (other * other).sum(axis=1)
    np.maximum(squares, 0.0, out=squares)
    return squares


def _typical_square(places: Matrix) -> float:
    """The median square of the distance between two; 1 where there is none."""
    squares = _squares(places, places)
    pairs = np.concatenate([squares[i, i + 1 :] for i in range(len(squares))])
    return float(np.median(pairs) if pairs.size else 1.0) or 1.0
