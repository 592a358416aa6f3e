"""Fit the costs of branches, measured at several sizes, as functions of the sizes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.bundle_costs import bundle_costs
from fxelastic.edge.latency_model import Measured, fit_mode
from fxelastic.edge.measured_sizes import SizePlan, basis_of
from fxelastic.spec import Arch
from fxelastic.spec.branch_latency import BranchLatency
from fxelastic.spec.costs import BranchCosts, ModelError
from fxelastic.spec.costs_by_size import Correction, CostsBySize, ModeBySize
from fxelastic.spec.resources import LATENCY

# Errors of a cost count relative to it, and to this share of the mean cost of a branch.
_LEAST_SHARE = 0.01
# Resources whose costs depend on the sizes, and follow from the bundle.
_OTHERS = ("flops", "traffic_bytes", "peak_memory_bytes")


class SizeFit:
    """Fits the costs of a bundle's branches to measurements at several sizes.

    At each of the sizes, costs are fitted to subnets as for a table of one size. The costs of each
    branch at all sizes are then fitted by a function of the sizes, and what all subnets have in
    common of the remaining error becomes a `Correction`.

    Attributes:
        by_size: The costs of the modes fitted so far.
    """

    def __init__(
        self,
        bundle: Bundle,
        batch_size: int,
        plan: SizePlan,
        rows: Sequence[Mapping[str, BranchLatency]],
    ) -> None:
        """Prepare.

        Args:
            bundle: The bundle.
            batch_size: The number of samples in a run.
            plan: The sizes.
            rows: The measurements of each branch at each of the plan's points.
        """
        self._space = bundle.space
        self._plan = plan
        self._rows = rows
        basis = basis_of(bundle.manifest, plan.points)
        self.by_size = CostsBySize(bundle.manifest.model.sizes, plan.points, basis)
        self._basis = np.array([self.by_size.values(point) for point in plan.points])
        found = [
            bundle_costs(bundle, batch_size, own, sizes)
            for own, sizes in zip(rows, plan.points, strict=True)
        ]
        self._others = {
            name: fit_terms(self._basis, [costs[name] for costs in found])
            for name in _OTHERS
            if name in found[0]
        }

    def fitted(
        self,
        mode: str,
        times: Sequence[Mapping[Arch, Measured]],
        held_out: Collection[Arch],
    ) -> BranchCosts:
        """Fit a mode, and add it to ``by_size``.

        Args:
            mode: The mode.
            times: The measured subnets, the original among them, at all sizes of the plan.
            held_out: The subnets to compute the error on.

        Returns:
            The latencies at the example's sizes, with the error of those at all sizes.
        """
        original = self._space.original
        fitted = [
            [m for m in found.values() if m.arch not in held_out]
            for found in times[: len(self._plan.points)]
        ]
        costs = [
            fit_mode(
                self._space,
                rows,
                [m for m in found if m.arch != original],
                original=next((m for m in found if m.arch == original), None),
                negative_overhead=False,
            )
            for rows, found in zip(self._rows, fitted, strict=True)
        ]
        terms = fit_terms(self._basis, costs)
        correction = fit_correction(original, terms, self._basis, fitted)
        found = ModeBySize({LATENCY: terms, **self._others}, correction)
        self.by_size = replace(self.by_size, modes={**self.by_size.modes, mode: found})
        example = self._plan.points[self._plan.example]
        latency = self.by_size.mean(mode, {tuple(example.values()): 1})[LATENCY]
        return replace(latency, error=self._error(mode, times, held_out))

    def _error(
        self, mode: str, times: Sequence[Mapping[Arch, Measured]], held_out: Collection[Arch]
    ) -> ModelError | None:
        """The error on subnets that were held out; None if none of them was measured."""
        indices = self._plan.judged
        measured = [(k, m) for k in indices for m in times[k].values() if m.arch in held_out]
        if not measured:
            return None
        errors = [
            abs(self.by_size.predict_ms(mode, m.arch, self._plan.all[k]) / m.ms - 1)
            for k, m in measured
        ]
        n_subnets = len({m.arch for _, m in measured})
        n_sizes = len(indices) if self._plan.between else 0
        return ModelError(
            float(np.median(errors)), float(np.percentile(errors, 90)), n_subnets, n_sizes
        )


def fit_terms(basis: np.ndarray, costs: Sequence[BranchCosts]) -> tuple[BranchCosts, ...]:
    """The coefficients of costs, by least squares of relative errors; each is at least 0.

    Args:
        basis: The values of the basis ``(sizes, functions)``.
        costs: The costs at each of the sizes.

    Returns:
        The coefficients of each function.
    """
    names = list(costs[0].costs)
    values = np.array([[c.overhead, *(c.costs[name] for name in names)] for c in costs])
    scale = values + _LEAST_SHARE * values.mean(axis=1, keepdims=True)
    found = np.zeros((basis.shape[1], values.shape[1]))
    for j, (column, weight) in enumerate(zip(values.T, scale.T, strict=True)):
        if weight.all():
            found[:, j] = non_negative_least_squares(basis / weight[:, None], column / weight)
    return tuple(
        BranchCosts(dict(zip(names, map(float, row[1:]), strict=True)), float(row[0]))
        for row in found
    )


def non_negative_least_squares(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The ``x`` of at least 0 with the least ``|matrix @ x - target|``.

    Source: Lawson and Hanson, Solving Least Squares Problems (1974), chapter 23.
    """
    norms = np.maximum(np.linalg.norm(matrix, axis=0), 1e-300)
    a = matrix / norms
    n = a.shape[1]
    x = np.zeros(n)
    active = np.zeros(n, bool)
    for _ in range(3 * n):
        gradient = np.where(active, -np.inf, a.T @ (target - a @ x))
        if gradient.max() <= 1e-12 * np.linalg.norm(target):
            break
        active[int(np.argmax(gradient))] = True
        while True:
            trial = np.zeros(n)
            trial[active] = np.linalg.lstsq(a[:, active], target, rcond=None)[0]
            below = active & (trial <= 0)
            if not below.any():
                x = trial
                break
            steps = x[below] / np.maximum(x[below] - trial[below], 1e-300)
            x = x + np.min(steps) * (trial - x)
            active &= x > 1e-15
            x[~active] = 0.0
    return np.asarray(x / norms)


def fit_correction(
    original: Arch,
    terms: Sequence[BranchCosts],
    basis: np.ndarray,
    measured: Sequence[Sequence[Measured]],
) -> Correction:
    """The factor between measured latencies and those of the terms, which depends on the sizes.

    Args:
        original: The original.
        terms: The coefficients of the latencies.
        basis: The values of the basis ``(sizes, functions)``.
        measured: The measured subnets at each of the sizes.
    """
    coefficients = _totals(original, terms)
    ratios: dict[float, list[float]] = {}
    for values, subnets in zip(basis, measured, strict=True):
        x = float(values @ coefficients)
        if subnets and x > 0:
            found = [m.ms / float(values @ _totals(m.arch, terms)) for m in subnets]
            ratios.setdefault(x, []).append(float(np.median(found)))
    points = tuple((x, float(np.mean(found))) for x, found in sorted(ratios.items()))
    return Correction(tuple(map(float, coefficients)), points)


def _totals(arch: Arch, terms: Sequence[BranchCosts]) -> np.ndarray:
    """The coefficients of a subnet's cost."""
    return np.array([term.overhead + sum(term.costs[b] for b in arch) for term in terms])
