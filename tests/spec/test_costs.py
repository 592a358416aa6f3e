"""How costs of branches add up: by the rule of each resource."""

from __future__ import annotations

import pytest

from fxelastic.errors import UsageError
from fxelastic.spec.costs import BranchCosts, Costs, ModelError
from fxelastic.spec.resources import RESOURCES, resource

COSTS = Costs(
    {
        "latency_ms": BranchCosts({"a@0": 1.0, "b@1": 2.0, "c@2": 4.0}, 0.5),
        "energy_mj": BranchCosts({"a@0": 10.0, "b@1": 20.0, "c@2": 40.0}),
        "peak_memory_bytes": BranchCosts({"a@0": 100.0, "b@1": 300.0, "c@2": 200.0}, 7.0),
        "weight_bytes": BranchCosts(
            {"a@0": 10.0, "b@1": 20.0, "c@2": 30.0},
            shared={"a@0": {"w": 4.0}, "b@1": {"w": 4.0, "v": 1.0}, "c@2": {"w": 4.0}},
        ),
    }
)


def test_each_resource_adds_up_by_its_rule() -> None:
    assert COSTS.predict(("a@0", "b@1", "c@2")) == {
        "latency_ms": 7.5,
        "energy_mj": 70.0,
        "peak_memory_bytes": 307.0,
        "weight_bytes": 52.0,
    }


def test_a_part_counts_once_wherever_it_comes_first() -> None:
    assert COSTS.total("weight_bytes", ("c@2",)) == 30
    assert COSTS.total("weight_bytes", ("b@1", "c@2")) == 46
    assert COSTS.total("weight_bytes", ("c@2", "b@1")) == 46


def test_branches_and_resources_without_costs() -> None:
    with pytest.raises(UsageError, match="no branch 'd@3'"):
        COSTS.predict(("a@0", "d@3"))
    with pytest.raises(UsageError, match="no costs of FLOPs"):
        COSTS.total("flops", ("a@0",))
    with pytest.raises(UsageError, match="unknown resource 'luck'"):
        Costs({"luck": BranchCosts({})})


def test_costs_are_read_as_written() -> None:
    for name, found in COSTS.items():
        assert BranchCosts.from_json(found.to_json()) == found, name
    measured = BranchCosts({"a@0": 1.0}, -0.25, ModelError(0.1, 0.2, 3), "noisy")
    assert BranchCosts.from_json(measured.to_json()) == measured


@pytest.mark.parametrize("cost", [-1.0, float("nan"), float("inf")])
def test_numbers_that_are_no_costs_are_not_read(cost: float) -> None:
    value = BranchCosts({"a@0": 1.0}, shared={"a@0": {"w": 1.0}}).to_json()
    for bad in ({"costs": {"a@0": cost}}, {"shared": {"a@0": {"w": cost}}}):
        with pytest.raises(ValueError, match="negative or not finite"):
            BranchCosts.from_json({**value, **bad})
    with pytest.raises(ValueError, match="overhead"):
        BranchCosts.from_json({**value, "overhead": float("nan")})


def test_values_are_shown_with_their_unit() -> None:
    assert resource("latency_ms").text(12.345) == "12.35 ms"
    assert resource("weight_bytes").text(3 * 2**20) == "3 MiB"
    assert resource("weight_bytes").text(100) == "100 bytes"
    assert all(name.endswith(("_ms", "_mj", "_bytes", "flops", "n_params")) for name in RESOURCES)
