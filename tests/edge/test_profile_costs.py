"""A profile fills the energy of branches, and their hit rates; `inspect --table` shows both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fxelastic import edge
from fxelastic.cli.app import main
from fxelastic.spec.latency_table import LatencyTable
from tests.edge.serving.tiny_bundle import write_bundle


def test_a_profile_has_energies_and_hit_rates_and_inspect_shows_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    meter = edge.EnergyMeter(tmp_path / "nothing", edge.PowerModel.of(10.0, 30.0), threads=1)
    table = edge.profile(
        bundle, threads=1, n_samples=3, n_subnets=0, n_held_out=0, cache_runs=1, meter=meter
    )
    original = table.predict(bundle.space.original)
    assert original["energy_mj"] == pytest.approx(30.0 * original["latency_ms"])
    assert original["access_energy_mj"] > 0
    assert "given by the user" in table.costs_of()["energy_mj"].source
    assert original["n_params"] == sum(
        bundle.space.by_id[branch].n_params for branch in bundle.space.original
    )
    worked = [row for row in table.rows.values() if row.activation_bytes]
    assert all(row.hit_rate is not None and 0 <= row.hit_rate <= 1 for row in worked)
    path = tmp_path / "bundle.latency.json"
    table.save(path)
    assert LatencyTable.load(path) == table
    assert main(["inspect", str(tmp_path / "bundle"), "--table"]) == 0
    text = capsys.readouterr().out
    assert "cache hits" in text
    assert "energy: model: 30 W" in text
    assert main(["inspect", str(tmp_path / "bundle"), "--table", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["table"]
    assert set(found["branches"]) == set(table.rows)
    assert found["resources"]["energy_mj"]["source"]
