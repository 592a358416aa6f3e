"""A search that is short of time has an answer near every budget, and says what it lacks."""

from __future__ import annotations

import functools
import json
import logging
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxelastic import edge
from fxelastic.cli.app import main
from fxelastic.edge.searching import search as search_module
from fxelastic.edge.searching.additive import additive_best, quality_costs, unmeasured_costs
from fxelastic.edge.searching.distortion import Distortion
from fxelastic.edge.searching.proposals import all_subnets
from fxelastic.edge.searching.schedule import Schedule, answer, spread
from fxelastic.edge.searching.study import SearchAbortedError, Study, strategy, strategy_names
from fxelastic.errors import UsageError
from fxelastic.spec import Arch
from fxelastic.spec.latency_table import LatencyTable
from tests.edge.searching.timed_executor import (
    OPENING_S,
    Clock,
    studies,
    true_score,
)
from tests.edge.serving.tiny_bundle import steady, write_bundle
from tests.spec.spaces import chain

SHARES = [0.9, 0.5, 0.7]
N_SAMPLES = 200
TIMES_S = [0.001, 0.3, 1.0, 3.0, 10.0, 40.0, 200.0]


def searches(name: str) -> list[Study]:
    space, count = (chain(4), 120) if name == "exhaustive" else (chain(9), 60)
    return studies(space, SHARES, N_SAMPLES, count, Clock())


def run(name: str, given: list[Study], time_s: float, n_held_out: int = 0) -> Schedule:
    clock = given[0].clock
    schedule = Schedule(given, clock() + time_s, n_held_out)
    schedule.run(strategy(name)())
    return schedule


def one_evaluation_s(given: list[Study]) -> float:
    """The original's run and a subnet's, on one sample, with their sessions opened."""
    costs, space = given[0].costs, given[0].space
    return len(space.original) * OPENING_S + 0.01 * space.cost(space.original, costs)


@pytest.mark.parametrize("time_s", TIMES_S)
@pytest.mark.parametrize("name", strategy_names())
def test_no_result_is_below_the_additive_best_and_time_is_kept(name: str, time_s: float) -> None:
    given = searches(name)
    space, begin_s = given[0].space, given[0].clock()
    run(name, given, time_s)
    took_s = given[0].clock() - begin_s
    assert took_s <= time_s + max(0.1 * time_s, one_evaluation_s(given))
    assert given[0].evaluator.known, "one subnet is evaluated whatever the time"
    costs = unmeasured_costs(space)
    for study in given:
        found, plain = answer(study), additive_best(study, costs)
        assert found is not None
        assert plain is not None
        assert study.fits(found)
        assert true_score(found) >= true_score(plain) - 1e-9
        assert study.cost(found) >= 0.9 * study.cost(plain) or found in study.scores


