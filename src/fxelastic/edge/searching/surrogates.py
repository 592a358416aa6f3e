"""Models that predict the scores of subnets that were not evaluated.

`Prior` is the prior of both models, of a subnet's score and of every sample's margin: the expected
cost of a branch follows from its distortion, and branches with similar errors deviate from it in
similar ways. All constants were chosen on a trained supernet of a residual network. Those of the
sums over branches were checked on others; those of the other terms on an easy one only, where they
changed nothing. Distortions are relative to the features' variance, scores are in logits, and
margins in units of a typical one, so that the constants suit other models.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fxelastic.edge.searching.distortion import Distortion
from fxelastic.spec import Arch

Matrix = NDArray[np.float64]

#: The least distortion of a branch for its uncertainty, and the most.
_LEAST, _MOST = 1e-4, 4.0
_UNKNOWN = 1.0  # variance of the cost of a branch whose distortion is not known


class Prior:
    """Subnets as vectors of their new branches, and the prior of the branches' costs."""

    def __init__(self, distortion: Distortion) -> None:
        """Begin with a measurement.

        Args:
            distortion: Of the space's branches.
        """
        self.branches = distortion.branches
        # Beyond some error an output is unrelated to the original's: larger errors are no worse.
        shrunk = np.sqrt(np.minimum(1.0, _MOST / np.maximum(distortion.errors, _LEAST)))
        self.errors = distortion.errors * shrunk**2
        self._products = distortion.products * np.outer(shrunk, shrunk)
        self._distortion = distortion
        self._place = {branch: i for i, branch in enumerate(self.branches)}

    def of(self, archs: Sequence[Arch]) -> Matrix:
        """An array ``(subnets, branches)`` of 0 and 1."""
        found = np.zeros((len(archs), len(self.branches)))
        for row, arch in zip(found, archs, strict=True):
            for branch in arch:
                i = self._place.get(branch)
                if i is not None:
                    row[i] = 1.0
        return found

    def root(self, own: float, common: float) -> Matrix:
        """A root L of the prior covariance L·Lᵀ of what branches cost.

        Args:
            own: Variance of a branch's cost for each unit of its distortion; branches with a common
                product of differences share it.
            common: Variance of the cost of a unit of distortion that all branches of a group share.
        """
        given = self._distortion
        least = np.maximum(0.02 * self.errors, _LEAST)
        covariance = own * (self._products + np.diag(least)) + np.diag(_UNKNOWN * given.unknown)
        for group in range(int(given.groups.max(initial=-1)) + 1):
            errors = np.where(given.groups == group, self.errors, 0.0)
            covariance += common * np.outer(errors, errors)
        try:
            root: Matrix = np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError:
            # Branches without a usable value in some batch are compared on fewer samples, so that
            # the matrix of products may not be positive definite.
            sizes, directions = np.linalg.eigh(covariance)
            root = directions * np.sqrt(np.maximum(sizes, _LEAST * sizes.max()))
        return root


def logits(shares: Matrix) -> Matrix:
    """The log odds of shares; finite at 0 and 1, too."""
    found: Matrix = np.log((shares + 0.002) / (1.002 - shares))
    return found


class ScoreModel:
    """A Bayesian linear model: the score's logit is a sum over branches."""

    _COST = 2.5  # the expected cost of a unit of distortion, in logits
    _OWN, _COMMON = 0.1, 1.0
    _LEVEL = 3.0  # standard deviation of the score before any evaluation, in logits
    _NOISE = 0.3  # of the terms that are not a sum over branches

    def __init__(self, prior: Prior, most: float | None) -> None:
        """Begin with the prior.

        Args:
            prior: Of the branches.
            most: The largest score if the smallest is 0; None if unknown.
        """
        self._prior = prior
        self._most = most
        self._mean = -self._COST * prior.errors
        self._spread = prior.root(self._OWN, self._COMMON)
        size = 1 + len(prior.branches)
        self._found: NDArray[Any] = np.zeros(size)
        self._root: NDArray[Any] = np.eye(size)

    def fit(self, scores: Mapping[Arch, float]) -> None:
        """Learn from all subnets that were evaluated."""
        design = self._prior.of(list(scores))
        target = self._scaled(np.fromiter(scores.values(), float, len(scores)))
        level = np.full((len(design), 1), self._LEVEL)
        scaled = np.concatenate([level, design @ self._spread], axis=1)
        precision = scaled.T @ scaled / self._NOISE**2 + np.eye(scaled.shape[1])
        self._root = np.linalg.cholesky(precision)
        residual = target - design @ self._mean
        self._found = np.linalg.solve(precision, scaled.T @ residual / self._NOISE**2)

    def draw(self, rng: random.Random, scale: float = 1.0) -> dict[str, float]:
        """A draw of each branch's value from the posterior (Thompson, 1933)."""
        noise = np.array([rng.gauss(0.0, scale) for _ in self._found])
        drawn = (self._found + np.linalg.solve(self._root.T, noise))[1:]
        values = self._spread @ drawn + self._mean
        return dict(zip(self._prior.branches, values.tolist(), strict=True))

    def _scaled(self, scores: Matrix) -> Matrix:
        """Scores relative to the best: logits, or multiples of the better half's spread."""
        if self._most is not None:
            values = logits(np.clip(scores / self._most, 0.0, 1.0))
        else:
            values = scores / max(float(np.abs(scores).max()), 1e-300)
            values /= max(float(values[scores >= np.median(scores)].std()), 1e-9)
        return np.asarray(np.maximum(values - values.max(), -10.0))


