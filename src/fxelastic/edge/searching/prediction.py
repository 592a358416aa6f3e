"""Predict the scores of subnets from their branches' distortions and a few measured subnets."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fxelastic.edge.searching.distortion import Distortion
from fxelastic.edge.searching.surrogates import Matrix, Prior
from fxelastic.errors import UsageError
from fxelastic.spec import Arch

#: Subnets that the model needs at least, to say how wrong it is.
LEAST = 4
# Candidates, which count by the likelihood of the measured scores.
_COST = (0.15, 0.3, 0.6, 1.2, 2.4)  # the expected loss of a unit of distortion
_POWER = (1.0, 1.5, 2.0)
_FLOOR = (0.0, 1.0)  # how far the floor is below the lowest score, in ranges of the scores
_OWN = (0.05, 0.5)  # variance of a branch's loss, relative to the square of the cost
_COMMON = 0.3  # the same for the loss that branches with outputs of the same shapes share
_NOISE = (0.03, 0.12)  # what is not a sum over branches, as a share of the loss of score
_STEPS = 8
_UNLIKELY = 1e-3  # candidates that are less likely than this, relative to the best, are dropped
_TINY = 1e-9


class Expected(NamedTuple):
    """Predicted scores of subnets.

    Attributes:
        scores: The scores.
        bands: How far off they are with a probability of about 0.7.
    """

    scores: Matrix
    bands: Matrix


@dataclass(frozen=True)
class _Curve:
    """The score as a function of a subnet's loss: at most ``top``, falling towards ``floor``."""

    top: float
    floor: float
    power: float

    def score(self, loss: Matrix) -> Matrix:
        kept = np.exp(-(np.maximum(loss, 0.0) ** self.power))
        return np.asarray(self.floor + (self.top - self.floor) * kept)

    def slope(self, loss: Matrix) -> Matrix:
        # With powers above 1 the slope at 0 is 0, where a fit would learn nothing.
        x = np.maximum(loss, 0.02)
        return np.asarray(
            -(self.top - self.floor) * np.exp(-(x**self.power)) * self.power * x ** (self.power - 1)
        )


class _FittedCurve(NamedTuple):
    likelihood: float
    curve: _Curve
    noise: float
    root: Matrix
    mean: Matrix
    found: Matrix  # in units of the root
    unknown: Matrix  # the covariance of `found`
    left_out: Matrix  # each measured score, predicted from the others


