"""The ordered table of subnets: the best within limits, against a plain scan."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from fxelastic.errors import UsageError
from fxelastic.spec import Arch
from fxelastic.spec.limits import Limits
from fxelastic.spec.pareto import ParetoTable

NAMES = ("latency_ms", "weight_bytes", "energy_mj")


@dataclass(frozen=True)
class Known:
    arch: Arch
    accuracy: float
    costs: Mapping[str, float]


def known(i: int, accuracy: float, *costs: float) -> Known:
    return Known(Arch((f"b{i}@0",)), accuracy, dict(zip(NAMES, costs, strict=False)))


def random_table(seed: int, n: int = 60) -> ParetoTable[Known]:
    """Costs and accuracies with many ties."""
    rng = random.Random(seed)
    return ParetoTable(
        known(i, rng.randrange(12) / 12, *(rng.randint(1, 9) * 0.5 for _ in NAMES))
        for i in range(n)
    )


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("limited", [NAMES[:1], NAMES[1:2], NAMES[:2], NAMES[1:], NAMES])
def test_the_best_within_limits_is_the_best(seed: int, limited: tuple[str, ...]) -> None:
    table, rng = random_table(seed), random.Random(seed)
    for _ in range(30):
        bounds = {name: rng.choice((0.25, 0.5, 1.0, 1.7, 2.0, 3.0, 99.0)) for name in limited}
        fitting = [e for e in table.entries if all(e.costs[n] <= b for n, b in bounds.items())]
        found = table.best(bounds)
        assert found == table.best(Limits(bounds))
        if not fitting:
            assert found is None
            continue
        assert found is not None
        assert found in fitting
        first = limited[0] if len(limited) == 1 else "latency_ms"
        assert (-found.accuracy, found.costs[first]) == min(
            (-e.accuracy, e.costs[first]) for e in fitting
        )
        if limited == ("latency_ms",):
            assert table.best(bounds["latency_ms"]) is found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", NAMES)
def test_no_entry_beats_one_of_the_frontier(seed: int, name: str) -> None:
    table = random_table(seed)
    kept = table.by(name)
    assert [e.costs[name] for e in kept] == sorted({e.costs[name] for e in kept})
    assert [e.accuracy for e in kept] == sorted({e.accuracy for e in kept})
    for entry in table.entries:
        assert any(
            k.costs[name] <= entry.costs[name] and k.accuracy >= entry.accuracy for k in kept
        )
    assert table.frontier == table.by("latency_ms") == tuple(table)


@pytest.mark.parametrize("column", ["accuracy", *NAMES])
def test_a_range_of_any_column_is_in_its_order(column: str) -> None:
    table = random_table(3)

    def value(entry: Known) -> float:
        return entry.accuracy if column == "accuracy" else entry.costs[column]

    assert sorted(map(value, table.entries)) == list(map(value, table.ordered(column)))
    for low, high in ((0.25, 0.5), (1.5, 3.0), (99.0, 100.0), (2.0, 1.0)):
        found = table.between(column, low, high)
        expected = {e.arch for e in table.entries if low <= value(e) <= high}
        assert {e.arch for e in found} == expected
        assert list(map(value, found)) == sorted(map(value, found))
    assert table.between(column) == table.ordered(column)


def test_entries_that_none_dominates_are_found_within_three_limits() -> None:
    """There are more entries than an exact index holds."""
    rng = random.Random(0)
    entries = []
    for i in range(2500):
        parts = [rng.random() + 0.01 for _ in range(4)]
        length = sum(part * part for part in parts) ** 0.5
        entries.append(known(i, parts[0] / length, *(1.5 - part / length for part in parts[1:])))
    table = ParetoTable(entries)
    for _ in range(25):
        bounds = {name: rng.uniform(0.5, 1.5) for name in NAMES}
        fitting = [e for e in entries if all(e.costs[n] <= b for n, b in bounds.items())]
        expected = max(fitting, key=lambda e: e.accuracy, default=None)
        assert table.best(bounds) is expected
        assert table.best(Limits(bounds)) is expected


def test_added_entries_replace_those_of_the_same_subnet() -> None:
    table = ParetoTable([known(0, 0.5, 1.0, 9.0), known(1, 0.7, 2.0, 9.0)])
    more = table.added([known(1, 0.4, 2.0, 9.0), known(2, 0.6, 1.5, 9.0)])
    limits = {"latency_ms": 2.5, "weight_bytes": 10.0}
    best, after = table.best(limits), more.best(limits)
    assert (len(table.entries), len(more.entries)) == (2, 3)
    assert best is not None
    assert after is not None
    assert (best.accuracy, after.accuracy) == (0.7, 0.6)


def test_subnets_are_left_out_and_kept() -> None:
    table = ParetoTable([known(0, 0.5, 1.0), known(1, 0.7, 2.0), known(2, 0.6, 3.0)])
    archs = [entry.arch for entry in table.entries]
    assert [e.arch for e in table] == archs[:2]
    assert [e.arch for e in ParetoTable(table.entries, without={archs[1]})] == [archs[0], archs[2]]
    assert [e.arch for e in table.only({archs[2]})] == [archs[2]]
    assert table.quickest is table.entries[0]


def test_an_empty_table_has_no_best() -> None:
    empty = ParetoTable[Known]([])
    assert (len(empty), empty.quickest, empty.best(5)) == (0, None, None)
    assert empty.best({"latency_ms": 1, "flops": 2}) is None


@pytest.mark.parametrize("latency", [0.0, -1.0, float("nan"), float("inf")])
def test_an_entry_without_a_rank(latency: float) -> None:
    with pytest.raises(UsageError, match="can't be ranked"):
        ParetoTable([known(0, 0.5, latency)])
    with pytest.raises(UsageError, match="can't be ranked"):
        ParetoTable([known(0, float("nan"), 1.0)])
    with pytest.raises(UsageError, match="can't be ranked"):
        ParetoTable([Known(Arch(("a@0",)), 0.5, {})])


def test_a_resource_that_entries_do_not_have() -> None:
    table = ParetoTable([known(0, 0.5, 1.0)])
    for limits in ({"weight_bytes": 1}, {"weight_bytes": 1, "latency_ms": 5}):
        with pytest.raises(UsageError, match="has no cost for weights"):
            table.best(limits)
