"""Branches that are no faster than what they replace, and where they are left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxelastic import edge
from fxelastic.cli.profile import report, sections
from fxelastic.edge.slow_branches import no_faster, used
from fxelastic.spec.latency_table import LatencyTable
from fxelastic.spec.limits import Limits
from tests.edge.serving.tiny_bundle import write_bundle

FAST, SLOW = 0.6, 1.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> edge.Bundle:
    return write_bundle(tmp_path_factory.mktemp("slow") / "bundle")


@pytest.fixture(scope="module")
def measured(bundle: edge.Bundle) -> LatencyTable:
    return edge.profile(bundle, n_samples=3, n_subnets=0, n_held_out=0)


def recorded(measured: LatencyTable, ms: dict[str, float]) -> LatencyTable:
    """The table with a cost for each kind of branch: 1 ms for originals."""
    costs = {name: {"original": 1.0, **ms}[name.split("@")[0]] for name in measured.rows}
    return measured.mapped(lambda before: replace(before, overhead=0.0, costs=costs))


@pytest.fixture
def fast(measured: LatencyTable) -> LatencyTable:
    return recorded(measured, {"pruned50": FAST, "merged": 1.1})


@pytest.fixture
def slow(measured: LatencyTable) -> LatencyTable:
    return recorded(measured, {"pruned50": SLOW, "merged": 1.1})


def ids(bundle: edge.Bundle, kind: str) -> set[str]:
    return {spec.id for spec in bundle.space.branches if spec.id.startswith(kind)}


def images() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal((24, 8, 8, 8)).astype(np.float32)


def test_each_branch_is_compared_with_the_originals_it_replaces(
    bundle: edge.Bundle, fast: LatencyTable, slow: LatencyTable, measured: LatencyTable
) -> None:
    assert not no_faster(bundle, fast, "assembled")
    assert set(no_faster(bundle, slow, "paged")) == ids(bundle, "pruned50")
    found = no_faster(bundle, recorded(measured, {"pruned50": 2.0, "merged": 5.0}), "assembled")
    assert set(found) == ids(bundle, "pruned50") | ids(bundle, "merged")
    branch = min(ids(bundle, "pruned50"))
    assert found[branch] == "it takes 2 ms, and the original branches that it replaces 1 ms"


def test_they_stay_where_another_resource_is_limited(
    bundle: edge.Bundle, slow: LatencyTable
) -> None:
    latency, weights = Limits({"latency_ms": "60%"}), Limits({"weight_bytes": "60%"})
    assert not ids(used(bundle, slow, "paged", [latency]), "pruned50")
    for limits in ([weights], [latency, weights], [Limits({**latency, **weights})]):
        assert used(bundle, slow, "paged", limits).space == bundle.space


def test_a_search_for_latency_does_not_try_them(bundle: edge.Bundle, slow: LatencyTable) -> None:
    options: dict[str, Any] = {"held_out": 0, "max_subnets": 30}
    result = edge.search(bundle, slow, images(), budget="70%", **options)
    tried = {branch for entry in result.pool.entries for branch in entry.arch}
    assert tried & ids(bundle, "merged")
    assert not tried & ids(bundle, "pruned50")
    result = edge.search(bundle, slow, images(), limits={"weight_bytes": "70%"}, **options)
    tried = {branch for entry in result.pool.entries for branch in entry.arch}
    assert tried & ids(bundle, "pruned50")


def test_a_pool_keeps_subnets_that_a_later_search_leaves_out(
    bundle: edge.Bundle, fast: LatencyTable, slow: LatencyTable, tmp_path: Path
) -> None:
    path = tmp_path / "pool.json"
    options: dict[str, Any] = {"held_out": 0, "max_subnets": 30, "path": path}
    edge.search(bundle, fast, images(), budget="70%", **options)
    before = edge.SubnetPool.load(path)
    pruned = [e for e in before.entries if set(e.arch) & ids(bundle, "pruned50")]
    assert pruned
    result = edge.search(bundle, slow, images(), budget="70%", **options)
    assert not set(result.best.arch) & ids(bundle, "pruned50")
    after = edge.SubnetPool.load(path)
    assert {e.arch: e.accuracy for e in before.entries}.items() <= {
        e.arch: e.accuracy for e in after.entries
    }.items()


def test_the_profile_lists_them(
    bundle: edge.Bundle, fast: LatencyTable, slow: LatencyTable, tmp_path: Path
) -> None:
    n, derived = len(ids(bundle, "pruned50")), len(bundle.space.branches) - bundle.space.n_blocks
    text = "\n".join(sections(bundle, slow))
    assert f"{n} of {derived} branches dropped: no faster than what they replace" in text
    assert "dropped" not in "\n".join(sections(bundle, fast))
    found = report(bundle, slow, tmp_path)["modes"]["paged"]
    assert set(found["no_faster"]) == ids(bundle, "pruned50")
