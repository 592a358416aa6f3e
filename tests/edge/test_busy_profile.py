"""Profiles of a device whose clocks are made up: slow, busy, short of time."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxelastic import edge
from fxelastic.cli import main
from fxelastic.edge import subnet_timing
from fxelastic.edge.sessions import SessionMaker
from fxelastic.edge.stopwatch import Stopwatch
from fxelastic.errors import UsageError
from fxelastic.spec.latency_table import MODES, LatencyTable, ModelError
from tests.edge.serving.tiny_bundle import CLASSES, write_bundle

DATA = (np.zeros((20, 8, 8, 8), np.float32), np.arange(20) % CLASSES)


@dataclass
class Device:
    """Clocks that loading, running and assembling turn.

    Attributes:
        load_s: What opening a session takes.
        run_s: What a run of one takes; twice as much if others keep the cores busy.
        assemble_s: What assembling a subnet takes.
        busy: Whether others keep the cores busy.
    """

    load_s: float = 0.0
    run_s: float = 0.0
    assemble_s: float = 0.0
    busy: bool = False
    wall: float = 0.0
    used: float = 0.0

    def watch(self) -> Stopwatch:
        return Stopwatch(False, lambda: self.wall, lambda: self.used, lambda: self.used)

    def pass_time(self, seconds: float) -> None:
        self.used += seconds
        self.wall += seconds * (2 if self.busy else 1)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        device, open_branch, assemble = self, SessionMaker.open_branch, subnet_timing.assemble

        class Session:
            def __init__(self, session: Any) -> None:
                self._session = session
                self.get_inputs = session.get_inputs

            def run(self, *args: Any) -> Any:
                device.pass_time(device.run_s)
                return self._session.run(*args)

            def run_with_ort_values(self, *args: Any) -> Any:
                device.pass_time(device.run_s)
                return self._session.run_with_ort_values(*args)

        def opened(maker: SessionMaker, path: Path) -> Any:
            device.pass_time(device.load_s)
            return Session(open_branch(maker, path))

        def assembled(*args: Any) -> Any:
            device.pass_time(device.assemble_s)
            return assemble(*args)

        monkeypatch.setattr(SessionMaker, "open_branch", opened)
        monkeypatch.setattr(subnet_timing, "assemble", assembled)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> edge.Bundle:
    return write_bundle(tmp_path_factory.mktemp("busy") / "bundle")


@pytest.fixture(scope="module")
def table(bundle: edge.Bundle) -> LatencyTable:
    """A table that is marked unusable."""
    found = edge.profile(bundle, threads=1, n_samples=3, n_subnets=0, n_held_out=0)
    return found.mapped(lambda costs: replace(costs, error=ModelError(0.3, 0.75, 12)))


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize(
    ("budget_s", "load_s", "run_s", "assemble_s"),
    [
        (90.0, 0.1, 0.05, 3.0),  # whole subnets take most of it
        (90.0, 0.5, 0.2, 0.5),  # runs do
        (30.0, 0.2, 0.02, 10.0),  # there is hardly time for one subnet
        (30.0, 0.01, 0.02, 0.05),
    ],
)
def test_a_time_budget_holds(
    bundle: edge.Bundle,
    monkeypatch: pytest.MonkeyPatch,
    budget_s: float,
    load_s: float,
    run_s: float,
    assemble_s: float,
    busy: bool,
) -> None:
    """A budget of 90 s once took 208."""
    device = Device(load_s, run_s, assemble_s, busy)
    device.install(monkeypatch)
    found = edge.profile(
        bundle, threads=1, n_samples=10_000, time_budget_s=budget_s, watch=device.watch()
    )
    assert device.wall <= 1.1 * budget_s
    assert device.wall >= 0.3 * budget_s
    assert all(row.n >= 3 for row in found.rows.values())


def test_whole_subnets_are_given_up_first(
    bundle: edge.Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one takes decides for how many there is time."""
    numbers = []
    for assemble_s in (0.5, 4.0, 1000.0):
        with monkeypatch.context() as patched:
            device = Device(0.05, 0.02, assemble_s)
            device.install(patched)
            found = edge.profile(bundle, threads=1, time_budget_s=60.0, watch=device.watch())
        error = found.error("assembled")
        assert (error is None) == ("no time to measure" in found.problem("assembled"))
        numbers.append(0 if error is None else error.n_held_out)
    assert numbers[0] > numbers[1] > numbers[2] == 0


