"""Scores of subnets predicted from a few measured ones, and a plan of the trade-off."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxelastic import edge
from fxelastic.edge.pool import SubnetPool
from fxelastic.edge.searching.planning import drawn
from fxelastic.edge.searching.prediction import ScorePrediction
from fxelastic.errors import UsageError
from fxelastic.spec import Arch
from fxelastic.spec.latency_table import LatencyTable
from fxelastic.spec.limits import Limits
from fxelastic.spec.resources import LATENCY
from tests.edge.searching.test_models_of_subnets import SPACE, accuracy, distortion
from tests.edge.serving.tiny_bundle import CLASSES, write_bundle

DISTORTION = distortion(SPACE)
OTHERS = SPACE.sample(200, 1)


def predicted(n: int, of_errors: float = 1.0) -> tuple[ScorePrediction, list[Arch]]:
    """A prediction from some subnets, and others that it does not know."""
    known = list(dict.fromkeys([SPACE.original, *SPACE.sample(n, 0)]))
    scores = {arch: accuracy(arch, of_errors) for arch in known}
    found = ScorePrediction(DISTORTION, scores, standard_error=0.01)
    return found, [arch for arch in OTHERS if arch not in scores]


@pytest.mark.parametrize(("of_errors", "least"), [(1.0, 0.9), (0.0, 0.7)])
def test_a_few_measured_subnets_predict_the_others(of_errors: float, least: float) -> None:
    prediction, others = predicted(30, of_errors)
    exact = np.array([accuracy(arch, of_errors) for arch in others])
    expected = prediction.predict(others)
    ranks = [values.argsort().argsort() for values in (expected.scores, exact)]
    assert np.corrcoef(*ranks)[0, 1] > least
    errors = np.abs(expected.scores - exact)
    # The stated error and the bands are about right.
    assert 0.4 < prediction.median_error / np.median(errors) < 2.5
    assert 0.4 < (errors < expected.bands).mean() < 0.98
    assert prediction.rank_correlation > least


def test_more_measured_subnets_predict_better() -> None:
    few, others = predicted(6)
    many, _ = predicted(60)
    exact = np.array([accuracy(arch) for arch in others])
    errors = [np.abs(p.predict(others).scores - exact).mean() for p in (few, many)]
    assert errors[1] < errors[0]


def test_the_original_is_predicted_and_no_branch_gains() -> None:
    prediction, _ = predicted(30)
    (score,), (band,) = prediction.predict([SPACE.original])
    assert score == pytest.approx(accuracy(SPACE.original), abs=0.05)
    assert band > 0
    assert min(prediction.costs.values()) >= 0
    learned = prediction.learned
    assert learned.branches == DISTORTION.branches
    np.testing.assert_allclose(np.diagonal(learned.products), learned.errors)


def test_scores_without_an_upper_bound_are_predicted() -> None:
    prediction, others = predicted(30)
    known = list(dict.fromkeys([SPACE.original, *SPACE.sample(30, 0)]))
    scores = {arch: 100 * accuracy(arch) - 300 for arch in known}
    other = ScorePrediction(DISTORTION, scores, standard_error=1.0)
    ours, theirs = (p.predict(others).scores for p in (prediction, other))
    np.testing.assert_allclose(100 * ours - 300, theirs, atol=1e-3)


def test_too_few_subnets_are_refused() -> None:
    with pytest.raises(UsageError, match="too few subnets"):
        ScorePrediction(DISTORTION, {SPACE.original: 1.0})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> edge.Bundle:
    return write_bundle(tmp_path_factory.mktemp("plan") / "bundle")


@pytest.fixture(scope="module")
def table(bundle: edge.Bundle) -> LatencyTable:
    found = edge.profile(bundle, n_samples=3, n_subnets=0, n_held_out=0)
    ms = {"original": 1.0, "pruned50": 0.6, "merged": 1.1}
    costs = {name: ms[name.split("@")[0]] for name in found.rows}
    return found.mapped(lambda before: replace(before, overhead=0.0, costs=costs))


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 8, 8, 8)).astype(np.float32)
    return x, rng.integers(0, CLASSES, 40)


def test_a_plan_is_made_before_a_search(
    bundle: edge.Bundle, table: LatencyTable, data: Any, tmp_path: Path
) -> None:
    path = tmp_path / "pool.json"
    options: dict[str, Any] = {"held_out": 0.0, "path": path}
    plan = edge.plan(bundle, table, data, budget=["1%", "70%", "95%"], n_subnets=4, **options)
    impossible, *others = plan.points
    assert impossible.arch is None
    assert np.isnan(impossible.score)
    original_ms = table.predict_ms(bundle.space.original)
    for share, point in zip((0.7, 0.95), others, strict=True):
        assert point.arch is not None
        bundle.space.validate(point.arch)
        assert point.predicted_ms == pytest.approx(table.predict_ms(point.arch))
        assert point.predicted_ms <= share * original_ms * (1 + 1e-9)
        assert 0 <= point.score <= 1
        assert point.band > 0
    assert others[0].score <= others[1].score + 1e-9
    assert plan.score == "top1"
    assert plan.standard_error == pytest.approx(
        (plan.original_score * (1 - plan.original_score) / 40) ** 0.5
    )
    # A search with the same pool knows what was measured, and may begin with what was learned.
    measured = {entry.arch: entry.accuracy for entry in SubnetPool.load(path)}
    assert measured == {arch: pytest.approx(score) for arch, score in plan.measured.items()}
    result = edge.search(
        bundle, table, data, budget="70%", max_subnets=3, prior=plan.prediction, **options
    )
    assert result.best.accuracy >= max(
        score for arch, score in measured.items() if table.predict_ms(arch) <= 0.7 * original_ms
    )


def test_a_prior_of_other_branches_is_refused(
    bundle: edge.Bundle, table: LatencyTable, data: Any
) -> None:
    with pytest.raises(UsageError, match="prior is of other branches"):
        edge.search(bundle, table, data, budget="70%", prior=predicted(6)[0])
    with pytest.raises(UsageError, match="n_subnets"):
        edge.plan(bundle, table, data, n_subnets=2)


def test_subnets_to_measure_are_spread_over_the_latencies(
    bundle: edge.Bundle, table: LatencyTable
) -> None:
    costs, space = table.costs_of("assembled"), bundle.space
    errors = {spec.id: 0.1 for spec in space.branches if spec.kind != "original"}
    high = costs.total(LATENCY, space.original)
    found = drawn(space, costs, errors, 5, 0.7 * high, random.Random(0))
    assert len(found) == len(set(found)) == 5
    assert space.original not in found
    again = drawn(space, costs, errors, 5, 0.7 * high, random.Random(0))
    assert found == again
    assert all(
        costs.total(LATENCY, arch) <= Limits({LATENCY: high}).bound(LATENCY) for arch in found
    )
