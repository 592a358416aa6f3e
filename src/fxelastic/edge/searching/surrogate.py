"""What the distortion of branches, and the subnets evaluated so far, tell of the others.

Two models, of a subnet's score and of every sample's margin. Both are sums over branches with one
prior: a branch is expected to cost what its distortion says, and branches that err alike are
expected to differ from that alike. The constants were chosen on a trained supernet of a residual
network and checked on others; distortions are relative to the features' variance, scores are in
logits and margins in units of a typical one, so that they mean the same for other models.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxelastic.edge.searching.distortion import Distortion
from fxelastic.spec import Arch

Matrix = NDArray[np.float64]

#: Distortion that a branch has at least, as far as uncertainty goes; and at most.
_LEAST, _MOST = 1e-4, 4.0
_UNKNOWN = 1.0  # variance of the cost of a branch whose distortion is not known


class Prior:
    """Subnets as vectors of the new branches they have, and what is expected of these."""

    def __init__(self, distortion: Distortion) -> None:
        """Take the measurement.

        Args:
            distortion: Of the space's branches.
        """
        self.branches = distortion.branches
        # Beyond some error an output has nothing to do with the original's: more is no worse.
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
            own: Variance of a branch's cost for each unit of its distortion; branches whose
                differences have a product in common share it.
            common: Variance of the cost of a unit of distortion, as all branches of a group share.
        """
        given = self._distortion
        least = np.maximum(0.02 * self.errors, _LEAST)
        covariance = own * (self._products + np.diag(least)) + np.diag(_UNKNOWN * given.unknown)
        for group in range(int(given.groups.max(initial=-1)) + 1):
            errors = np.where(given.groups == group, self.errors, 0.0)
            covariance += common * np.outer(errors, errors)
        root: Matrix = np.linalg.cholesky(covariance)
        return root


class ScoreModel:
    """A Bayesian linear model: the score's logit is a sum over branches."""

    _COST = 2.5  # logits that a unit of distortion is expected to cost
    _OWN, _COMMON = 0.1, 1.0
    _LEVEL = 3.0  # standard deviation of the score before anything is known, in logits
    _NOISE = 0.3  # of what is no sum over branches

    def __init__(self, prior: Prior, most: float | None) -> None:
        """Know nothing but the prior.

        Args:
            prior: Of the branches.
            most: The largest score where the smallest is 0; None where that is not known.
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
        """What each branch may add, by chance in the light of what is known (Thompson, 1933)."""
        noise = np.array([rng.gauss(0.0, scale) for _ in self._found])
        drawn = (self._found + np.linalg.solve(self._root.T, noise))[1:]
        values = self._spread @ drawn + self._mean
        return dict(zip(self._prior.branches, values.tolist(), strict=True))

    def _scaled(self, scores: Matrix) -> Matrix:
        """Scores relative to the best: logits, or multiples of the better half's spread."""
        if self._most is not None:
            values = _logits(np.clip(scores / self._most, 0.0, 1.0))
        else:
            better = scores[scores >= np.median(scores)]
            values = scores / max(float(better.std()), 1e-9)
        return np.asarray(np.maximum(values - values.max(), -10.0))


