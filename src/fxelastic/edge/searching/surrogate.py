"""What the subnets evaluated so far tell of the others."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxelastic.spec import Arch, SearchSpace

_PRIOR_LEVEL = 3.0  # standard deviation of a subnet's score before anything is known, in logits
_KIND, _BRANCH = 0.5, 0.5  # of what a kind of branch and a single branch change
_NOISE = 0.3  # of what is no sum over branches
_LOST = 0.4  # logits that a branch is expected to cost if it has a factor e fewer FLOPs
_MOST_LOST = 3.0
_MARGIN_BRANCH = 2.0  # of what a branch changes in a sample's margin
_MARGIN_LIMIT = 8.0


class Features:
    """Subnets as vectors: 1, the number of branches of each kind, each new branch."""

    def __init__(self, space: SearchSpace) -> None:
        """Number the branches.

        Args:
            space: The subnets.
        """
        self.new = [spec for spec in space.branches if spec.kind != "original"]
        kinds = sorted({spec.kind for spec in self.new})
        self._kind = {kind: 1 + i for i, kind in enumerate(kinds)}
        self._first = 1 + len(kinds)
        self._place = {spec.id: self._first + i for i, spec in enumerate(self.new)}
        self._by_id = {spec.id: spec for spec in self.new}
        self.size = self._first + len(self.new)

    def of(self, archs: Sequence[Arch]) -> NDArray[np.float64]:
        """An array ``(subnets, size)``."""
        found = np.zeros((len(archs), self.size))
        found[:, 0] = 1.0
        for row, arch in zip(found, archs, strict=True):
            for branch in arch:
                if branch in self._place:
                    row[self._place[branch]] = 1.0
                    row[self._kind[self._by_id[branch].kind]] += 1.0
        return found

    def spread(self, kind: float, branch: float) -> NDArray[np.float64]:
        """Prior standard deviations of the coefficients."""
        kinds = [kind] * (self._first - 1)
        return np.array([_PRIOR_LEVEL, *kinds, *[branch] * len(self.new)])

    def by_branch(self, coefficients: NDArray[np.float64]) -> dict[str, float]:
        """What each new branch adds, with its kind's part."""
        return {
            spec.id: float(coefficients[self._kind[spec.kind]] + coefficients[self._place[spec.id]])
            for spec in self.new
        }


class ScoreModel:
    """A Bayesian linear model: the score's logit is a sum over branches.

    Before anything is known a branch is expected to cost accuracy by how many FLOPs it saves:
    the logarithm of the ratio. What is learned of a branch tells of the others of its kind.
    """

    def __init__(self, space: SearchSpace, features: Features, most: float | None) -> None:
        """Know nothing yet.

        Args:
            space: The subnets.
            features: Of the same space.
            most: The largest score where the smallest is 0; None where that is not known.
        """
        self._features = features
        self._most = most
        self._spread = features.spread(_KIND, _BRANCH)
        lost = _flops_lost(space)
        self._mean = np.zeros(features.size)
        self._mean[features.size - len(features.new) :] = [
            -_LOST * lost[spec.id] for spec in features.new
        ]
        self._found: NDArray[Any] = np.zeros(features.size)
        self._root: NDArray[Any] = np.eye(features.size)

    def fit(self, scores: Mapping[Arch, float]) -> None:
        """Learn from all subnets that were evaluated."""
        design = self._features.of(list(scores))
        target = self._scaled(np.fromiter(scores.values(), float, len(scores)))
        scaled = design * self._spread
        precision = scaled.T @ scaled / _NOISE**2 + np.eye(len(self._spread))
        self._root = np.linalg.cholesky(precision)
        residual = target - design @ self._mean
        self._found = np.linalg.solve(precision, scaled.T @ residual / _NOISE**2)

    def draw(self, rng: random.Random, scale: float = 1.0) -> dict[str, float]:
        """What each branch may add, by chance in the light of what is known (Thompson, 1933)."""
        noise = np.array([rng.gauss(0.0, scale) for _ in self._found])
        drawn = self._found + np.linalg.solve(self._root.T, noise)
        return self._features.by_branch(drawn * self._spread + self._mean)

    def _scaled(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores relative to the best: logits, or multiples of the better half's spread."""
        if self._most is not None:
            share = np.clip(scores / self._most, 0.0, 1.0)
            values = np.log((share + 0.002) / (1.002 - share))
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

    def __init__(self, features: Features, margins: Mapping[Arch, NDArray[np.float32]]) -> None:
        """Fit.

        Args:
            features: Of the space.
            margins: Of each subnet for the same samples in the same order; fewer for those that
                ended early.
        """
        self._features = features
        self._spread = features.spread(1.0, _MARGIN_BRANCH)
        design = features.of(list(margins)) * self._spread
        lengths = np.array([len(m) for m in margins.values()])
        values = np.zeros((len(margins), lengths.max()))
        for row, found in zip(values, margins.values(), strict=True):
            row[: len(found)] = np.clip(found, -_MARGIN_LIMIT, _MARGIN_LIMIT)
        weights = _weights(values, lengths)
        # Samples that the same subnets were evaluated on are fitted together.
        ends = np.unique(lengths).tolist()
        fits = [
            _ridge(
                *(part[lengths >= end] for part in (design, values[:, start:end], weights)),
            )
            for start, end in zip([0, *ends], ends, strict=False)
        ]
        self._level = np.concatenate([level for level, _, _ in fits])
        self._found = np.concatenate([found for _, found, _ in fits], axis=1)
        # The first samples are those that all subnets were evaluated on.
        self._precision = fits[0][2]

    def predict(self, archs: Sequence[Arch]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The accuracy of each subnet, and how little is known of it.

        Returns:
            Two arrays: the share of samples on the right side, with a tenth of how far they are
            from the border; and a standard deviation in units of that of nothing known.
        """
        design = self._features.of(archs) * self._spread
        margins = design @ self._found + self._level
        accuracy = (margins > 0).mean(axis=1) + 0.1 * np.tanh(margins).mean(axis=1)
        known = np.linalg.solve(self._precision, design.T)
        return accuracy, np.sqrt((design * known.T).sum(axis=1))


def _weights(values: NDArray[np.float64], lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """How much each subnet counts: by its accuracy, relative to the best.

    On samples that a subnet was not evaluated on it is taken for as good as the others.
    """
    n = values.shape[1]
    seen = np.arange(n) < lengths[:, None]
    right = (values > 0) & seen
    share = right.sum(axis=0) / seen.sum(axis=0)
    accuracy = (right + ~seen * share).mean(axis=1)
    logits = np.log((accuracy + 0.002) / (1.002 - accuracy))
    weights: NDArray[np.float64] = np.exp(np.maximum(logits - logits.max(), -4.0))
    return weights


def _ridge(
    design: NDArray[np.float64], values: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Weighted ridge regression: the level, the coefficients, and their precision."""
    level = weights @ values / weights.sum()
    weighted = (design * weights[:, None]).T
    precision = weighted @ design + np.eye(design.shape[1])
    return level, np.linalg.solve(precision, weighted @ (values - level)), precision


def _flops_lost(space: SearchSpace) -> dict[str, float]:
    """The logarithm of how many times fewer FLOPs a branch has than what it replaces."""
    originals = space.specs(space.original)
    found = {}
    for spec in space.branches:
        replaced = sum(o.flops for o in originals if spec.start <= o.start and o.stop <= spec.stop)
        found[spec.id] = min(_MOST_LOST, max(0.0, math.log((replaced + 1) / (spec.flops + 1))))
    return found