def test_loading_takes_what_it_takes(bundle: edge.Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(load_s=1.0, run_s=0.01, assemble_s=1.0)
    device.install(monkeypatch)
    found = edge.profile(bundle, threads=1, time_budget_s=0.1, watch=device.watch())
    n = len(bundle.space.branches)
    assert n <= device.wall < 1.5 * n
    assert all(row.n >= 3 for row in found.rows.values())


def test_several_threads_on_a_busy_machine_are_measured_as_one(
    bundle: edge.Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened: list[int] = []
    device = Device(0.01, 0.005, 0.01, busy=True)
    device.install(monkeypatch)
    open_branch = SessionMaker.open_branch

    def noted(maker: SessionMaker, path: Path) -> Any:
        opened.append(maker.threads)
        return open_branch(maker, path)

    monkeypatch.setattr(SessionMaker, "open_branch", noted)
    with caplog.at_level(logging.WARNING):
        found = edge.profile(bundle, n_subnets=4, n_held_out=2, watch=device.watch())
    assert (found.threads, found.clock) == (1, "processor")
    assert "processor time of one thread" in caplog.text
    assert set(opened) == {0, 1}
    assert all(row.ms == pytest.approx(5.0) for row in found.rows.values())
    assert LatencyTable.from_json(found.to_json()) == found


def test_several_threads_on_an_idle_machine_are_measured_as_they_are(
    bundle: edge.Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(0.01, 0.005, 0.01)
    device.install(monkeypatch)
    found = edge.profile(bundle, n_subnets=4, n_held_out=2, watch=device.watch())
    assert (found.threads, found.clock) == (0, "wall")
    assert not any(found.problem(mode) for mode in MODES if mode == "paged")


@pytest.mark.parametrize("time_budget_s", [None, 30.0])
def test_a_machine_that_becomes_busy_is_measured_again_with_one_thread(
    bundle: edge.Bundle, monkeypatch: pytest.MonkeyPatch, time_budget_s: float | None
) -> None:
    """If there is no time for that, the table is unusable."""
    device = Device(0.01, 0.005, 0.01)
    device.install(monkeypatch)

    def begin_to_compete(task: str, share: float) -> None:
        device.busy = device.busy or task != "branches"

    found = edge.profile(
        *(bundle, None, 0),
        **{"n_subnets": 4, "n_held_out": 2, "time_budget_s": time_budget_s},
        watch=device.watch(),
        progress=begin_to_compete,
    )
    if time_budget_s is None:
        assert (found.threads, found.clock) == (1, "processor")
        assert not any("kept the cores busy" in found.problem(mode) for mode in MODES)
        return
    assert (found.threads, found.clock) == (0, "wall")
    for mode in MODES:
        assert "kept the cores busy" in found.problem(mode)
        assert not found.trusted(mode)


def test_a_search_refuses_an_unusable_table_and_force_goes_on(
    bundle: edge.Bundle, table: LatencyTable
) -> None:
    with pytest.raises(UsageError, match=r"unusable(.|\n)*75.0%(.|\n)*force=True"):
        edge.search(bundle, table, DATA, budget="100%", max_subnets=4)
    found = edge.search(bundle, table, DATA, budget="100%", max_subnets=4, force=True)
    assert found.best.latency_ms > 0


def test_serving_refuses_to_search_with_an_unusable_table(
    bundle: edge.Bundle, table: LatencyTable
) -> None:
    pool = edge.search(bundle, table, DATA, budget="100%", max_subnets=4, force=True).pool
    with pytest.raises(UsageError, match="measure again"):
        edge.serve(bundle, table, pool, budget_ms=1000.0, data=DATA)
    with edge.serve(bundle, table, pool, budget_ms=1000.0, data=DATA, force=True) as runtime:
        assert runtime(DATA[0][:1]).shape == (1, CLASSES)
    with edge.serve(bundle, table, pool, budget_ms=1000.0) as runtime:
        assert runtime(DATA[0][:1]).shape == (1, CLASSES)


def test_the_command_refuses_an_unusable_table_and_force_goes_on(
    bundle: edge.Bundle, table: LatencyTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table.save(tmp_path / "table.json")
    np.savez(tmp_path / "data.npz", x=DATA[0], targets=DATA[1])
    argv = ["search", str(bundle.path), "--table", str(tmp_path / "table.json"), "--quiet"]
    argv += ["--data", str(tmp_path / "data.npz"), "--budget", "100%", "--max-subnets", "4"]
    argv += ["--out", str(tmp_path / "pool.json")]
    assert main(argv) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*argv, "--force"]) == 0


def test_the_mark_of_an_unusable_table_is_kept(table: LatencyTable) -> None:
    doubted = table.mapped(lambda costs: replace(costs, error=None, doubt="noisy"))
    for kept in (table, doubted):
        read = LatencyTable.from_json(kept.to_json())
        assert read == kept
        assert read.problem() == kept.problem() != ""
        with pytest.raises(UsageError, match="unusable"):
            read.check_usable()
        read.check_usable(force=True)


def test_tables_of_earlier_versions_are_read(table: LatencyTable) -> None:
    value = json.loads(table.to_json())
    del value["clock"], value["sha256"]
    latencies = {mode: found["latency_ms"] for mode, found in value["modes"].items()}
    value["modes"] = {
        mode: {"overhead_ms": found["overhead"], "costs": found["costs"], "error": found["error"]}
        for mode, found in latencies.items()
    }
    value["schema"] = "fxelastic.latency/1"
    read = LatencyTable.from_json(json.dumps(value).encode())
    assert read.clock == "wall"
    for mode in latencies:
        before = table.costs_of(mode)["latency_ms"]
        assert read.costs_of(mode)["latency_ms"] == replace(before, doubt="")