class ScorePrediction:
    """A linear model: a subnet's loss is a sum over its branches, its score a curve of that.

    The prior of each branch's loss follows from its distortion, see `Prior`, so some thirty
    measured subnets suffice for spaces of a hundred branches. The curve is flat at the top: small
    errors change no answer. Each measured subnet is also predicted from the others, which gives
    the model's error.

    Attributes:
        distortion: Of the space's new branches.
        costs: The loss of each new branch, at least 0.
        median_error: The median of the absolute errors of subnets predicted from the others, in
            units of the score.
        rank_correlation: Spearman's correlation of these predictions with the measured scores.

    Source: DONNA (Moons and others, ICCV 2021), section 3.2, which fits a linear model to the
    errors of distilled blocks.
    """

    def __init__(
        self, distortion: Distortion, scores: Mapping[Arch, float], standard_error: float = 0.0
    ) -> None:
        """Fit.

        Args:
            distortion: Of the space's new branches.
            scores: Of the measured subnets, best with the original among them.
            standard_error: Of a measured score, from the number of samples.

        Raises:
            UsageError: There are too few measured subnets.
        """
        if len(scores) < LEAST:
            raise UsageError(
                "too few subnets were measured to predict others",
                expected=f"at least {LEAST}",
                got=str(len(scores)),
                fix="measure more subnets, or make more branches",
            )
        self.distortion = distortion
        self._prior = Prior(distortion)
        measured = np.fromiter(scores.values(), float, len(scores))
        self._sure = max(standard_error, 1e-3 * float(np.ptp(measured)), _TINY)
        design = self._prior.of(list(scores))
        root = self._prior.root(1.0, _COMMON)
        fits = [
            self._fitted(design, measured, _curve(measured, below, power), root, *others)
            for below, power, *others in itertools.product(_FLOOR, _POWER, _COST, _OWN, _NOISE)
        ]
        most = max(fit.likelihood for fit in fits)
        chances = [math.exp(fit.likelihood - most) for fit in fits]
        total = sum(chance for chance in chances if chance > _UNLIKELY)
        self._fits = [
            (chance / total, fit)
            for chance, fit in zip(chances, fits, strict=True)
            if chance > _UNLIKELY
        ]
        losses = sum(share * (fit.mean + fit.root @ fit.found) for share, fit in self._fits)
        values = np.maximum(losses, 0.0)
        self.costs = dict(zip(self._prior.branches, values.tolist(), strict=True))
        left_out = np.asarray(sum(share * fit.left_out for share, fit in self._fits))
        self.median_error = float(np.median(np.abs(left_out - measured)))
        self.rank_correlation = spearman(left_out, measured)

    def predict(self, archs: Sequence[Arch]) -> Expected:
        """The expected scores of subnets: means over the curves, by their likelihood."""
        design = self._prior.of(archs)
        parts = [self._predicted(fit, design) for _, fit in self._fits]
        shares = np.array([share for share, _ in self._fits])[:, None]
        scores, variances = (np.stack(part) for part in zip(*parts, strict=True))
        mean = (shares * scores).sum(axis=0)
        variance = (shares * (variances + (scores - mean) ** 2)).sum(axis=0)
        return Expected(mean, np.sqrt(variance))

    def _predicted(self, fit: _FittedCurve, design: Matrix) -> tuple[Matrix, Matrix]:
        """Scores by one curve, and their variances."""
        features = design @ fit.root
        loss = design @ fit.mean + features @ fit.found
        scores = fit.curve.score(loss)
        spread = np.maximum(((features @ fit.unknown) * features).sum(axis=1), 0.0)
        own = fit.noise * (fit.curve.top - scores) + self._sure
        return scores, spread * fit.curve.slope(loss) ** 2 + own**2

    @property
    def learned(self) -> Distortion:
        """The distortions as the measured subnets correct them, for the prior of a search."""
        unit = sum(self.costs.values()) / max(float(self._prior.errors.sum()), 1e-12)
        if not unit > 0:
            return self.distortion
        costs = np.array([self.costs[branch] for branch in self._prior.branches])
        least = 0.1 * self.distortion.errors
        errors = np.maximum(costs / unit, least)
        ratio = np.sqrt(errors / np.maximum(self.distortion.errors, 1e-12))
        products = self.distortion.products * np.outer(ratio, ratio)
        return replace(self.distortion, errors=errors, products=products)

    def _fitted(
        self,
        design: Matrix,
        measured: Matrix,
        curve: _Curve,
        root: Matrix,
        cost: float,
        own: float,
        noise: float,
    ) -> _FittedCurve:
        """The most likely losses, by Gauss-Newton steps, and the likelihood around them."""
        mean = cost * self._prior.errors
        root = cost * math.sqrt(own) * root
        expected, features = design @ mean, design @ root
        deviations = noise * (curve.top - measured) + self._sure
        found = np.zeros(root.shape[1])
        for _ in range(_STEPS):
            loss = expected + features @ found
            slope = curve.slope(loss)[:, None] * features
            target = measured - curve.score(loss) + slope @ found
            covariance = slope @ slope.T + np.diag(deviations**2)
            weights = np.linalg.solve(covariance, target)
            # Half a step where a whole one would overshoot the curve's bend.
            found = found + 0.5 * (slope.T @ weights - found)
        inverse = np.linalg.inv(covariance)
        _, size = np.linalg.slogdet(covariance)
        likelihood = -0.5 * float(target @ weights) - 0.5 * float(size)
        return _FittedCurve(
            likelihood,
            curve,
            noise,
            root,
            mean,
            found,
            np.eye(len(found)) - slope.T @ inverse @ slope,
            np.clip(measured - weights / np.diagonal(inverse), curve.floor, curve.top),
        )


def _curve(measured: Matrix, below: float, power: float) -> _Curve:
    top, low = float(measured.max()), float(measured.min())
    return _Curve(top, low - below * (top - low), power)


def spearman(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """The correlation of ranks; equal numbers share a rank. 0 if all numbers are equal."""
    ranks = [_ranks(values) for values in (one, other)]
    deviations = [r - r.mean() for r in ranks]
    size = math.sqrt(float(np.prod([d @ d for d in deviations])))
    return float(deviations[0] @ deviations[1]) / size if size else 0.0


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[places])
