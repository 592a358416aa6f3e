"""Searches within limits on several resources find the optimum of every enumerable space."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxelastic import edge
from fxelastic.edge.searching.schedule import Schedule, answer
from fxelastic.edge.searching.study import strategy
from fxelastic.errors import UsageError
from fxelastic.spec import Arch, SearchSpace
from fxelastic.spec.latency_table import LatencyTable
from tests.edge.searching.timed_executor import Clock, costs_of, studies, true_score
from tests.edge.serving.tiny_bundle import reference, steady, write_bundle
from tests.spec.spaces import chain, enumerate_paths, random_space

SPACES = {
    **{f"random {seed}": random_space(random.Random(seed)) for seed in range(12)},
    "chain 4": chain(4),
    "chain 5": chain(5, spans=(1, 2, 3), variants=1),
    "alone": SearchSpace(3, chain(3, spans=(), variants=0).branches),
}
X = np.random.default_rng(0).standard_normal((40, 8, 8, 8)).astype(np.float32)


def weights_of(space: SearchSpace) -> dict[str, float]:
    rng = random.Random("weights")
    return {spec.id: rng.uniform(0.2, 1.0) * (spec.stop - spec.start) for spec in space.branches}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("name", ["exhaustive", "evolutionary", "additive"])
def test_limits_on_latency_and_weights(space: SearchSpace, name: str) -> None:
    latency, weights = costs_of(space), weights_of(space)
    every = {arch: (taken(latency, arch), taken(weights, arch)) for arch in enumerate_paths(space)}
    lightest = min(every.values(), key=lambda costs: costs[1])
    for share, share_of_weights in ((0.6, 0.7), (0.8, 0.9), (1.0, 0.75)):
        original = every[space.original]
        # At least one subnet keeps both.
        high = max(share * original[0], lightest[0])
        most = max(share_of_weights * original[1], lightest[1])
        fitting = [a for a, (ms, n_bytes) in every.items() if ms <= high and n_bytes <= most]
        clock = Clock()
        share = high / space.cost(space.original, latency) * (1 + 1e-12)
        given = studies(space, [share], 30, len(every), clock, weights, most * (1 + 1e-12))
        Schedule(given, math.inf).run(strategy(name)())
        found = answer(given[0])
        assert found in fitting
        assert true_score(found) == pytest.approx(max(map(true_score, fitting)), abs=1e-9)


def taken(costs: dict[str, float], arch: Arch) -> float:
    return sum(costs[branch] for branch in arch)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> edge.Bundle:
    return write_bundle(tmp_path_factory.mktemp("limits") / "bundle")


@pytest.fixture(scope="module")
def table(bundle: edge.Bundle) -> LatencyTable:
    return steady(edge.profile(bundle, n_samples=3, n_subnets=0, n_held_out=0))


@pytest.fixture(scope="module")
def scores(bundle: edge.Bundle) -> dict[Arch, float]:
    """The agreement of every subnet with the original, computed by onnx's reference."""
    original = reference(bundle, bundle.space.original, {"x": X}).argmax(1)
    return {
        arch: float((reference(bundle, arch, {"x": X}).argmax(1) == original).mean())
        for arch in enumerate_paths(bundle.space)
    }


@pytest.mark.parametrize(
    "limits",
    [
        {"latency_ms": "70%", "weight_bytes": "80%"},
        {"weight_bytes": "60%"},
        {"latency_ms": "90%", "flops": "70%"},
        {"latency_ms": "60%", "traffic_bytes": "90%", "weight_bytes": "90%"},
        {"peak_memory_bytes": "100%", "latency_ms": "80%"},
    ],
)
@pytest.mark.parametrize("name", ["exhaustive", "evolutionary", "additive"])
def test_limits_on_a_bundle(
    bundle: edge.Bundle,
    table: LatencyTable,
    scores: dict[Arch, float],
    limits: dict[str, str],
    name: str,
) -> None:
    original = table.predict(bundle.space.original)
    bounds = {key: float(share.rstrip("%")) / 100 * original[key] for key, share in limits.items()}
    fitting = {
        arch: score
        for arch, score in scores.items()
        if all(table.predict(arch)[key] <= bound for key, bound in bounds.items())
    }
    result = edge.search(
        *(bundle, table, X),
        **{"limits": limits, "strategy": name, "held_out": 0.0, "max_subnets": len(scores)},
    )
    assert dict(result.limits[0]) == pytest.approx(bounds)
    best = result.best
    assert best.arch in fitting
    assert best.costs == table.predict(best.arch)
    if name != "additive":  # what branches cost does not add up exactly here
        assert best.accuracy == pytest.approx(max(fitting.values()))
    within: Any = {key: bound * (1 + 1e-9) for key, bound in bounds.items()}
    again = result.pool.best_under(within)
    assert again is not None
    assert again.accuracy == best.accuracy


