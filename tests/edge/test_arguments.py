"""Arguments of a wrong kind or value are refused, and the message says what was expected."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxelastic import edge
from fxelastic.errors import BundleError, UsageError
from fxelastic.spec import Arch
from fxelastic.spec.latency_table import LatencyTable
from fxelastic.spec.symbols import Symbol
from tests.edge.serving.tiny_bundle import steady, write_bundle

PATH: Any = Path("somewhere")
CALLS: dict[str, Callable[[Any], object]] = {
    "profile": lambda path: edge.profile(path),
    "assemble": lambda path: edge.assemble(path, None, "subnet.onnx"),  # type: ignore[arg-type]
    "search": lambda path: edge.search(path, None, None),  # type: ignore[arg-type]
    "serve": lambda path: edge.serve(path, None, [], budget_ms=1),
}


@pytest.mark.parametrize("path", [PATH, str(PATH)], ids=["path", "text"])
@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_a_path_is_no_bundle(call: Callable[[Any], object], path: Any) -> None:
    with pytest.raises(
        UsageError, match=r"bundle must be a Bundle, not a path[^$]*edge\.load\(path\)"
    ):
        call(path)


def test_a_path_is_no_table() -> None:
    bundle: Any = object()
    with pytest.raises(
        UsageError, match=r"table must be a LatencyTable, not a path[^$]*LatencyTable\.load"
    ):
        edge.search(bundle, PATH, None)
    with pytest.raises(
        UsageError, match=r"table must be a LatencyTable, not a path[^$]*LatencyTable\.load"
    ):
        edge.serve(bundle, PATH, [], budget_ms=1)


def test_a_path_is_no_pool() -> None:
    bundle: Any = object()
    with pytest.raises(
        UsageError, match=r"pool must be a SubnetPool, not a path[^$]*SubnetPool\.load"
    ):
        edge.serve(bundle, None, PATH, budget_ms=1)


X = np.random.default_rng(0).standard_normal((10, 8, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> edge.Bundle:
    return write_bundle(tmp_path_factory.mktemp("arguments") / "bundle", depth=2)


@pytest.fixture(scope="module")
def table(bundle: edge.Bundle) -> LatencyTable:
    return steady(edge.profile(bundle, threads=1, n_samples=3, n_subnets=0, n_held_out=0))


@pytest.fixture(scope="module")
def result(bundle: edge.Bundle, table: LatencyTable) -> edge.SearchResult:
    return edge.search(bundle, table, X, budget="90%", threads=1, force=True)


def test_arguments_in_another_order_are_refused(
    bundle: Any, table: Any, result: edge.SearchResult
) -> None:
    pool: Any = result.pool
    with pytest.raises(UsageError, match=r"pool must be a SubnetPool\n.*\n.*a LatencyTable"):
        edge.prepare(bundle, table, pool)
    with pytest.raises(UsageError, match="pool must be a SubnetPool"):
        edge.serve(bundle, pool, table, budget_ms=1)
    with pytest.raises(UsageError, match="bundle must be a Bundle"):
        edge.search(table, bundle, X, budget="70%")
    with pytest.raises(UsageError, match=r"table must be a LatencyTable\n.*\n.*a NoneType"):
        edge.plan(bundle, None, X)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"pass its pool: result\.pool"):
        edge.serve(bundle, table, result, budget_ms=1)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="tables must be a mapping"):
        edge.match_table(bundle, [table])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="an entry of the pool lacks latency_ms and accuracy"):
        edge.serve(bundle, table, [type("Entry", (), {"arch": None})], budget_ms=1)


@pytest.mark.parametrize(
    "option",
    [
        *({"batch_size": value} for value in ("3", 1.5, math.inf, 0, True)),
        *({"threads": value} for value in ("3", None, 1.5, -1)),
        *({"n_samples": value} for value in ("3", None, math.nan, math.inf, 2)),
        *({name: 1.5} for name in ("n_subnets", "n_held_out", "cache_runs", "seed")),
        *({"time_budget_s": value} for value in ("3", math.nan, 0)),
        *({"memory_bytes": value} for value in ("3", math.nan, 0)),
        {"seed": -1},
        {"sizes": 5},
    ],
    ids=str,
)
def test_a_profile_refuses_what_is_no_number(bundle: edge.Bundle, option: Any) -> None:
    expected = "no size that may vary" if "sizes" in option else f"{next(iter(option))} must be"
    with pytest.raises(UsageError, match=expected):
        edge.profile(bundle, **option)


@pytest.mark.parametrize(
    "option",
    [
        *({"held_out": value} for value in (None, "0.2", math.nan)),
        *({"tolerance": value} for value in (None, "0.1")),
        *({"confidence": value} for value in (None, "1")),
        *({"cache_bytes": value} for value in (-1, "3", math.nan)),
        *({"memory_bytes": value} for value in (0, "3", math.nan)),
        *({"max_loss": value} for value in ("0.1", np.int64(2), ())),
        {"delta": None},
        {"max_loss": 0.1, "exit_confidence": "sure"},
        {"limits": 20},
    ],
    ids=str,
)
def test_a_search_refuses_what_is_no_number(
    bundle: edge.Bundle, table: LatencyTable, option: Any
) -> None:
    with pytest.raises(UsageError):
        edge.search(bundle, table, X, force=True, **{"budget": "70%", **option})


@pytest.mark.parametrize("found", [None, 3, (1, 2, 3), ("a", 1), (10**400, 1)], ids=repr)
def test_a_score_that_is_no_sum_and_count_is_refused(
    bundle: edge.Bundle, table: LatencyTable, found: Any
) -> None:
    with pytest.raises(UsageError, match="must return a sum and a count"):
        edge.search(bundle, table, X, budget="70%", force=True, score=lambda _, __: found)


def test_too_few_samples_for_a_cascade_are_refused_before_the_search(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bundle: edge.Bundle, table: LatencyTable
) -> None:
    exits = write_bundle(tmp_path / "exits", depth=2, exits=(1,))
    costs = steady(edge.profile(exits, threads=1, n_samples=3, n_subnets=0, n_held_out=0))
    steps: list[float] = []
    how: dict[str, Any] = {"budget": "90%", "max_loss": 0.01, "force": True}
    with pytest.raises(UsageError, match=r"samples are too few to bound a loss of 0\.01"):
        edge.search(exits, costs, X, **how, progress=lambda ms, _: steps.append(ms))
    assert not steps
    with caplog.at_level(logging.WARNING):
        assert not edge.search(bundle, table, X, **how).pool.cascades
    assert "the bundle has no early exits" in caplog.text


def test_limits_that_no_subnet_keeps_prepare_nothing(
    bundle: edge.Bundle, result: edge.SearchResult
) -> None:
    with pytest.raises(UsageError, match="no subnet of the pool keeps the limits"):
        edge.prepare(bundle, result.pool, limits={"weight_bytes": 1})
    with pytest.raises(UsageError, match="memory_bytes must be above 0"):
        edge.prepare(bundle, result.pool, memory_bytes="3")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no size 'seq'"):
        edge.prepare(bundle, result.pool, sizes={"seq": 3})


@pytest.mark.parametrize("size", [8.5, math.nan, "8", True])
def test_sizes_are_whole_numbers(tmp_path: Path, size: Any) -> None:
    sized = write_bundle(tmp_path / "sized", depth=1, sizes=(Symbol("H", 8, 4, 32),))
    entry = edge.PoolEntry(sized.space.original, 1.0, 1.0)
    with pytest.raises(UsageError, match="H must be a whole number"):
        edge.serve(sized, None, [entry], budget_ms=1, sizes={"H": size})


def test_serving_refuses_what_it_can_t_use(
    bundle: edge.Bundle, table: LatencyTable, result: edge.SearchResult, tmp_path: Path
) -> None:
    given: Any = (bundle, table, result.pool)
    for name in ("preload", "monitor", "clock", "policy"):
        option: dict[str, Any] = {name: None}
        with pytest.raises(UsageError, match=f"{name} must be"):
            edge.serve(*given, budget_ms=1, **option)
    with pytest.raises(UsageError, match=r"the latency table .* can't be read"):
        edge.serve(*given, budget_ms=1, table_path=tmp_path)
    with edge.serve(*given, budget_ms=1, threads=1) as runtime:
        for limits in (5, "70%", [{"flops": 1}]):
            with pytest.raises(UsageError, match="limits must be a mapping"):
                runtime.limits = limits  # type: ignore[assignment]
        for entries in (None, 5, [1]):
            with pytest.raises(UsageError):
                runtime.add(entries)  # type: ignore[arg-type]
        foreign = edge.SubnetPool.of("another", result.pool.entries)
        with pytest.raises(UsageError, match="the pool belongs to another bundle"):
            runtime.add(foreign)
        unknown = replace(result.best, arch=Arch(("skip@7",)))
        with pytest.raises(UsageError, match="skip@7"):
            runtime.add([unknown])
        # The table says what they cost, as at the start.
        slow = [replace(entry, latency_ms=9 * entry.ms, costs={}) for entry in result.pool]
        before = {entry.arch: entry.ms for entry in runtime.entries}
        runtime.add(edge.SubnetPool.of(bundle.digest, slow))
        assert {entry.arch: entry.ms for entry in runtime.entries} == pytest.approx(before)


def test_data_to_search_on_while_serving_is_checked_at_once(
    bundle: edge.Bundle, table: LatencyTable, result: edge.SearchResult, tmp_path: Path
) -> None:
    how: dict[str, Any] = {"budget_ms": 1, "force": True, "threads": 1}
    with pytest.raises(UsageError):
        edge.serve(bundle, table, result.pool, data=np.zeros((3, 3), np.float32), **how)
    result.pool.save(tmp_path / "pool.json")
    with pytest.raises(UsageError, match="the data is not that of the pool"):
        edge.serve(bundle, table, result.pool, data=X + 1, pool_path=tmp_path / "pool.json", **how)
    with edge.serve(bundle, table, result.pool, data=X, pool_path=tmp_path / "pool.json", **how):
        pass


def test_a_score_that_fails_is_named(bundle: edge.Bundle, table: LatencyTable) -> None:
    def broken(outputs: Any, targets: Any) -> tuple[float, float]:
        raise ZeroDivisionError("by zero")

    how: dict[str, Any] = {"budget": "70%", "force": True}
    with pytest.raises(UsageError, match=r"the score broken failed[^$]*ZeroDivisionError: by zero"):
        edge.search(bundle, table, X, score=broken, **how)

    def not_a_number(outputs: Any, targets: Any) -> tuple[float, float]:
        return math.nan, 1.0

    with pytest.raises(BundleError, match=r"the score not_a_number of the subnet .* is not finite"):
        edge.search(bundle, table, X, score=not_a_number, **how)


def test_samples_and_targets_with_nan_are_named(bundle: edge.Bundle, table: LatencyTable) -> None:
    how: dict[str, Any] = {"budget": "70%", "force": True, "held_out": 0.0}
    bad = X.copy()
    bad[3, 0, 0, 0] = math.nan
    with pytest.raises(UsageError, match="a sample holds NaN in x"):
        edge.search(bundle, table, (bad, np.zeros(len(X), np.int64)), **how)
    with edge.Executor(bundle, 1) as executor:
        targets = executor.run(bundle.space.original, {"x": X})[0].copy()
    targets[2] = math.nan
    with pytest.raises(UsageError, match="a target is NaN throughout"):
        edge.search(bundle, table, (X, targets), score="cosine", **how)


def test_one_value_is_no_array_of_samples(bundle: edge.Bundle, table: LatencyTable) -> None:
    with pytest.raises(UsageError, match="'x' is a single value"):
        edge.search(bundle, table, {"x": np.float32(1)}, budget="70%", force=True)


def test_what_would_be_lost_is_refused(
    bundle: edge.Bundle, table: LatencyTable, result: edge.SearchResult, tmp_path: Path
) -> None:
    own = bundle.path / next(iter(bundle.files))
    before = own.read_bytes()
    with pytest.raises(UsageError, match="is a file of the bundle"):
        edge.assemble(bundle, bundle.space.original, own)
    assert own.read_bytes() == before
    with pytest.raises(UsageError, match="Is a directory"):
        result.pool.save("/")
    with pytest.raises(UsageError, match="/ can't be written"):
        edge.search(bundle, table, X, budget="70%", force=True, path="/")
    with pytest.raises(UsageError, match="a score with a name"):
        edge.search(
            *(bundle, table, X),
            **{"budget": "70%", "force": True, "path": tmp_path / "pool.json"},
            score=lambda outputs, targets: (1.0, 1.0),
        )


@pytest.mark.parametrize("limits", ["60%", b"60%"])
def test_a_text_is_no_list_of_limits(bundle: edge.Bundle, table: LatencyTable, limits: Any) -> None:
    with pytest.raises(UsageError, match="limits must be a mapping"):
        edge.search(bundle, table, X, limits=limits, force=True)
    if isinstance(limits, bytes):
        with pytest.raises(UsageError, match="must be a number above 0, or a share"):
            edge.search(bundle, table, X, budget=limits, force=True)


def test_a_bundle_that_must_be_signed_needs_a_key(bundle: edge.Bundle) -> None:
    for how in ({"trusted_keys": []}, {"least_counter": 5}):
        with pytest.raises(UsageError, match="there is no key to check a signature with"):
            edge.load(bundle.path, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("bound", [None, math.nan, "70%", "fast", [1]], ids=repr)
def test_a_pool_refuses_what_is_no_bound(result: edge.SearchResult, bound: Any) -> None:
    with pytest.raises(UsageError, match="the limit on latency_ms must be"):
        result.pool.best_under(bound)


def test_a_table_that_does_not_fit_is_named(bundle: edge.Bundle, table: LatencyTable) -> None:
    other = replace(table, bundle_digest="0" * 64, structure_digest="1" * 64)
    with pytest.raises(UsageError, match="board 2: the latency table belongs to another bundle"):
        edge.match_table(bundle, {"board 1": table, "board 2": other})


def test_a_plan_with_a_budget_above_the_original_measures_cheaper_subnets(
    bundle: edge.Bundle, table: LatencyTable
) -> None:
    plan = edge.plan(bundle, table, X, budget="200%", n_subnets=10**9, threads=1, force=True)
    assert plan.points[0].arch is not None
    assert 4 < len(plan.measured) <= bundle.space.count()
