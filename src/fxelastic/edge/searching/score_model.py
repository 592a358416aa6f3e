"""What a subnet may score, as a sum over its branches."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxelastic.edge.searching.prior import Matrix, Prior, logits
from fxelastic.spec import Arch


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
            values = logits(np.clip(scores / self._most, 0.0, 1.0))
        else:
            values = scores / max(float(np.abs(scores).max()), 1e-300)
            values /= max(float(values[scores >= np.median(scores)].std()), 1e-9)
        return np.asarray(np.maximum(values - values.max(), -10.0))
