"""Limits: absolute or relative bounds by resource."""

from __future__ import annotations

from typing import Any

import pytest

from fxelastic.errors import UsageError
from fxelastic.spec.limits import Limits, several_limits


def test_shares_are_of_the_original() -> None:
    limits = Limits({"latency_ms": 20, "weight_bytes": " 70% "})
    found = limits.absolute({"latency_ms": 50.0, "weight_bytes": 1000.0, "flops": 3.0})
    assert dict(found) == {"latency_ms": 20.0, "weight_bytes": 700.0}
    assert found.keeps({"latency_ms": 20.0, "weight_bytes": 700.0})
    assert not found.keeps({"latency_ms": 20.0, "weight_bytes": 700.5})
    assert not found.keeps({"latency_ms": 20.0})
    assert found.bound("flops") == float("inf")
    assert str(limits) == "20 ms, weights 70% of the original"


@pytest.mark.parametrize("value", ["60%", 12, 12.5, "12.5", " 60 %"])
def test_a_bound_alone_is_on_the_latency(value: Any) -> None:
    found = Limits.of(value).absolute({"latency_ms": 10.0})
    assert found == {"latency_ms": 6.0 if "%" in str(value) else float(value)}


@pytest.mark.parametrize(
    "value", [0, -1, float("nan"), float("inf"), True, None, "fast", "%", "0%", "-5%", [20]]
)
def test_bounds_out_of_range(value: Any) -> None:
    with pytest.raises(UsageError, match="limit on weight_bytes must be a number above 0"):
        Limits({"weight_bytes": value})


def test_what_is_not_limits() -> None:
    with pytest.raises(UsageError, match="unknown resource 'joy'"):
        Limits({"joy": 1})
    with pytest.raises(UsageError, match="mapping from resources to bounds"):
        Limits([("latency_ms", 1)])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="energy_mj needs a latency table"):
        Limits({"energy_mj": 1}).absolute({"latency_ms": 1.0})
    with pytest.raises(UsageError, match="must be absolute"):
        Limits({"latency_ms": "60%"}).bound("latency_ms")


def test_limits_are_values() -> None:
    one, other = Limits({"latency_ms": 2, "flops": 3}), Limits({"flops": 3, "latency_ms": 2})
    assert one == other
    assert hash(one) == hash(other)
    assert one == Limits.of(one) == Limits.of({"flops": 3, "latency_ms": "2"})
    assert one != Limits({"latency_ms": 2})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"budget": "60%"}, [("60%", None, None)]),
        ({"budget_ms": [2, 3]}, [(2, None, None), (3, None, None)]),
        ({"budget": [2, "50%"], "weight_bytes": 7}, [(2, 7, None), ("50%", 7, None)]),
        ({"limits": {"weight_bytes": "70%"}}, [(None, "70%", None)]),
        ({"limits": {"weight_bytes": 5}, "budget": [2, 3]}, [(2, 5, None), (3, 5, None)]),
        ({"limits": [{"flops": 1}, {"flops": 2}], "budget": 9}, [(9, None, 1), (9, None, 2)]),
        ({"weight_bytes": 7}, [(None, 7, None)]),
    ],
)
def test_shorthands_are_limits(given: dict[str, Any], expected: list[tuple[Any, ...]]) -> None:
    names = ("latency_ms", "weight_bytes", "flops")
    found = [tuple(limits.get(name) for name in names) for limits in several_limits(**given)]
    assert found == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "needs a limit"),
        ({"budget": []}, "needs a limit"),
        ({"limits": []}, "needs a limit"),
        ({"limits": {}}, "needs a limit"),
        ({"limits": [{"flops": 1}, {}]}, "needs a limit"),
        ({"budget": 1, "budget_ms": 1}, "must not be given together"),
        ({"limits": {"latency_ms": 1}, "budget": 2}, "two limits bound latency_ms"),
        ({"limits": {"weight_bytes": 1}, "weight_bytes": 2}, "two limits bound weight_bytes"),
        ({"limits": [{"flops": 1}, {"flops": 2}], "budget": [1, 2]}, "can't be combined"),
    ],
)
def test_arguments_that_contradict_each_other(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        several_limits(**given)