class MarginModel:
    """Predicts the accuracy of a subnet sample by sample.

    Each sample's margin, its target's logit less the largest other, is taken for a sum over
    branches. So an evaluated subnet tells as many numbers as there are samples, not one; what is
    predicted is which samples change sides. Subnets that are nearly as good as the best count most.
    """

    _COST = 2.0  # typical margins that a unit of distortion is expected to cost
    _OWN, _COMMON = 0.2, 40.0
    _NOISE = 0.012  # variance of what is no sum over branches
    _LIMIT = 1.6  # margins beyond it are no surer
    _EDGE = 0.2  # margin from which a side is fairly sure

    def __init__(self, prior: Prior, margins: Mapping[Arch, NDArray[np.float32]]) -> None:
        """Fit.

        Args:
            prior: Of the branches.
            margins: Of each subnet for the same samples in the same order; fewer for those that
                ended early.
        """
        self._prior = prior
        self._spread = prior.root(self._OWN, self._COMMON)
        lengths = np.array([len(m) for m in margins.values()])
        values = np.zeros((len(margins), lengths.max()))
        for row, found in zip(values, margins.values(), strict=True):
            row[: len(found)] = found
        weights = _weights(values, lengths)
        self._unit = _typical(values[weights.argmax(), : lengths[weights.argmax()]])
        values = np.clip(values / self._unit, -self._LIMIT, self._LIMIT)
        design = prior.of(list(margins))
        values -= (design @ self._cost)[:, None]
        design = design @ self._spread
        # Samples that the same subnets were evaluated on are fitted together.
        ends = np.unique(lengths).tolist()
        fits = []
        for start, end in zip([0, *ends], ends, strict=False):
            seen = lengths >= end
            fit = _ridge(design[seen], values[seen, start:end], weights[seen] / self._NOISE)
            fits.append(fit)
        self._level = np.concatenate([level for level, _, _ in fits])
        self._found = np.concatenate([found for _, found, _ in fits], axis=1)
        # The first samples are those that all subnets were evaluated on.
        self._precision = fits[0][2]

    @property
    def _cost(self) -> Matrix:
        cost: Matrix = -self._COST * self._prior.errors
        return cost

    def margins(self, archs: Sequence[Arch]) -> Matrix:
        """What is expected of each sample's margin, in typical ones: ``(subnets, samples)``."""
        design = self._prior.of(archs)
        expected: Matrix = (
            design @ (self._spread @ self._found) + self._level + (design @ self._cost)[:, None]
        )
        return expected

    def predict(self, archs: Sequence[Arch]) -> tuple[Matrix, Matrix]:
        """The accuracy of each subnet, and how little is known of it.

        Returns:
            Two arrays: the share of samples on the right side, with a tenth of how far they are
            from the border; and a standard deviation in units of that of nothing known.
        """
        margins = self.margins(archs)
        accuracy = (margins > 0).mean(axis=1) + 0.1 * np.tanh(margins / self._EDGE).mean(axis=1)
        design = self._prior.of(archs) @ self._spread
        known = np.linalg.solve(self._precision, design.T)
        nothing = np.maximum((design * design).sum(axis=1), 1e-12)
        return accuracy, np.sqrt((design * known.T).sum(axis=1) / nothing)

    def completed(self, margins: Mapping[Arch, NDArray[np.float32]]) -> dict[Arch, float]:
        """The accuracy of subnets that ended early: what they had, and the rest as expected.

        Args:
            margins: Of each subnet, for the first samples.
        """
        if not margins:
            return {}
        found = {}
        for (arch, seen), expected in zip(
            margins.items(), self.margins(list(margins)), strict=True
        ):
            rest = 1 / (1 + np.exp(-expected[len(seen) :] / (0.5 * self._EDGE)))
            found[arch] = float(((seen > 0).sum() + rest.sum()) / len(expected))
        return found


def _weights(values: Matrix, lengths: NDArray[np.int64]) -> Matrix:
    """How much each subnet counts: by its accuracy, relative to the best.

    On samples that a subnet was not evaluated on it is taken for as good as the others.
    """
    n = values.shape[1]
    seen = np.arange(n) < lengths[:, None]
    right = (values > 0) & seen
    share = right.sum(axis=0) / seen.sum(axis=0)
    logits = _logits((right + ~seen * share).mean(axis=1))
    weights: Matrix = np.exp(np.maximum(logits - logits.max(), -4.0))
    return weights


def _logits(shares: Matrix) -> Matrix:
    found: Matrix = np.log((shares + 0.002) / (1.002 - shares))
    return found


def _typical(margins: Matrix) -> float:
    return float(np.median(np.abs(margins))) or 1.0


def _ridge(design: Matrix, values: Matrix, weights: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """Weighted ridge regression: the level, the coefficients, and their precision."""
    level = weights @ values / weights.sum()
    weighted = (design * weights[:, None]).T
    precision = weighted @ design + np.eye(design.shape[1])
    return level, np.linalg.solve(precision, weighted @ (values - level)), precision
