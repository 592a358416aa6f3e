"""Costs as functions of sizes, fitted to costs at some sizes."""

from __future__ import annotations

from itertools import chain, combinations

import numpy as np
import pytest

from fxelastic.edge.latency_model import Measured
from fxelastic.edge.size_fit import fit_correction, fit_terms, non_negative_least_squares
from fxelastic.spec import Arch
from fxelastic.spec.costs import BranchCosts


@pytest.mark.parametrize("seed", range(20))
def test_least_squares_are_the_best_of_all_supports(seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix, target = rng.standard_normal((6, 4)), rng.standard_normal(6)
    found = non_negative_least_squares(matrix, target)
    assert (found >= 0).all()
    best = np.linalg.norm(target)
    for support in chain.from_iterable(combinations(range(4), n) for n in (1, 2, 3, 4)):
        x = np.linalg.lstsq(matrix[:, support], target, rcond=None)[0]
        if (x >= 0).all():
            best = min(best, np.linalg.norm(matrix[:, support] @ x - target))
    assert np.linalg.norm(matrix @ found - target) == pytest.approx(best)


SIZES = np.array([1.0, 16.0, 64.0, 256.0])
BASIS = np.stack([SIZES**0, SIZES, SIZES**2], axis=1)


def costs(*functions: tuple[float, float, float]) -> list[BranchCosts]:
    values = BASIS @ np.array(functions).T
    return [BranchCosts({"a": row[1], "b": row[2]}, row[0]) for row in values]


def test_coefficients_are_found() -> None:
    given = (0.0, 0.0, 0.0), (5.0, 0.2, 0.0), (0.01, 0.3, 0.002)
    terms = fit_terms(BASIS, costs(*given))
    for k, term in enumerate(terms):
        assert [term.overhead, *term.costs.values()] == pytest.approx([c[k] for c in given])


def test_costs_that_fall_with_the_size_become_constant() -> None:
    terms = fit_terms(BASIS, costs((0.0, 0.0, 0.0), (5.0, -0.01, 0.0), (1.0, 1.0, 0.0)))
    assert [term.costs["a"] > 0 for term in terms] == [True, False, False]


def test_small_sizes_count_as_much_as_large_ones() -> None:
    """A least-squares fit of absolute errors would be off by a large factor at the smallest."""
    disturbed = costs((0.0, 0.0, 0.0), (1.0, 0.0, 0.01), (1.0, 1.0, 0.0))
    disturbed[-1] = BranchCosts({**disturbed[-1].costs, "a": 1.1 * disturbed[-1].costs["a"]})
    terms = fit_terms(BASIS, disturbed)
    found = BASIS @ [term.costs["a"] for term in terms]
    assert np.abs(found / [c.costs["a"] for c in disturbed] - 1).max() < 0.1


def test_the_correction_is_the_common_factor_of_the_subnets() -> None:
    terms = fit_terms(BASIS, costs((0.0, 0.0, 0.0), (5.0, 0.2, 0.0), (0.1, 0.3, 0.002)))
    factors = (1.2, 1.0, 0.9, 1.1)
    archs = Arch(("a", "b")), Arch(("a",)), Arch(("b",))
    measured = [
        [
            Measured(arch, f * sum(float(v @ [t.costs[b] for t in terms]) for b in arch))
            for arch in archs
        ]
        for f, v in zip(factors, BASIS, strict=True)
    ]
    measured[1].append(Measured(archs[1], 1000.0))  # a disturbed one
    found = fit_correction(archs[0], terms, BASIS, measured)
    assert [found.at(values) for values in BASIS] == pytest.approx(factors)
    assert 1.0 < found.at([1.0, 4.0, 16.0]) < 1.2
    assert fit_correction(archs[0], terms, BASIS, [[]] * 4).at(BASIS[0]) == 1.0
