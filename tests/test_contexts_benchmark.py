"""The contexts that serving is measured in, on a simulated device."""

from __future__ import annotations

import pytest

from benchmarks.changing_load import KINDS, LOADS, level, pieces_of
from benchmarks.contexts import CONTEXTS, compared, simulate
from benchmarks.forecast import judged


@pytest.mark.parametrize("name", LOADS)
def test_a_load_can_be_replayed(name: str) -> None:
    pieces = pieces_of(name, 60.0, 3)
    assert pieces == pieces_of(name, 60.0, 3)
    assert pieces != pieces_of(name, 60.0, 4)
    assert {piece.kind for piece in pieces} <= set(KINDS)
    levels = [level(pieces, 0.5 * i) for i in range(120)]
    assert 0 <= min(levels) < max(levels) <= 3.0


def test_ramps_are_met_before_they_break_the_budget() -> None:
    rows = {name: simulate("ramps", 40.0, 1, name) for name in ("reactive", "forecast")}
    found = compared(rows, foreseeable=True)
    assert found["met"], rows
    assert rows["forecast"]["over"] < 0.7 * rows["reactive"]["over"]


def test_bursts_are_met_once_their_period_is_known() -> None:
    rows = {name: simulate("bursts", 100.0, 0, name) for name in ("reactive", "forecast")}
    assert rows["forecast"]["over"] < 0.8 * rows["reactive"]["over"]
    assert rows["forecast"]["switches_a_change"] <= 2


def test_random_changes_are_no_worse_with_a_forecast() -> None:
    rows = {name: simulate("changes", 40.0, 0, name) for name in ("reactive", "forecast")}
    assert compared(rows, foreseeable=False)["met"], rows


def test_the_bars_can_be_missed() -> None:
    reactive = {"over": 0.1, "accuracy": 0.9, "switches_a_change": 1.0}
    worse = [{"over": 0.08}, {"accuracy": 0.89, "over": 0.01}, {"switches_a_change": 3.0}]
    for change in worse:
        rows = {"reactive": reactive, "forecast": {**reactive, "over": 0.05, **change}}
        assert not compared(rows, foreseeable=True)["met"]
    assert set(CONTEXTS) <= set(LOADS)


def test_a_forecast_is_judged_by_its_errors() -> None:
    wave = [0.2 if i % 20 < 10 else 0.8 for i in range(160)]
    found = judged([{"name": "wave", "interval_s": 0.5, "load_index": wave}])
    assert found["met"]
    ahead = found["traces"]["wave"]["5 s"]
    assert ahead["last_value"] == pytest.approx(0.6, abs=0.05)
    assert ahead["ratio"] < 0.5