@pytest.mark.parametrize("time_s", [10.0, math.inf])
@pytest.mark.parametrize("name", strategy_names())
def test_every_additive_best_comes_before_anything_is_learned(
    name: str, time_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = searches(name)
    evaluator, events = given[0].evaluator, list[Any]()
    run_batch, distortion = evaluator.run_batch, evaluator.distortion

    def noted(archs: Any, *args: Any, **options: Any) -> Any:
        events.extend(archs)
        return run_batch(archs, *args, **options)

    def measured(*args: Any, **options: Any) -> Any:
        events.append("errors of branches")
        return distortion(*args, **options)

    monkeypatch.setattr(evaluator, "run_batch", noted)
    monkeypatch.setattr(evaluator, "distortion", measured)
    costs = unmeasured_costs(given[0].space)
    bests = [additive_best(study, costs) for study in given]
    Schedule(given, given[0].clock() + time_s).run(strategy(name)())
    n_before = max(events.index(best) for best in bests)
    assert set(events[: n_before + 1]) == set(bests)
    assert len(events) > n_before + 1


def test_a_strategy_that_does_not_fit_is_refused_before_anything_is_evaluated() -> None:
    given = studies(chain(4), [0.5, 1.5], N_SAMPLES, 20, Clock())
    with pytest.raises(UsageError, match="more subnets fit than may be evaluated"):
        Schedule(given).run(strategy("exhaustive")())
    assert not given[0].evaluator.known


def test_budgets_far_from_each_other_come_first() -> None:
    assert [spread(n) for n in (0, 1, 2, 5)] == [[], [0], [0, 1], [0, 4, 2, 3, 1]]
    for n in range(3, 12):
        assert sorted(spread(n)) == list(range(n))


@pytest.mark.parametrize("time_s", [1.0, 3.0, 10.0])
def test_scores_are_on_fewer_samples_where_time_is_short(time_s: float) -> None:
    given = searches("evolutionary")
    schedule = run("evolutionary", given, time_s)
    evaluator = given[0].evaluator
    assert evaluator.is_shortened
    assert 0 < len(evaluator.data) < N_SAMPLES
    assert schedule.needed_s > time_s
    again = searches("evolutionary")
    run("evolutionary", again, schedule.needed_s)
    assert not again[0].evaluator.is_shortened
    assert all(study.incumbent in study.scores for study in again)


def test_a_late_winner_on_few_samples_must_be_better_by_more_than_chance() -> None:
    given = searches("additive")
    run("additive", given, 10.0)
    study, evaluator = given[0], given[0].evaluator
    assert evaluator.is_shortened
    other = next(a for a in study.scores if a != study.incumbent)
    assert study.incumbent is not None
    sizes = [size for _, size in evaluator._batch_scores[study.incumbent]]
    assert len(sizes) > 2

    def scored(arch: Arch, values: list[float]) -> None:
        evaluator._batch_scores[arch] = list(zip(values, sizes, strict=True))
        evaluator.known[arch] = float(np.average(values, weights=sizes))
        study.scores[arch] = evaluator.known[arch]

    for arch in study.scores:
        scored(arch, [0.1] * len(sizes))
    scored(study.incumbent, [0.5] * len(sizes))
    scored(other, [0.9, *[0.45] * (len(sizes) - 2), 0.7])
    assert study.scores[other] > study.scores[study.incumbent]
    assert answer(study) == study.incumbent
    scored(other, [0.6] * len(sizes))
    assert answer(study) == other


def test_what_was_searched_before_is_compared_on_all_samples() -> None:
    given = searches("evolutionary")
    study, evaluator = given[0], given[0].evaluator
    near = [arch for arch in all_subnets(study.space) if study.fits(arch)]
    near = sorted(near, key=study.cost)[-3:]
    evaluator.known.update({arch: true_score(arch) for arch in near})
    run("evolutionary", given, 0.5)
    assert not evaluator.is_shortened
    assert answer(study) == max(near, key=true_score)


def test_a_progress_ends_it_at_any_time() -> None:
    for n_calls in range(4):
        given = searches("evolutionary")
        left = [n_calls]

        def told(study: Study, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise SearchAbortedError

        for study in given:
            study.progress = told
        with pytest.raises(SearchAbortedError):
            run("evolutionary", given, 100.0)


class TestTheAdditiveBest:
    """By errors that are known, or by what branches leave out."""

    @pytest.mark.parametrize("share", [0.4, 0.6, 0.8, 0.95, 1.0, 2.0])
    def test_it_is_the_best_of_all(self, share: float) -> None:
        study = studies(chain(6), [share], 1, 1, Clock())[0]
        costs = {spec.id: 1 - true_score(Arch((spec.id,))) for spec in study.space.branches}
        found = additive_best(study, costs)
        assert found is not None
        best = max(true_score(arch) for arch in all_subnets(study.space) if study.fits(arch))
        assert true_score(found) == pytest.approx(best, abs=1e-9)
        if share >= 1:
            assert found == study.space.original

    @pytest.mark.parametrize("most", [2, 4, 6])
    def test_it_keeps_other_limits(self, most: int) -> None:
        space = chain(8)
        weights = {spec.id: float(spec.kind == "original") for spec in space.branches}
        limited = (space, [1.0], 1, 1, Clock(), weights)
        study = studies(*limited, most + 0.5)[0]
        costs = {spec.id: 1 - true_score(Arch((spec.id,))) for spec in space.branches}
        found = additive_best(study, costs)
        best = max(true_score(arch) for arch in all_subnets(space) if study.fits(arch))
        assert found is not None
        assert study.fits(found)
        assert true_score(found) == pytest.approx(best, abs=1e-9)

    def test_there_is_none_where_no_subnet_keeps_the_limits(self) -> None:
        space = chain(4)
        weights = dict.fromkeys(space.by_id, 1.0)
        study = studies(space, [1.0], 1, 1, Clock(), weights, 0.5)[0]
        assert additive_best(study, {}) is None

    def test_what_was_not_measured_is_in_units_of_what_was(self) -> None:
        space = chain(3)
        plain = unmeasured_costs(space)
        branches = tuple(plain)
        errors = np.array([0.3 * plain[branch] for branch in branches])
        unknown = np.arange(len(branches)) % 3 == 0
        products = np.diag(errors)
        groups = np.zeros(len(branches), np.int64)
        found = Distortion(branches, np.where(unknown, 9.0, errors), products, groups, unknown)
        costs = quality_costs(space, found)
        assert costs == pytest.approx(dict(zip(branches, errors, strict=True)))
        nothing = Distortion(branches, errors, products, groups, np.ones(len(branches), bool))
        assert quality_costs(space, nothing) == quality_costs(space, None) == plain


RNG = np.random.default_rng(0)
X = RNG.standard_normal((150, 8, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> edge.Bundle:
    return write_bundle(tmp_path_factory.mktemp("schedule") / "bundle", depth=6)


@pytest.fixture(scope="module")
def table(bundle: edge.Bundle) -> LatencyTable:
    return steady(edge.profile(bundle, n_samples=3, n_subnets=0, n_held_out=0))


def slow(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Let branches of a real bundle take the time of a clock of ours."""

    class Slow(edge.Executor):
        def advance(self, branch: str, state: Any) -> Any:
            clock.now_s += 0.01 * next(iter(state.values())).shape()[0]
            return super().advance(branch, state)

    monkeypatch.setattr(search_module, "Executor", Slow)


@pytest.mark.parametrize("name", strategy_names())
def test_results_that_lack_something_are_marked(
    bundle: edge.Bundle,
    table: LatencyTable,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    clock, path = Clock(), tmp_path / "pool.json"
    slow(monkeypatch, clock)
    searched = functools.partial(
        edge.search, bundle, table, X, budget=["90%", "60%", "75%"], strategy=name, clock=clock
    )
    options = {"max_subnets": 400}

    def warned(time_s: float) -> tuple[Any, str]:
        caplog.clear()
        begin_s = clock()
        with caplog.at_level(logging.WARNING):
            found = searched(time_budget_s=time_s, path=path, **options)
        assert clock() - begin_s <= time_s + max(0.1 * time_s, 0.15)
        path.unlink()
        return found, caplog.text

    none, said = warned(1e-6)
    assert sorted(none.marks) == ["not evaluated", "not evaluated", "scored on 1 of 120 samples"]
    assert [best.n_samples for best in none.bests].count(0) == 2
    assert all(math.isnan(b.accuracy) == (b.n_samples == 0) for b in none.bests)
    assert all(entry.n_samples == 1 for entry in none.pool)
    assert f"{none.budgets_ms[1]:.4g} ms: not evaluated" in said or none.marks[1][0] == "s"
    few, said = warned(5.0)
    assert all(re.fullmatch(r"scored on \d+ of 120 samples", mark) for mark in few.marks)
    assert all(1 < best.n_samples < 120 for best in few.bests)
    assert edge.SubnetPool.from_json(few.pool.to_json()) == few.pool
    needed = re.search(r"to about (\S+) s", said)
    assert needed is not None
    whole, said = warned(float(needed[1]))
    assert whole.marks == ("", "", "")
    assert "short of time" not in said
    assert all(entry.n_samples is None for entry in whole.pool)


def test_scores_on_few_samples_are_not_taken_for_known(
    bundle: edge.Bundle, table: LatencyTable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock, path = Clock(), tmp_path / "pool.json"
    slow(monkeypatch, clock)
    short = edge.search(bundle, table, X, budget="70%", time_budget_s=3, clock=clock, path=path)
    kept = {entry.arch for entry in short.pool}
    assert edge.SubnetPool.load(path) == short.pool
    other = edge.search(bundle, table, X, budget="90%", time_budget_s=3, clock=clock, path=path)
    assert kept < {entry.arch for entry in other.pool}
    whole = edge.search(bundle, table, X, budget="70%", max_subnets=20, clock=clock, path=path)
    assert whole.marks == ("",)
    assert whole.best.n_samples is None
    again = edge.search(bundle, table, X, budget="70%", time_budget_s=1, clock=clock, path=path)
    assert again.marks == ("",)
    assert again.best == whole.best


def test_pools_of_earlier_releases_are_read() -> None:
    old = {
        "schema": "fxelastic.pool/1",
        "bundle_digest": "d",
        "data_digest": "e",
        "entries": [{"arch": "a@0", "latency_ms": 1, "accuracy": 1, "held_out_accuracy": None}],
    }
    (entry,) = edge.SubnetPool.from_json(json.dumps(old).encode())
    assert entry.n_samples is None


def test_the_command_prints_the_marks(
    bundle: edge.Bundle,
    table: LatencyTable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    np.savez(tmp_path / "local.npz", x=X)
    table.save(tmp_path / "table.json")
    arguments = ["search", str(bundle.path), "--data", str(tmp_path / "local.npz")]
    arguments += ["--table", str(tmp_path / "table.json"), "-o", str(tmp_path / "pool.json")]
    arguments += ["--budget", "90%", "--budget", "60%", "--time-budget", "1e-6"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "raise time_budget_s (--time-budget)" in caplog.text
    assert "(not evaluated)" in printed.out
    assert "(scored on 1 of 120 samples)" in printed.out
    assert main([*arguments, "--json", "--quiet"]) == 0
    rows = json.loads(capsys.readouterr().out)["budgets"]
    assert sorted(row["n_samples"] for row in rows) == [0, 1]
    assert [row["mark"] for row in rows if row["accuracy"] is None] == ["not evaluated"]


@pytest.mark.parametrize("time_s", [0, -1, float("nan")])
def test_times_that_are_none_are_refused(
    bundle: edge.Bundle, table: LatencyTable, time_s: float
) -> None:
    with pytest.raises(UsageError, match="time_budget_s must be above 0"):
        edge.search(bundle, table, X, budget="70%", time_budget_s=time_s)
