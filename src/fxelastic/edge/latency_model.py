"""Predict the latency of whole subnets from the latencies of branches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fxelastic.edge.stopwatch import LEAST_NOISE
from fxelastic.spec import Arch, SearchSpace
from fxelastic.spec.branch_latency import BranchLatency
from fxelastic.spec.costs import BranchCosts, ModelError
from fxelastic.spec.quantised import INT8

#: The expected size of a branch's own correction, as a share of its time.
_BRANCH_SPREAD = 0.05
#: The expected size of the common corrections: of the scale of times, and of each other term,
#: summed over a typical subnet's branches, as a share of that subnet's time.
_SCALE_SPREAD, _TERM_SPREAD = 0.5, 0.3
#: The least cost of a branch, as a share of its time, for branches with and without operations: a
#: skip, for example, costs a call when run alone and nothing inside one model. And the largest
#: share of the quickest subnet's cost that a negative constant may cancel.
_LEAST, _LEAST_IDLE, _MOST_SAVED = 0.05, 0.001, 0.7
#: The least cost of a branch, as a share of the time of its work at the best rate of any branch.
_BOUND = 0.5
_ROUNDS = 20  # iterations to raise costs below the least
#: A subnet whose residual exceeds its noise by this factor was disturbed, and gets less weight.
_OUTLIER = 2.5


@dataclass(frozen=True)
class Measured:
    """A measured subnet.

    Attributes:
        arch: The subnet.
        ms: Its latency, in ms.
        noise: The standard error of the latency, as a share of it.
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
    *,
    negative_overhead: bool = True,
) -> BranchCosts:
    """Fit the costs of branches to measured subnets.

    The model of a subnet's latency is
    ``a + Σ_b (s·t_b + c + c'·[computes] + d·bytes_b + e·flops_b + u_b·t_b)``: a constant, and for
    each branch its scaled time ``t_b``, a common cost, a cost if it computes, costs of the bytes
    that it reads and writes and of its operations, and its own correction. These terms model the
    calls, copies and changes of layout that one assembled model saves. All are expected to be
    small: the fit is least squares with a Gaussian prior around the plain sum, so few subnets
    suffice, and branches that occur in no measured subnet are corrected too.

    Each branch costs at least a share of its time and at least its `work_bounds`: costs below that
    are raised to it, and the others are solved for again. Subnets whose residual is large relative
    to their noise were disturbed: they get less weight, and the fit is repeated.

    Under load, measurements may lead to a constant so negative that the quickest subnet would take
    almost no time, or some subnet less than its branches' bounds; the constant is then set to 0.

    Args:
        space: The search space.
        rows: The measurements of each branch.
        fitted: Subnets to fit to; if empty, the model is the plain sum.
        held_out: Subnets to compute the error on.
        original: The original, with measurements that alternate with those of the other subnets.
            The fit includes it, and errors are of latencies relative to the original's. None for
            errors of absolute latencies.
        negative_overhead: Whether the constant may be negative.

    Returns:
        The costs in ms, above 0 for each branch whose time is above 0, with the error.
    """
    if fitted and original is not None:
        fitted = (original, *fitted)
    bounds = work_bounds(space, rows, fitted)
    model = _fit(space, rows, fitted, bounds, _TERM_SPREAD)
    slack = {name: cost - bounds[name] for name, cost in model.costs.items()}
    most_saved = 0.0
    if negative_overhead:
        most_saved = min(
            _MOST_SAVED * space.cost(space.min_cost_arch(model.costs), model.costs),
            space.cost(space.min_cost_arch(slack), slack),
        )
    if model.overhead < -most_saved:
        model = _fit(space, rows, fitted, bounds, 0.0)
    if held_out:
        model = replace(model, error=model_error(model, held_out, original))
    return model


def work_bounds(
    space: SearchSpace, rows: Mapping[str, BranchLatency], measured: Sequence[Measured] = ()
) -> dict[str, float]:
    """A lower bound on the latency of each branch inside a subnet, in ms.

    The bound is half of the time that its operations or its bytes take at the highest rate of any
    branch in the table, or at the median rate of measured subnets if that is higher; 0 for branches
    without operations, which may vanish inside one model. In a small network, most of a branch's
    own time is the call, so whole subnets have much higher rates.

    Args:
        space: The search space.
        rows: The measurements of each branch.
        measured: The measured subnets.
    """
    flops = {name: float(space.by_id[name].flops) for name in rows}
    n_bytes = {name: float(row.weight_bytes + row.activation_bytes) for name, row in rows.items()}
    rates = []
    for work in (flops, n_bytes):
        alone = [work[name] / row.ms for name, row in rows.items() if row.ms > 0]
        # A measurement may be wrong by any factor, in either direction.
        inside = [sum(work[name] for name in m.arch) / m.ms for m in measured if m.ms > 0]
        rates.append(max((*alone, float(np.median(inside)) if inside else 0.0), default=0.0))
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
        original: The original, to compare latencies relative to it; None to compare latencies.
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
    """Fit the model; ``constant`` is the constant's prior scale as a share of a subnet's time."""
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
    """The constant and the branches' costs, which are at least ``least``."""
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
        # Clip the terms to the range of the measured branches: corrections are not extrapolated.
        seen = self._counts.any(axis=0)
        flops, n_bytes = (np.minimum(x, x[seen].max(initial=0.0)) for x in (flops, n_bytes))
        works = (times > 0.02 * times.max()).astype(float)
        # Files exchange float values, so branch by branch an 8-bit branch converts them, and a
        # float branch doesn't; inside one model it is often the other way round.
        eight = np.array([space.by_id[name].kind == INT8 for name in names], float)
        own = [n_bytes * eight] if eight.any() else []
        terms = np.stack([works, (flops > 0).astype(float), n_bytes, flops, *own], axis=1)
        # Coefficients are scaled so that each has a prior of variance 1 around 0.
        typical = float(np.mean(self._counts @ times)) or 1.0
        sums = np.maximum((self._counts @ terms).mean(axis=0), 1e-9)
        self._constant = constant * typical
        scales = [times, times * eight] if eight.any() else [times]
        self._terms = np.concatenate(
            [_SCALE_SPREAD * np.stack(scales, axis=1), _TERM_SPREAD * typical / sums * terms],
            axis=1,
        )

    def weigh_down_outliers(self, overhead: float, costs: np.ndarray) -> bool:
        """Reduce the weight of subnets with large residuals; returns whether there are any."""
        off = np.abs(overhead + self._counts @ costs - self._actual) / self._actual
        # If times do not add up, all residuals exceed the noise.
        allowed = _OUTLIER * np.maximum(self._noise, np.median(off))
        self._noise = self._noise * np.maximum(1.0, off / allowed) ** 2
        return bool((off > allowed).any())

    def solve(self, given: np.ndarray) -> tuple[float, np.ndarray]:
        """The constant, and the branches' costs.

        Args:
            given: The known costs; NaN for the unknown ones.
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
