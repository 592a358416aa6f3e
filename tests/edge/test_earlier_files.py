"""Bundles, tables and pools that an earlier version wrote are read and used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fxelastic import edge
from fxelastic.errors import UsageError

EARLIER = Path(__file__).parents[1] / "fixtures" / "earlier"
X = np.random.default_rng(0).standard_normal((20, 8, 8, 8)).astype(np.float32)


def test_a_search_continues_from_earlier_files(tmp_path: Path) -> None:
    bundle = edge.load(EARLIER / "bundle")
    table = edge.LatencyTable.load(EARLIER / "bundle.latency.json")
    path = Path(shutil.copy(EARLIER / "bundle.pool.json", tmp_path))
    before = json.loads(path.read_text())["entries"]
    result = edge.search(bundle, table, X, budget="100%", path=path, force=True)
    assert result.counts.subnets == 0
    after = {str(entry.arch): entry for entry in edge.SubnetPool.load(path)}
    assert after.keys() == {entry["arch"] for entry in before}
    for entry in before:
        found = after[entry["arch"]]
        assert found.latency_ms == pytest.approx(entry["latency_ms"])
        assert found.accuracy == entry["accuracy"]
        assert found.costs["weight_bytes"] == sum(
            bundle.segment(branch).weight_bytes for branch in found.arch
        )


def test_an_earlier_table_predicts_as_it_did() -> None:
    path = EARLIER / "bundle.latency.json"
    written = json.loads(path.read_text())
    table = edge.LatencyTable.load(path)
    arch = edge.load(EARLIER / "bundle").space.original
    for mode, model in written["modes"].items():
        latency = model["overhead_ms"] + sum(model["costs"][branch] for branch in arch)
        weights = sum(written["rows"][branch]["weight_bytes"] for branch in arch)
        assert table.predict_ms(arch, mode) == pytest.approx(latency)
        assert table.predict(arch, mode=mode)["weight_bytes"] == weights
        error = table.error(mode)
        assert (None if error is None else error.to_json()) == model["error"]
        assert table.problem(mode).startswith(model["doubt"])


def test_an_earlier_pool_has_latencies_alone() -> None:
    pool = edge.SubnetPool.load(EARLIER / "bundle.pool.json")
    assert all(set(entry.costs) == {"latency_ms"} for entry in pool)
    with pytest.raises(UsageError, match="has no cost for weights"):
        pool.best_under({"weight_bytes": 1e9})
