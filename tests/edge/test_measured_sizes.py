"""The sizes at which a profile measures, and the functions that their costs are fitted by."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fxelastic.edge.measured_sizes import SizePlan, basis_of
from fxelastic.errors import UsageError
from fxelastic.spec.manifest import Manifest, ModelInfo
from fxelastic.spec.symbols import Symbol
from fxelastic.spec.value_info import ValueInfo
from tests.edge.bundles import manifest

SEQ = Symbol("seq", 16, 1, 512)
HEIGHT, WIDTH = Symbol("H", 64, 32, None, 32), Symbol("W", 64, 32, None, 32)


def model(*sizes: Symbol) -> ModelInfo:
    return ModelInfo("Net", "0" * 64, 40, True, 2, sizes=sizes)


def test_a_model_without_other_sizes_is_measured_once() -> None:
    plan = SizePlan.of(model(), None)
    assert (plan.points, plan.between, plan.example) == (({},), (), 0)


@pytest.mark.parametrize(
    ("symbol", "expected"),
    [
        (SEQ, [1, 4, 16, 64]),
        (replace(SEQ, example=1), [1, 4]),
        (replace(SEQ, max=40), [1, 4, 16, 40]),
        (replace(SEQ, min=0, example=2), [1, 2, 8]),
        (Symbol("H", 224, 32, None, 32), [32, 224, 896]),
        (Symbol("seq", 8, 8, 8), [8]),
    ],
)
def test_by_default_a_small_the_examples_and_a_large_size(
    symbol: Symbol, expected: list[int]
) -> None:
    plan = SizePlan.of(model(symbol), None)
    assert [point[symbol.name] for point in plan.points] == expected
    assert plan.points[plan.example] == {symbol.name: symbol.example}
    assert all(symbol.holds(point[symbol.name]) for point in plan.all)


def test_two_sizes_are_measured_together_and_with_each_alone_large() -> None:
    plan = SizePlan.of(model(HEIGHT, WIDTH), {"W": (32, 256), "H": (32, 128)})
    assert plan.points == (
        {"H": 32, "W": 32},
        {"H": 32, "W": 256},
        {"H": 64, "W": 64},
        {"H": 128, "W": 32},
        {"H": 128, "W": 256},
    )
    assert plan.example == 2
    assert plan.between
    assert not any(point in plan.points for point in plan.between)
    assert str(plan).startswith("H = 32, W = 32; H = 32, W = 256")


def test_combinations_are_taken_as_they_are_with_the_examples() -> None:
    given = [{"H": 96, "W": 32}, {"W": 32, "H": 32}]
    points = SizePlan.of(model(HEIGHT, WIDTH), given).points
    assert points == ({"H": 32, "W": 32}, {"H": 64, "W": 64}, {"H": 96, "W": 32})


@pytest.mark.parametrize("given", [{"seq": 100}, {"seq": np.array([100])}, [{"seq": 100}]])
def test_one_size_is_measured_alone(given: Any) -> None:
    plan = SizePlan.of(model(SEQ), given)
    assert (plan.points, plan.between, plan.example) == (({"seq": 100},), (), 0)


def test_errors_are_measured_between_the_sizes_furthest_apart() -> None:
    sizes = (1, 2, 4, 8, 64, 70, 512)
    plan = SizePlan.of(model(replace(SEQ, example=2)), {"seq": sizes})
    assert [point["seq"] for point in plan.between] == [3, 6, 23, 189]
    assert [plan.all[i] for i in plan.judged] == list(plan.between)
    neighbours = SizePlan.of(model(replace(SEQ, example=2)), {"seq": (1, 2)})
    assert neighbours.between == ()
    assert list(neighbours.judged) == [0, 1]


@pytest.mark.parametrize(
    ("sizes", "given", "message"),
    [
        ((SEQ,), {"length": (1, 2)}, r"seq\[1\.\.512\]"),
        ((SEQ,), {"seq": ()}, r"seq\[1\.\.512\]"),
        ((SEQ,), {"seq": (1, 513)}, "seq is out of range"),
        ((SEQ,), {"seq": 2.5}, "as many values for each"),
        ((SEQ,), {"seq": (1, 2.5)}, "as many values for each"),
        ((SEQ,), [], "as many values for each"),
        ((SEQ,), [5], "as many values for each"),
        ((SEQ,), {"seq": "16"}, "as many values for each"),
        ((HEIGHT, WIDTH), {"H": (32, 64)}, r"W\[32\.\. by 32\]"),
        ((HEIGHT, WIDTH), {"H": (32, 64), "W": (32,)}, "as many values for each"),
        ((HEIGHT, WIDTH), {"H": (32, 48), "W": (32, 64)}, "H is out of range"),
        ((), {"seq": (1, 2)}, "no size that may vary"),
    ],
)
def test_wrong_sizes_are_refused_with_those_expected(
    sizes: tuple[Symbol, ...], given: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        SizePlan.of(model(*sizes), given)


def described(*dims: tuple[int | str, ...], sizes: tuple[Symbol, ...]) -> Manifest:
    values = tuple(ValueInfo(f"v{i}", "float32", own, 0, 1) for i, own in enumerate(dims))
    found = manifest()
    object.__setattr__(found, "values", values)
    object.__setattr__(found, "model", model(*sizes))
    return found


def test_costs_grow_with_a_length_and_its_square() -> None:
    found = described(("N", "seq", 8), ("N", "seq + 1", 8), ("N", 3), sizes=(SEQ,))
    points = [{"seq": s} for s in (1, 16, 64)]
    assert basis_of(found, points) == ("1", "seq", "seq**2")
    # Two sizes do not show whether costs are curved.
    assert basis_of(found, points[1:]) == ("1", "seq")


def test_costs_of_images_grow_with_the_area() -> None:
    found = described(("N", 3, "H", "W"), ("N", "H//16*(W//16)", 8), sizes=(HEIGHT, WIDTH))
    points = SizePlan.of(model(HEIGHT, WIDTH), None).points
    assert basis_of(found, points) == ("1", "H*W", "H**2*W**2")


def test_two_lengths_cost_each_for_itself() -> None:
    source, target = replace(SEQ, name="src"), replace(SEQ, name="tgt")
    found = described(("N", "src", 8), ("N", "tgt", 8), sizes=(source, target))
    points = [{"src": a, "tgt": b} for a in (1, 16, 64) for b in (1, 16, 64)]
    assert basis_of(found, points) == ("1", "src", "tgt", "src**2", "src*tgt", "tgt**2")
    equal = [{"src": s, "tgt": s} for s in (1, 16, 64)]
    assert basis_of(found, equal) == ("1", "src", "src**2")