def test_several_limits_have_an_answer_each(bundle: edge.Bundle, table: LatencyTable) -> None:
    given = [{"latency_ms": "70%"}, {"latency_ms": "90%", "weight_bytes": "80%"}, {"flops": "75%"}]
    result = edge.search(bundle, table, X, limits=given, max_subnets=200)
    assert [list(limits) for limits in result.limits] == [list(limits) for limits in given]
    assert result.budgets_ms[2] == math.inf
    for limits, best in zip(result.limits, result.bests, strict=True):
        assert limits.keeps(best.costs)


def test_weights_that_branches_share_count_once(bundle: edge.Bundle, table: LatencyTable) -> None:
    """The sum of all files is above the limit, the weights that a device holds are below it."""
    costs = table.costs_of()["weight_bytes"]
    assert costs.shared == {}
    ids = bundle.space.original.branches
    part = min(costs.costs[branch] for branch in ids) / 2
    shared = {branch: {"data.bin": part} for branch in ids}
    other = table.mapped(lambda found: type(found)(found.costs, shared=shared), "weight_bytes")
    total = sum(costs.costs[branch] for branch in ids)
    assert other.predict(bundle.space.original)["weight_bytes"] == total - part * (len(ids) - 1)


def test_a_table_of_an_earlier_version_is_completed(
    bundle: edge.Bundle, table: LatencyTable, tmp_path: Path
) -> None:
    """It lacks what the bundle tells, such as FLOPs."""
    latency = table.costs_of()["latency_ms"]
    poor = LatencyTable(
        **{**vars(table), "modes": {"assembled": type(table.costs_of())({"latency_ms": latency})}}
    )
    result = edge.search(bundle, poor, X, limits={"flops": "75%"}, max_subnets=50)
    assert result.limits[0].keeps(result.best.costs)
    path = tmp_path / "pool.json"
    result.pool.save(path)
    assert edge.SubnetPool.load(path) == result.pool


def test_a_limit_for_a_percentile_of_the_runs_leaves_room_for_slow_ones(
    bundle: edge.Bundle, table: LatencyTable
) -> None:
    spread = {"median_ms": 1.0, "high_ms": 1.2}
    rows = {
        n: replace(row, **{name: row.ms * factor for name, factor in spread.items()})
        for n, row in table.rows.items()
    }
    shaky = replace(table, rows=rows)
    original_ms = table.predict_ms(bundle.space.original)
    given: dict[str, Any] = {"budget_ms": 1.2 * original_ms, "max_subnets": 8, "held_out": 0.0}
    usual = edge.search(bundle, shaky, {"x": X}, **given)
    assert any(entry.arch == bundle.space.original for entry in usual.pool.entries)
    found = edge.search(bundle, shaky, {"x": X}, latency_percentile=95, **given)
    # All branches take half as long again in one run of twenty.
    assert found.best.latency_ms == pytest.approx(1.4877 * table.predict_ms(found.best.arch), 1e-3)
    assert found.best.latency_ms <= 1.2 * original_ms
    assert found.table.predict_ms(bundle.space.original) > 1.2 * original_ms
    with pytest.raises(UsageError, match="latency_percentile"):
        edge.search(bundle, shaky, {"x": X}, latency_percentile=30, **given)
