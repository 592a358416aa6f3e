"""From what branches take to what whole subnets take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fxelastic.spec import Arch, SearchSpace
from fxelastic.spec.latency_table import BranchLatency, ModeLatency, ModelError

#: How far a branch's own correction is expected to go, as a share of its time.
_BRANCH_SPREAD = 0.15
#: How exact the measurement of a subnet is, as a share of its time.
_NOISE = 0.01
#: How far the common corrections are expected to go: of the times' scale, and of each other term
#: as a share of the original's time, summed over all its branches.
_SCALE_SPREAD, _TERM_SPREAD = 0.5, 0.3
#: The least that a branch costs, as a share of its time; and how much of the quickest subnet's
#: branches a negative constant may take away.
_LEAST, _MOST_SAVED = 0.05, 0.7


@dataclass(frozen=True)
class Measured:
    """A subnet with what it took.

    Attributes:
        arch: The subnet.
        ms: Its latency, in ms.
    """

    arch: Arch
    ms: float


def fit_mode(
    space: SearchSpace,
    rows: Mapping[str, BranchLatency],
    fitted: Sequence[Measured],
    held_out: Sequence[Measured] = (),
) -> ModeLatency:
    """Correct the sum of branches by measured subnets.

    A subnet takes ``a + Σ_b (s·t_b + c + d·bytes_b + u_b·t_b)``: the branches' own times ``t_b``
    scaled; a cost for each branch and for what it reads and gives, as one model saves copies and
    changes of layout between branches; a constant; and a correction of each branch by itself. All
    are expected to be small: least squares with a Gaussian prior around the plain sum, so that few
    subnets suffice and a branch that none of them has keeps its measured time. The result is
    additive by branch. Measurements under a load may give a constant so far below 0 that the
    quickest subnet would take next to nothing, or less: then there is none.

    Args:
        space: The subnets.
        rows: What was measured of each branch.
        fitted: Subnets to fit to; with none, the plain sum is the model.
        held_out: Subnets to tell the error on.

    Returns:
        The costs, above 0 where the branch's time is, and the error.
    """
    model = _fit(rows, fitted, _TERM_SPREAD)
    least = space.cost(space.min_cost_arch(model.costs), model.costs)
    if model.overhead_ms < -_MOST_SAVED * least:
        model = _fit(rows, fitted, 0.0)
    if held_out:
        model = ModeLatency(model.overhead_ms, model.costs, model_error(model, held_out))
    return model


def model_error(model: ModeLatency, measured: Sequence[Measured]) -> ModelError:
    """How far a model is from subnets that were measured."""
    errors = [abs(_predict(model, m.arch) - m.ms) / m.ms for m in measured]
    return ModelError(float(np.median(errors)), float(np.percentile(errors, 90)), len(errors))


def _predict(model: ModeLatency, arch: Arch) -> float:
    return model.overhead_ms + sum(model.costs[branch] for branch in arch)


def _fit(
    rows: Mapping[str, BranchLatency], fitted: Sequence[Measured], constant: float
) -> ModeLatency:
    """Fit with a prior of the constant, as a share of a subnet's time; with 0 it is 0."""
    names = list(rows)
    times = np.array([rows[name].ms for name in names])
    corrections = np.zeros(len(names))
    overhead = 0.0
    if fitted:
        overhead, corrections = _solve(rows, names, times, fitted, constant)
    costs = np.maximum(times + corrections, _LEAST * times)
    return ModeLatency(overhead, dict(zip(names, map(float, costs), strict=True)))


def _solve(
    rows: Mapping[str, BranchLatency],
    names: list[str],
    times: np.ndarray,
    fitted: Sequence[Measured],
    constant: float,
) -> tuple[float, np.ndarray]:
    place = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(fitted), len(names)))
    for i, measured in enumerate(fitted):
        for branch in measured.arch:
            counts[i, place[branch]] += 1
    actual = np.array([m.ms for m in fitted])
    n_bytes = np.array([rows[name].activation_bytes for name in names], float)
    works = (times > 0.02 * times.max()).astype(float)
    typical = float(np.mean(counts @ times)) or 1.0
    terms = np.stack([times, works, n_bytes], axis=1)  # what s, c and d multiply
    sums = counts @ terms
    scales = np.array(
        [
            _SCALE_SPREAD,
            _TERM_SPREAD * typical / max(float(sums[:, 1].mean()), 1e-9),
            _TERM_SPREAD * typical / max(float(sums[:, 2].mean()), 1e-9),
        ]
    )
    # Columns scaled so that every coefficient has a prior of variance 1 around 0.
    columns = [
        np.full((len(fitted), 1), constant * typical),
        sums * scales,
        counts * (_BRANCH_SPREAD * times),
    ]
    design = np.concatenate(columns, axis=1) / (_NOISE * actual)[:, None]
    target = (actual - counts @ times) / (_NOISE * actual)
    gram = design @ design.T + np.eye(len(fitted))
    weights = design.T @ np.linalg.solve(gram, target)
    corrections = terms @ (weights[1:4] * scales) + _BRANCH_SPREAD * times * weights[4:]
    return float(constant * typical * weights[0]), corrections