class Prediction(NamedTuple):
    """Predicted accuracies of subnets.

    Attributes:
        accuracy: The expected share of samples on the right side, for each subnet.
        deviation: Its standard deviation, for the samples near the border.
        unknown: The margins' standard deviation, in units of the prior's.
    """

    accuracy: Matrix
    deviation: Matrix
    unknown: Matrix


class MarginModel:
    """Predicts the accuracy of a subnet sample by sample.

    Each sample's margin, its target's logit less the largest other, is modelled as a Gaussian
    process over subnets: a sum over branches, and a term that subnets with similar changes of the
    features share. The second term is necessary since the cost of a branch depends on the others:
    errors may cancel, and a sample that is lost by one branch can't be lost by another. So an
    evaluated subnet provides one number for each sample. Subnets that are about as good as the best
    that fits count most; of many, only these are fitted.
    """

    _COST = 2.0  # the expected cost of a unit of distortion, in typical margins
    _OWN, _COMMON = 0.2, 40.0  # of the sum over branches
    # The second term: its variance, and the square of its length scale in medians of the squared
    # distances between known subnets. With a sum alone, searches of 500 subnets missed the best in
    # 9 of 16 seeds; with both, all of 260 found it. `_NEAR` from 2 to 16 and `_TOGETHER` from 1 to
    # 10 did as well.
    _OWN_FAR, _COMMON_FAR = 1.0, 20.0
    _TOGETHER, _NEAR = 10.0, 16.0
    _NOISE = 0.012  # variance of the noise
    _LIMIT = 1.6  # margins are clipped to it
    _EDGE = 0.03  # the margin at which a side is fairly certain
    _MOST = 500  # subnets to fit: the time grows with their number's cube
    _AT_ONCE = 100  # subnets to predict at once, to bound the memory

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
            fits: Whether a subnet keeps the limits; the best of these decides the weights.
        """
        self._prior = prior
        self._sum_root = prior.root(self._OWN, self._COMMON)
        self._far_root = prior.root(self._OWN_FAR, self._COMMON_FAR)
        lengths = np.array([len(m) for m in margins.values()])
        right = np.zeros((len(margins), lengths.max()), bool)
        for row, found in zip(right, margins.values(), strict=True):
            row[: len(found)] = found > 0
        weights = _weights(right, lengths, np.array([fits(arch) for arch in margins]))
        # At least one subnet that was evaluated to its end.
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
        # All subnets were evaluated on the first samples.
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
        """An estimate of the memory to fit one, in bytes."""
        n = min(n_subnets, cls._MOST)
        return 8 * n * (5 * n + 3 * n_samples)

    def margins(self, archs: Sequence[Arch]) -> Matrix:
        """The expected margin of each sample, in typical ones: ``(subnets, samples)``."""
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
        """The accuracy of subnets that ended early: their samples, and the rest as predicted.

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
        """The probability of each sample that its margin is above 0."""
        chances: Matrix = 1 / (1 + np.exp(-np.clip(margins / self._EDGE, -50.0, 50.0)))
        return chances

    def _margins(self, design: Matrix) -> tuple[Matrix, Matrix]:
        """Subnets' expected margins, and their covariances with the known subnets."""
        covariance = self._covariance(design @ self._sum_root, design @ self._far_root)
        return covariance @ self._found + self._level + self._expected(design), covariance

    def _covariance(self, sums: Matrix, places: Matrix) -> Matrix:
        """The prior covariance of subnets with the known ones."""
        # In place, since the arrays have a number for each pair of subnets.
        found = _squares(places, self._places)
        found *= -0.5 / (self._NEAR * self._typical_square)
        np.exp(found, out=found)
        found *= self._TOGETHER
        found += sums @ self._sums.T
        return found

    def _expected(self, design: Matrix) -> Matrix:
        """The prior mean of subnets' margins, ``(subnets, 1)``."""
        expected: Matrix = -self._COST * (design @ self._prior.errors)[:, None]
        return expected


def _weights(
    right: NDArray[np.bool_], lengths: NDArray[np.int64], fits: NDArray[np.bool_]
) -> Matrix:
    """The weight of each subnet: by its accuracy, relative to the best of those that fit.

    On samples that a subnet was not evaluated on, it gets the mean accuracy of the others.
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
    """The median square of the distance between two subnets; 1 if there are not two."""
    squares = _squares(places, places)
    pairs = np.concatenate([squares[i, i + 1 :] for i in range(len(squares))])
    return float(np.median(pairs) if pairs.size else 1.0) or 1.0
