"""The table of another device that fits this one best."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxelastic import edge
from fxelastic.edge import table_match
from fxelastic.edge.branch_timing import BranchTiming
from fxelastic.edge.bundle import Bundle
from fxelastic.edge.fingerprint import fingerprint
from fxelastic.edge.monitoring.table_probe import renewed
from fxelastic.errors import UsageError
from fxelastic.spec import Arch
from fxelastic.spec.latency_table import LatencyTable
from fxelastic.spec.resources import LATENCY
from tests.cli.commands import fxelastic
from tests.edge.serving.tiny_bundle import steady, write_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("match") / "bundle", depth=9)


@pytest.fixture(scope="module")
def table(bundle: Bundle) -> LatencyTable:
    return steady(edge.profile(bundle, n_samples=3, n_subnets=0, n_held_out=0))


def tables(table: LatencyTable) -> dict[str, LatencyTable]:
    """Tables of a device of this kind, three times as slow, and of two other kinds."""
    rng = np.random.default_rng(0)
    return {
        "like": renewed(table, dict.fromkeys(table.rows, 3.0)),
        "other": renewed(table, {name: rng.uniform(0.5, 2.0) for name in table.rows}),
        "another": renewed(table, {name: rng.uniform(0.2, 5.0) for name in table.rows}),
    }


class Measured:
    """Branches of this device take twice as long as in a table, one of them far longer."""

    def __init__(self, table: LatencyTable) -> None:
        self.table, self.asked = table, 0

    def __call__(self, branches: Iterable[str], *_: object) -> Mapping[str, float]:
        found = {name: 2 * self.table.rows[name].ms for name in branches}
        self.asked += len(found)
        found[min(found)] *= 10
        return found


@pytest.fixture
def measured(table: LatencyTable, monkeypatch: pytest.MonkeyPatch) -> Measured:
    made = Measured(table)
    monkeypatch.setattr(table_match, "_measured", lambda _, __, branches, *___: made(branches))
    return made


def test_the_proportional_table_is_found_in_spite_of_an_outlier(
    bundle: Bundle, table: LatencyTable, measured: Measured
) -> None:
    found = edge.match_table(bundle, tables(table), share=0.3)
    assert found.name == "like"
    assert found.factor == pytest.approx(2 / 3)
    assert found.error == min(found.errors.values())
    assert len(found.measured_ms) == measured.asked < len(table.rows)
    assert found.table.device == fingerprint()
    original = bundle.space.original
    assert found.table.predict_ms(original) == pytest.approx(2 * table.predict_ms(original))
    costs = found.table.costs_of("assembled")[LATENCY]
    assert (costs.error, costs.source[:17]) == (None, "the table of like")
    again = LatencyTable.from_json(found.table.to_json(), "again")
    assert again == found.table


def test_the_error_is_that_of_branches_that_were_not_used(
    bundle: Bundle, table: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second branch takes twice as long: half of the predictions are off by a factor of 2."""
    order = sorted(table.rows, key=lambda name: (table.rows[name].ms, name))
    factors = {name: 1.0 + i % 2 for i, name in enumerate(order)}
    monkeypatch.setattr(
        table_match,
        "_measured",
        lambda _, __, branches, ___: {
            name: factors[name] * table.rows[name].ms for name in branches
        },
    )
    found = edge.match_table(bundle, {"own": table}, share=1.0)
    assert 0.2 < found.error < 1.0
    assert set(found.measured_ms) == set(table.rows)


def test_branches_are_really_measured(bundle: Bundle, table: LatencyTable) -> None:
    found = edge.match_table(bundle, {"own": table}, repeats=1)
    assert all(ms > 0 for ms in found.measured_ms.values())
    assert len(found.measured_ms) == 8


def test_branches_are_measured_as_a_profile_does(
    bundle: Bundle, table: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, with their weights in the caches, they once took a quarter of their latencies."""
    run: list[Arch] = []

    def timed(timing: BranchTiming, arch: Arch) -> float:
        bundle.space.validate(arch)
        run.append(arch)
        for branch in arch:
            timing.samples_ms[branch].append(table.rows[branch].ms)
        return 0.0

    monkeypatch.setattr(BranchTiming, "time", timed)
    found = edge.match_table(bundle, {"own": table}, repeats=2)
    assert found.factor == pytest.approx(1.0)
    assert len(run) == 2 * len(found.measured_ms)
    others = {branch for arch in run for branch in arch} - found.measured_ms.keys()
    assert others <= set(bundle.space.original)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: {}, "no tables to match"),
        (lambda found: {**found, "b": replace(found["like"], threads=7)}, "in different ways"),
        (
            lambda found: {"a": replace(found["like"], bundle_digest="0", structure_digest="1")},
            "belongs to another bundle",
        ),
        (
            lambda found: {"a": replace(found["like"], provider="OtherExecutionProvider")},
            "execution provider is not available",
        ),
    ],
)
def test_tables_that_do_not_fit_are_refused(
    bundle: Bundle, table: LatencyTable, change: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        edge.match_table(bundle, change(tables(table)))


def test_the_command_writes_a_table_and_does_not_replace_one(
    bundle: Bundle, table: LatencyTable, tmp_path: Path
) -> None:
    for name, found in tables(table).items():
        (tmp_path / name).mkdir()
        found.save(tmp_path / name / "bundle.latency.json")
    out = tmp_path / "here.json"
    argv = ("table", "match", str(bundle.path), str(tmp_path), "--out", str(out))
    done = fxelastic(*argv, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report["errors"]) == 3
    assert LatencyTable.load(out).fits(bundle.digest)
    again = fxelastic(*argv, cwd=tmp_path)
    assert again.returncode == 2
    assert "exists already" in again.stderr
    assert fxelastic(*argv, "--force", cwd=tmp_path).returncode == 0
    empty = fxelastic("table", "match", str(bundle.path), str(bundle.path), cwd=tmp_path)
    assert "has no latency tables" in empty.stderr
