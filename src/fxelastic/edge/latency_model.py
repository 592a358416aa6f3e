"""Predict the latency of whole subnets from the latencies of branches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fxelastic.edge.stopwatch import LEAST_NOISE
from fxelastic.spec import Arch, SearchSpace
from fxelastic.spec.costs import BranchCosts, ModelError
from fxelastic.spec.latency_table import BranchLatency

#: The expected size of a branch's own correction, as a share of its time.
_BRANCH_SPREAD = 0.05
#: The expected size of the common corrections: of the times' scale, and of each other term as a
#: share of the original's time, summed over all its branches.
_SCALE_SPREAD, _TERM_SPREAD = 0.5, 0.3
#: The least cost of a branch, as a share of its time: a branch without operations, such as a skip,
#: takes a call when run by itself and nothing inside one model. And the most that a negative
#: constant may take off the quickest subnet's branches.
_LEAST, _LEAST_IDLE, _MOST_SAVED = 0.05, 0.001, 0.7
#: The least cost of a branch, as a share of the time of its work at the best rate of any branch.
_BOUND = 0.5
_ROUNDS = 20  # in which costs below the least are found
#: A subnet that is off the fit by this many times its noise was disturbed, and counts less.
_OUTLIER = 2.5


@dataclass(frozen=True)
class Measured:
    """A measured subnet.

    Attributes:
        arch: The subnet.
        ms: Its latency, in ms.
        noise: The standard error of that, as a share of it.
    """

    arch: Arch
    ms: float
    noise: float = LEAST_NOISE


def fit_mode(
    space: SearchSpace,
    rows: Mapping[str, BranchLatency],
    fitted: Sequence[Measured],
    held_out: Sequence[Measured] = (),
    original: Measured | None = None,
) -> BranchCosts:
    """Correct the sum of branches by measured subnets.

    A subnet takes ``a + Σ_b (s·t_b + c + c'·[computes] + d·bytes_b + e·flops_b + u_b·t_b)``: the
    branches' own times ``t_b`` scaled; a cost for each branch, for each that computes, for the
    bytes that it reads and writes and for its operations, as one model saves calls, copies and
    changes of layout between branches; a constant; and a correction of each branch by itself. All
    are expected to be small: least squares with a Gaussian prior around the plain sum, so that few
    subnets suffice. A
    branch that no measured subnet has is corrected like the others. Each branch costs a share of
    its time at least, and at least its `work_bounds`; branches below that are set to it, and the
    others are solved for again. Subnets that are far off the fit, relative to their noise, were
    disturbed: they count less, and the fit is repeated. The result is additive by branch.
    Measurements under a load may lead to a constant so far below 0 that the quickest subnet would
    take almost no time, or a subnet less than its branches' bounds: then the constant is 0.

    Args:
        space: The subnets.
        rows: The measurements of each branch.
        fitted: Subnets to fit to; without any, the plain sum is the model.
        held_out: Subnets to compute the error on.
        original: The original, timed in turns with the others. It is fitted to as well, and errors
            are of shares of its latency; without it they are of latencies.

    Returns:
        The costs, above 0 where the branch's time is above 0, and the error.
    """
    bounds = work_bounds(space, rows)
    if fitted and original is not None:
        fitted = (original, *fitted)
    model = _fit(space, rows, fitted, bounds, _TERM_SPREAD)
    slack = {name: cost - bounds[name] for name, cost in model.costs.items()}
    most_saved = min(
        _MOST_SAVED * space.cost(space.min_cost_arch(model.costs), model.costs),
        space.cost(space.min_cost_arch(slack), slack),
    )
    if model.overhead < -most_saved:
        model = _fit(space, rows, fitted, bounds, 0.0)
    if held_out:
        model = replace(model, error=model_error(model, held_out, original))
    return model


def work_bounds(space: SearchSpace, rows: Mapping[str, BranchLatency]) -> dict[str, float]:
    """A lower bound on what each branch takes inside a subnet, in ms.

    Half of the time of its operations or its bytes at the highest rate of any branch in the table;
    0 for branches without operations, which may vanish inside one model.
    """
    flops = {name: float(space.by_id[name].flops) for name in rows}
    n_bytes = {name: float(row.weight_bytes + row.activation_bytes) for name, row in rows.items()}
    rates = [
        max((work[name] / row.ms for name, row in rows.items() if row.ms > 0), default=0.0)
        for work in (flops, n_bytes)
    ]
    return {
        name: _BOUND
        * max(
            work[name] / rate if rate > 0 and flops[name] else 0.0
            for work, rate in zip((flops, n_bytes), rates, strict=True)
        )
        for name in rows
    }


def model_error(
    model: BranchCosts, measured: Sequence[Measured], original: Measured | None = None
) -> ModelError:
    """The error of a model on measured subnets.

    Args:
        model: The model.
        measured: The subnets.
        original: The original, to compare shares of its latency; None to compare latencies.
    """
    scale = 1.0 if original is None else original.ms / _predict(model, original.arch)
    errors = [abs(scale * _predict(model, m.arch) - m.ms) / m.ms for m in measured]
    return ModelError(float(np.median(errors)), float(np.percentile(errors, 90)), len(errors))


def _predict(model: BranchCosts, arch: Arch) -> float:
    return model.overhead + sum(model.costs[branch] for branch in arch)


def _fit(
    space: SearchSpace,
    rows: Mapping[str, BranchLatency],
    fitted: Sequence[Measured],
    bounds: Mapping[str, float],
    constant: float,
) -> BranchCosts:
    """Fit with a prior of the constant, as a share of a subnet's time; 0 for no constant."""
    names = list(rows)
    costs = np.array([rows[name].ms for name in names])
    overhead = 0.0
    if fitted:
        idle = np.array([not space.by_id[name].flops for name in names])
        least = np.where(idle, _LEAST_IDLE, _LEAST) * costs
        least = np.maximum(least, [bounds[name] for name in names])
        problem = _Problem(space, rows, names, fitted, constant)
        overhead, costs = _solve(problem, least)
        if problem.weigh_down_outliers(overhead, costs):
            overhead, costs = _solve(problem, least)
    return BranchCosts(dict(zip(names, map(float, costs), strict=True)), overhead)


def _solve(problem: _Problem, least: np.ndarray) -> tuple[float, np.ndarray]:
    """The constant and the branches' costs, none below the least."""
    overhead, costs = 0.0, least
    at_least = np.zeros(len(least), bool)
    for _ in range(_ROUNDS):
        overhead, costs = problem.solve(np.where(at_least, least, np.nan))
        below = costs < least
        if not below.any():
            break
        at_least |= below
    return overhead, np.maximum(costs, least)


class _Problem:
    """Finds corrections of the branches' times that explain the measured subnets."""

    def __init__(
        self,
        space: SearchSpace,
        rows: Mapping[str, BranchLatency],
        names: Sequence[str],
        fitted: Sequence[Measured],
        constant: float,
    ) -> None:
        place = {name: i for i, name in enumerate(names)}
        self._counts = np.zeros((len(fitted), len(names)))
        for i, measured in enumerate(fitted):
            for branch in measured.arch:
                self._counts[i, place[branch]] += 1
        self._actual = np.array([m.ms for m in fitted])
        self._noise = np.array([m.noise for m in fitted])
        self._times = times = np.array([rows[name].ms for name in names])
        flops = np.array([space.by_id[name].flops for name in names], float)
        n_bytes = np.array([rows[name].activation_bytes for name in names], float)
        # No branch is corrected by more than the measured ones: corrections are not extrapolated.
        seen = self._counts.any(axis=0)
        flops, n_bytes = (np.minimum(x, x[seen].max(initial=0.0)) for x in (flops, n_bytes))
        works = (times > 0.02 * times.max()).astype(float)
        terms = np.stack([works, (flops > 0).astype(float), n_bytes, flops], axis=1)
        # Coefficients are scaled so that each has a prior of variance 1 around 0.
        typical = float(np.mean(self._counts @ times)) or 1.0
        sums = np.maximum((self._counts @ terms).mean(axis=0), 1e-9)
        self._constant = constant * typical
        self._terms = np.concatenate(
            [_SCALE_SPREAD * times[:, None], _TERM_SPREAD * typical / sums * terms], axis=1
        )

    def weigh_down_outliers(self, overhead: float, costs: np.ndarray) -> bool:
        """Reduce the weight of subnets that are far off a fit; returns whether there are any."""
        off = np.abs(overhead + self._counts @ costs - self._actual) / self._actual
        # Where times do not add up, the fit is off by more than the noise everywhere.
        allowed = _OUTLIER * np.maximum(self._noise, np.median(off))
        self._noise = self._noise * np.maximum(1.0, off / allowed) ** 2
        return bool((off > allowed).any())

    def solve(self, given: np.ndarray) -> tuple[float, np.ndarray]:
        """The constant, and the branches' costs.

        Args:
            given: The known costs, NaN for those to be found.
        """
        free = np.isnan(given)
        weight = 1 / (self._noise * self._actual)
        counts = self._counts * free
        columns = [
            np.full((len(counts), 1), self._constant),
            counts @ self._terms,
            counts * (_BRANCH_SPREAD * self._times),
        ]
        design = np.concatenate(columns, axis=1) * weight[:, None]
        target = self._actual - self._counts @ np.where(free, self._times, given)
        gram = design @ design.T + np.eye(len(counts))
        found = design.T @ np.linalg.solve(gram, weight * target)
        n_common = 1 + self._terms.shape[1]
        corrections = self._terms @ found[1:n_common]
        corrections += _BRANCH_SPREAD * self._times * found[n_common:]
        return float(self._constant * found[0]), np.where(free, self._times + corrections, given)
