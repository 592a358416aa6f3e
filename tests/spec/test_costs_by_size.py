"""Latency tables whose costs are functions of the sizes of the inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fxelastic.errors import UsageError
from fxelastic.spec import Arch
from fxelastic.spec.branch_latency import BranchLatency
from fxelastic.spec.costs import BranchCosts, Costs, ModelError
from fxelastic.spec.costs_by_size import Correction, CostsBySize, ModeBySize
from fxelastic.spec.latency_table import LatencyTable
from fxelastic.spec.symbols import Symbol

SEQ = Symbol("seq", 8, 1, 512)
HEIGHT, WIDTH = Symbol("H", 64, 32, None, 32), Symbol("W", 64, 32, None, 32)
ORIGINAL = Arch(("original@0", "original@1"))
QUICK = Arch(("merged@0-2",))
BRANCHES = (*ORIGINAL, *QUICK)
#: The latency of each branch: 1 + s and s + s², or 1; of a run besides them 0.5 s.
LATENCY = ((1.0, 0.0, 1.0), (1.0, 1.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.5, 0.0))
PEAK = ((0.0, 8.0, 0.0), (100.0, 0.0, 0.0), (0.0, 4.0, 0.0), (0.0, 0.0, 0.0))


def terms(rows: tuple[tuple[float, ...], ...]) -> tuple[BranchCosts, ...]:
    return tuple(
        BranchCosts(dict(zip(BRANCHES, column, strict=False)), column[-1])
        for column in zip(*rows, strict=True)
    )


def table_of(
    symbols: tuple[Symbol, ...],
    measured: tuple[Mapping[str, int], ...],
    basis: tuple[str, ...],
    corrections: tuple[tuple[float, float], ...] = (),
) -> LatencyTable:
    latency = BranchCosts(dict.fromkeys(BRANCHES, 1.0), 0.0, ModelError(0.02, 0.05, 12, 2))
    others = {
        "weight_bytes": BranchCosts(dict.fromkeys(BRANCHES, 10.0)),
        "peak_memory_bytes": BranchCosts(dict.fromkeys(BRANCHES, 10.0)),
    }
    mode = ModeBySize(
        {"latency_ms": terms(LATENCY), "peak_memory_bytes": terms(PEAK)},
        Correction((1.0, 1.0, 1.0), corrections),
    )
    table = LatencyTable(
        "d" * 64,
        {},
        1,
        1,
        "CPUExecutionProvider",
        {name: BranchLatency(1.0, 1.0, 1.0, 5, 10, 10) for name in BRANCHES},
        {"assembled": Costs({"latency_ms": latency, **others})},
        by_size=CostsBySize(symbols, measured, basis, {"assembled": mode}),
    )
    example = table.at({symbol.name: symbol.example for symbol in symbols})
    return replace(table, modes=example.modes, sizes=example.sizes)


TABLE = table_of((SEQ,), ({"seq": 4}, {"seq": 64}), ("1", "seq", "seq**2"))


def original_ms(s: float) -> float:
    return 2 + 1.5 * s + s**2


def test_costs_follow_the_size() -> None:
    for seq in (4, 10, 64):
        table = TABLE.at({"seq": seq})
        assert table.by_size is None
        assert table.sizes == ({"seq": seq},)
        assert table.costs() == {
            "original@0": 1 + seq**2,
            "original@1": 1 + seq,
            "merged@0-2": seq,
        }
        assert table.overhead_ms() == 0.5 * seq
        for arch, expected in ((ORIGINAL, original_ms(seq)), (QUICK, 1.5 * seq)):
            assert TABLE.predict_ms(arch, sizes={"seq": seq}) == pytest.approx(expected)
            assert TABLE.predict(arch, {"seq": seq})["latency_ms"] == pytest.approx(expected)
            assert table.predict_ms(arch) == pytest.approx(expected)
        # A peak is a maximum over branches; weights do not depend on sizes.
        assert TABLE.predict(ORIGINAL, {"seq": seq})["peak_memory_bytes"] == max(100, 8 * seq)
        assert TABLE.predict(ORIGINAL, {"seq": seq})["weight_bytes"] == 20


def test_without_sizes_costs_are_those_of_the_example() -> None:
    assert TABLE.predict(ORIGINAL) == TABLE.predict(ORIGINAL, {"seq": SEQ.example})
    assert TABLE.sizes == ({"seq": SEQ.example},)


def test_the_mean_is_over_every_input() -> None:
    sizes = [{"seq": 4}, {"seq": 64}, {"seq": 4}]
    table = TABLE.mean_over(iter(sizes))
    mean = (2 * original_ms(4) + original_ms(64)) / 3
    assert table.predict_ms(ORIGINAL) == pytest.approx(mean)
    assert table.sizes == ({"seq": 4}, {"seq": 4}, {"seq": 64})
    assert table.predict(ORIGINAL)["peak_memory_bytes"] == 8 * 64
    with pytest.raises(UsageError, match="no inputs"):
        TABLE.mean_over([])


@pytest.mark.parametrize(("percentile", "seq"), [(0, 5), (60, 7), (61, 30), (90, 30), (100, 60)])
def test_a_percentile_is_of_the_inputs_latencies(percentile: float, seq: int) -> None:
    sizes = [{"seq": s} for s in (60, 5, 7, 5, 6, 30, 7, 6, 30, 30)]
    assert TABLE.at_percentile(sizes, percentile).sizes == ({"seq": seq},)


def test_a_percentile_out_of_range_is_refused() -> None:
    wrong: Any
    for wrong in (101, -1, float("nan"), "95", True):
        with pytest.raises(UsageError, match="percentile is out of range"):
            TABLE.at_percentile([{"seq": 5}], wrong)
    with pytest.raises(UsageError, match="no inputs"):
        TABLE.at_percentile([], 50)


def test_sizes_that_were_not_measured_are_an_extrapolation() -> None:
    assert TABLE.at({"seq": 64}).trusted()
    for table in (
        TABLE.at({"seq": 65}),
        TABLE.at({"seq": 3}),
        TABLE.mean_over([{"seq": 10}, {"seq": 100}]),
    ):
        assert not table.trusted()
        assert not table.problem()
        assert "outside of the measured 4 to 64" in table.weakness()
        table.check_usable()
    assert TABLE.at({"seq": 65}).predict_ms(ORIGINAL) == pytest.approx(original_ms(65))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({}, r"seq\[1\.\.512\]"),
        ({"length": 5}, r"length"),
        ({"seq": 5, "batch": 1}, "batch"),
        ({"seq": 513}, "seq is out of range"),
        ({"seq": 0}, "seq is out of range"),
        ({"seq": 5.5}, "seq is out of range"),
        (5, "sizes=5"),
    ],
)
def test_wrong_sizes_are_refused_with_those_expected(sizes: Any, message: str) -> None:
    for call in (TABLE.at, lambda s: TABLE.predict_ms(ORIGINAL, sizes=s)):
        with pytest.raises(UsageError, match=message):
            call(sizes)


def test_a_table_of_one_size_is_for_that_size_alone() -> None:
    table = TABLE.at({"seq": 10})
    assert table.at({"seq": 10}) is table.mean_over([{"seq": 10}]) is table
    assert table.predict_ms(ORIGINAL, sizes={"seq": 10}) == table.predict_ms(ORIGINAL)
    for call in (table.at, lambda s: table.predict_ms(ORIGINAL, sizes=s)):
        with pytest.raises(UsageError, match="seq = 10"):
            call({"seq": 11})
    plain = replace(table, sizes=())
    with pytest.raises(UsageError, match="sizes=None, which means batch size 1"):
        plain.mean_over([{"seq": 10}])


def test_areas_count_where_height_and_width_vary() -> None:
    measured = ({"H": 32, "W": 32}, {"H": 128, "W": 128})
    table = table_of((HEIGHT, WIDTH), measured, ("1", "H*W", "(H*W)**2"))
    assert table.predict_ms(QUICK, sizes={"H": 64, "W": 96}) == pytest.approx(1.5 * 64 * 96)
    assert not table.at({"H": 160, "W": 32}).trusted()
    with pytest.raises(UsageError, match=r"H\[32\.\. by 32\]"):
        table.at({"H": 48, "W": 64})


def test_corrections_are_interpolated_between_the_measured_sizes() -> None:
    low, high = (1 + s + s**2 for s in (4, 64))
    table = table_of((SEQ,), TABLE.by_size.measured, TABLE.by_size.basis, ((low, 1.5), (high, 1.0)))
    for seq, factor in ((1, 1.5), (4, 1.5), (64, 1.0), (200, 1.0)):
        sizes = {"seq": seq}
        assert table.predict_ms(ORIGINAL, sizes=sizes) == pytest.approx(factor * original_ms(seq))
        assert table.at(sizes).predict_ms(ORIGINAL) == pytest.approx(factor * original_ms(seq))
        assert table.at(sizes).costs("assembled", "peak_memory_bytes")["merged@0-2"] == 4 * seq
    between = table.predict_ms(QUICK, sizes={"seq": 16}) / (1.5 * 16)
    assert 1.0 < between < 1.5
    mean = table.mean_over([{"seq": 4}, {"seq": 64}])
    assert mean.predict_ms(ORIGINAL) == pytest.approx((1.5 * original_ms(4) + original_ms(64)) / 2)


def test_a_change_of_costs_applies_at_every_size() -> None:
    def doubled(costs: BranchCosts) -> BranchCosts:
        return replace(costs, costs={name: 2 * cost for name, cost in costs.costs.items()})

    table = TABLE.mapped(doubled)
    assert table.costs() == TABLE.at({"seq": 8}).mapped(doubled).costs()
    for seq in (4, 100):
        assert table.at({"seq": seq}).costs() == TABLE.at({"seq": seq}).mapped(doubled).costs()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    several = TABLE.mean_over([{"seq": 4}, {"seq": 4}, {"seq": 100}])
    for table in (TABLE, TABLE.at({"seq": 100}), several):
        table.save(tmp_path / "table.json")
        assert LatencyTable.load(tmp_path / "table.json") == table


def test_a_table_without_sizes_is_written_as_before() -> None:
    plain = replace(TABLE, by_size=None, sizes=())
    assert {"sizes", "by_size", "extrapolation"}.isdisjoint(json.loads(plain.to_json()))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("symbols",), []),
        (("symbols", 0, "name"), "1seq"),
        (("symbols", 0, "name"), "length"),
        (("measured", 0, "seq"), 0),
        (("measured",), []),
        (("basis", 1), "seq +"),
        (("basis", 1), "width"),
        (("basis", 1), "seq - 100"),
        (("basis",), ["1", "seq"]),
        (("modes", "assembled", "original"), [1.0]),
        (("modes", "assembled", "corrections"), [[2.0, 1.0], [1.0, 1.0]]),
        (("modes", "assembled", "corrections"), [[1.0, 0.0]]),
        (("modes", "assembled", "terms"), {}),
        (("modes", "assembled", "terms", "latency_ms", 0, "overhead"), -1.0),
        (("modes", "assembled", "terms", "latency_ms", 0, "costs", "original@0"), -1.0),
        (("modes", "assembled", "terms", "latency_ms", 0, "costs"), {"original@0": 1.0}),
        (("modes", "assembled", "terms", "speed"), []),
        (("modes",), {}),
    ],
)
def test_malformed_costs_by_size_are_refused(place: tuple[Any, ...], value: object) -> None:
    data = json.loads(TABLE.to_json())
    at: Any = data["by_size"]
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    with pytest.raises(UsageError, match="not a latency table"):
        LatencyTable.from_json(json.dumps(data).encode())
