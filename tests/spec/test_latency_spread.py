"""Latencies at a percentile of runs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fxelastic.spec import Arch
from fxelastic.spec.branch_latency import BranchLatency
from fxelastic.spec.costs import BranchCosts, Costs
from fxelastic.spec.latency_spread import at_latency_percentile
from fxelastic.spec.latency_table import LatencyTable
from fxelastic.spec.resources import LATENCY


def table(**quartiles: tuple[float, float, float]) -> LatencyTable:
    """A table of branches with these quartiles, whose costs are the lower ones."""
    rows = {name: BranchLatency(*found, 40, 0, 0) for name, found in quartiles.items()}
    costs = BranchCosts({name: found[0] for name, found in quartiles.items()}, 0.5)
    modes = {"assembled": Costs({LATENCY: costs})}
    return LatencyTable("digest", {}, 1, 1, "CPU", rows, modes)


def test_a_branch_with_a_large_spread_costs_more_at_a_high_percentile() -> None:
    found = table(steady=(10.0, 10.0, 10.0), shaky=(9.0, 10.0, 11.0))
    costs = at_latency_percentile(found, 95).costs()
    assert costs["steady"] == pytest.approx(10.0)
    # The 95th percentile of a normal distribution is 2.44 times as far out as its quartile.
    assert costs["shaky"] == pytest.approx(10.0 + 2.4387, abs=1e-3)
    assert at_latency_percentile(found, 75).costs()["shaky"] == pytest.approx(11.0)
    assert at_latency_percentile(found, 50).costs()["shaky"] == pytest.approx(10.0)


def test_the_percentiles_of_branches_add_up() -> None:
    found = at_latency_percentile(table(a=(9.0, 10.0, 11.0), b=(1.0, 2.0, 2.0)), 75)
    assert found.predict_ms(Arch(("a", "b"))) == pytest.approx(0.5 + 11.0 + 2.0)


def test_no_branch_gets_quicker_and_other_costs_stay() -> None:
    odd = table(a=(10.0, 9.0, 8.0), b=(0.0, 0.0, 1.0))
    odd = odd.including({"flops": BranchCosts({"a": 5.0, "b": 7.0})})
    found = at_latency_percentile(odd, 99)
    assert found.costs() == {"a": 10.0, "b": 0.0}
    assert found.costs(resource="flops") == {"a": 5.0, "b": 7.0}
    assert replace(found, modes=odd.modes) == odd
