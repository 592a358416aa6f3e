"""Cascades in a runtime: what requests get, what is counted, and when the policy takes them."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from fxelastic import edge
from fxelastic.edge.bundle import Bundle
from fxelastic.edge.candidates import Candidate, candidates_of
from fxelastic.edge.cascades import decision_time
from fxelastic.edge.cascades.decision_time import all_stay
from fxelastic.edge.cascades.entry import CascadeEntry
from fxelastic.edge.cascades.finding import exits_along
from fxelastic.edge.cascades.running import run_cascade
from fxelastic.edge.executor import Executor
from fxelastic.edge.pool import PoolEntry, SubnetPool
from fxelastic.edge.prepared import PreparedFiles
from fxelastic.edge.preparing import items_of
from fxelastic.edge.serving.monitor import Load
from fxelastic.edge.serving.policy import RatioPolicy, Situation
from fxelastic.edge.serving.serve import loader_of
from fxelastic.edge.sessions import SessionMaker
from fxelastic.edge.subnet_timing import SubnetTimer
from fxelastic.spec import Arch
from fxelastic.spec.cascade import Cascade
from fxelastic.spec.costs import BranchCosts
from fxelastic.spec.latency_table import LatencyTable
from fxelastic.spec.pareto import ParetoTable
from fxelastic.spec.quantised import Quantised
from fxelastic.spec.resources import LATENCY
from tests.edge.serving.fakes import n_threads, wait_until
from tests.edge.serving.tiny_bundle import steady, write_bundle

X = 2 * np.random.default_rng(0).standard_normal((60, 8, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("cascades") / "bundle", exits=(1, 3))


@pytest.fixture(scope="module")
def table(bundle: Bundle) -> LatencyTable:
    profiled = edge.profile(bundle, n_samples=3, n_subnets=0, n_held_out=0)
    assert all(profiled.costs_of(mode)[LATENCY].per_decision > 0 for mode in profiled.modes)
    free = profiled.mapped(lambda costs: replace(costs, per_decision=0.0), LATENCY)
    return steady(free)


@pytest.mark.parametrize(("slower", "expected"), [(4.0, 4.0), (0.5, 1.0)])
def test_decisions_cost_what_they_do_where_branches_are_timed(
    bundle: Bundle, slower: float, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decisions are timed in a loop, where a small model is quicker than in its table."""
    loop_ms = 0.25
    monkeypatch.setattr(decision_time, "decision_ms", lambda *_: 0.01)
    monkeypatch.setattr(decision_time, "original_cost", lambda _: slower * loop_ms)
    monkeypatch.setattr(SubnetTimer, "in_loop", lambda _, served, **__: [loop_ms] * len(served))
    found = edge.profile(bundle, n_samples=3, n_subnets=0, n_held_out=0)
    for mode in found.modes:
        assert found.costs_of(mode)[LATENCY].per_decision == pytest.approx(0.01 * expected)


def test_decisions_cost_what_they_do_in_a_whole_cascade(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of the network takes longer inside of a decision than by itself."""
    monkeypatch.setattr(SubnetTimer, "in_loop", lambda _, served, **__: [0.25, 5.25][: len(served)])
    monkeypatch.setattr(decision_time, "original_cost", lambda _: 0.5)
    found = edge.profile(bundle, n_samples=3, n_subnets=0, n_held_out=0)
    costs = found.costs_of("assembled")[LATENCY]
    heads = sum(costs.costs[spec.id] for spec in bundle.space.branches if spec.kind == "exit")
    assert 0 < heads < 5.0
    assert costs.per_decision == pytest.approx((2 * 5.0 - heads) / 2)
    assert found.costs_of("paged")[LATENCY].per_decision < 1.0


def test_decisions_of_a_slow_model_are_not_timed_in_a_cascade(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision_time, "original_cost", lambda _: 100.0)
    monkeypatch.setattr(SubnetTimer, "in_loop", lambda _, served, **__: [100.0] * len(served))
    monkeypatch.setattr(decision_time, "all_stay", lambda _: pytest.fail("it was assembled"))
    edge.profile(bundle, n_samples=3, n_subnets=0, n_held_out=0)


def test_nothing_leaves_the_cascade_that_is_timed(bundle: Bundle) -> None:
    staying = all_stay(bundle)
    assert staying is not None
    assert staying.archs[-1] == bundle.space.original
    assert len(staying.thresholds) == 2
    with Executor(bundle) as executor:
        assert set(run_cascade(executor, staying, {"x": X}).left_at) == {2}


def test_subnets_and_cascades_are_timed_in_a_loop(bundle: Bundle) -> None:
    with Executor(bundle) as executor:
        timer = SubnetTimer(executor, {bundle.inputs[0].name: X[:1]})
        served = (bundle.space.original, cascade(bundle, (2.0, 2.0)))
        found = timer.in_loop(served, 0, SessionMaker(1))
    assert found is not None
    assert len(found) == 2
    assert all(0 < ms < math.inf for ms in found)


def cascade(bundle: Bundle, thresholds: tuple[float, float]) -> Cascade:
    original = bundle.space.original
    exits = [spec for spec in bundle.space.branches if spec.kind == "exit"]
    archs = [Arch((*original.branches[: spec.start], spec.id)) for spec in exits]
    return Cascade((*archs, original), thresholds)


@pytest.fixture(scope="module")
def between(bundle: Bundle) -> Cascade:
    """A cascade that about a third of the samples leaves at each place, none close to a border."""
    thresholds = []
    left = np.ones(len(X), bool)
    with edge.Executor(bundle, 1) as executor:
        for i, arch in enumerate(cascade(bundle, (0.0, 0.0)).archs[:2]):
            logits = executor.run(arch, {"x": X})[0].astype(np.float64)
            shifted = np.exp(logits - logits.max(1, keepdims=True))
            sure = (shifted / shifted.sum(1, keepdims=True)).max(1)
            ordered = np.sort(sure[left])
            k = len(ordered) * 2 // 3 if i == 0 else len(ordered) // 2
            at = k + int(np.argmax(np.diff(ordered[k : k + 4])))
            thresholds.append(float(ordered[at : at + 2].mean()))
            left &= sure < thresholds[-1]
    return cascade(bundle, (thresholds[0], thresholds[1]))


def entry_of(found: Cascade, latency_ms: float = 3.0, accuracy: float = 0.89) -> CascadeEntry:
    shares = (0.3, 0.3, 0.4)
    each = (1.1, 3.2, 5.2)
    return CascadeEntry(
        *(found, latency_ms, shares, 0.01, 0.01, 0.01, (0.9, 0.9), 600, 0.01, accuracy, each)
    )


@pytest.fixture(params=["assembled", "paged"])
def mode(request: pytest.FixtureRequest) -> Iterator[str]:
    before = n_threads()
    yield request.param
    assert n_threads() == before


def test_each_sample_of_a_request_leaves_where_it_is_sure(
    bundle: Bundle, between: Cascade, mode: str
) -> None:
    with edge.Executor(bundle, 1) as executor:
        wanted = run_cascade(executor, between, {"x": X})
    assert set(wanted.left_at.tolist()) == {0, 1, 2}
    seen: list[Any] = []
    with edge.serve(bundle, None, [entry_of(between)], budget_ms=1e6, mode=mode) as runtime:
        for size in (60, 7, 1):
            parts = [runtime.infer(X[i : i + size]) for i in range(0, len(X), size)]
            seen += parts
            assert np.array_equal(np.concatenate([p.left_at for p in parts]), wanted.left_at)
            found = np.concatenate([part.value for part in parts])
            np.testing.assert_allclose(found, wanted.outputs[0], rtol=1e-4, atol=1e-5)
        status = runtime.status()
    assert all(reply.arch == between for reply in seen)
    exits = [arch.branches[-1] for arch in between.archs[:2]]
    counts = 3 * np.bincount(wanted.left_at)
    assert status.exits == dict(zip([*exits, "end"], counts.tolist(), strict=True))
    assert status.to_json()["exits"] == dict(status.exits)
    # The estimate of a request is for the exits at which its samples left.
    alone = {int(reply.left_at[0]): reply.estimated_ms for reply in seen if len(reply.left_at) == 1}
    assert alone == {0: pytest.approx(1.1), 1: pytest.approx(3.2), 2: pytest.approx(5.2)}


def test_threads_share_a_cascade(bundle: Bundle, between: Cascade, mode: str) -> None:
    with edge.Executor(bundle, 1) as executor:
        wanted = run_cascade(executor, between, {"x": X})
    wrong: list[int] = []
    with edge.serve(bundle, None, [entry_of(between)], budget_ms=1e6, mode=mode) as runtime:

        def ask(begin: int) -> None:
            for i in range(begin, len(X), 4):
                reply = runtime.infer(X[i : i + 3])
                if not np.array_equal(reply.left_at, wanted.left_at[i : i + 3]):
                    wrong.append(i)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_fixed_batch_size_keeps_its_rows(tmp_path: Path, between: Cascade, mode: str) -> None:
    fixed = write_bundle(tmp_path / "bundle", exits=(1, 3), batch_size=4)
    with edge.Executor(fixed, 1) as executor:
        alone = [executor.run(arch, {"x": X[:4]})[0] for arch in between.archs]
    served = loader_of(fixed, mode)
    loaded = served.load(between, urgent=True)
    found: Any = loaded.run({"x": X[:4]})
    for i, at in enumerate(found.left_at):
        np.testing.assert_allclose(found.outputs[0][i], alone[at][i], rtol=1e-4, atol=1e-5)
    loaded.close()
    served.close()
    assert served.resident_bytes == 0


def test_sets_of_thresholds_share_their_sessions(
    bundle: Bundle, between: Cascade, mode: str
) -> None:
    loader = loader_of(bundle, mode)
    first = loader.load(between, urgent=True)
    before = loader.resident_bytes
    assert before == sum(bundle.segment(branch).weight_bytes for branch in between)
    bold = cascade(bundle, (0.3, 0.3))
    assert loader.added_bytes(bold) == 0
    second = loader.load(bold, urgent=True)
    assert loader.resident_bytes == before
    first.close()
    found: Any = second.run({"x": X})
    assert (found.left_at == 0).sum() > len(X) // 2
    second.close()
    assert loader.resident_bytes == 0
    loader.close()


def test_the_quickest_form_of_an_exit_is_used(bundle: Bundle) -> None:
    exits = [spec.id for spec in bundle.space.branches if spec.kind == "exit"]
    costs = BranchCosts({spec.id: 1.0 for spec in bundle.space.branches})
    assert list(exits_along(bundle, bundle.space.original, costs).values()) == exits
    # As if the second original block were an 8-bit form of the first exit.
    form = bundle.segment("pruned50@1")
    quantised = replace(
        form,
        spec=replace(bundle.segment(exits[0]).spec, id=form.id, kind="int8"),
        quantised=Quantised(exits[0], "u8s8", 0.0, 1.0),
    )

    class Eight:
        space = SimpleNamespace(
            n_blocks=bundle.space.n_blocks, branches=(*bundle.space.branches, quantised.spec)
        )

        def segment(self, branch: str) -> Any:
            return quantised if branch == form.id else bundle.segment(branch)

    for ms, wanted in ((0.5, form.id), (2.0, exits[0])):
        priced = BranchCosts({**costs.costs, form.id: ms})
        found = exits_along(cast("Any", Eight()), bundle.space.original, priced)
        assert found[quantised.spec.start] == wanted


def pool_of(bundle: Bundle, entries: list[CascadeEntry], small: Arch) -> SubnetPool:
    whole = PoolEntry(bundle.space.original, 5.0, 0.9)
    return SubnetPool.of(bundle.digest, [whole, PoolEntry(small, 1.5, 0.8)], cascades=entries)


def smallest(bundle: Bundle) -> Arch:
    (first, _) = (spec.id for spec in bundle.space.branches if spec.kind == "exit")
    return Arch(("pruned50@0", first))


def test_under_load_the_next_thresholds_come_before_a_smaller_subnet(
    bundle: Bundle, table: LatencyTable, between: Cascade
) -> None:
    bold = cascade(bundle, (0.2, 0.2))
    careful = entry_of(between, accuracy=0.895)
    second = CascadeEntry(
        *(bold, 2.0, (0.7, 0.2, 0.1), 0.03, 0.03, 0.03, (0.9, 0.9), 600, 0.03, 0.87)
    )
    pool = pool_of(bundle, [careful, second], smallest(bundle))
    candidates = candidates_of(bundle, pool, table, "assembled")
    found = {candidate.arch: candidate for candidate in candidates}
    # 30 % leave after one block and an exit, 30 % after three and both exits, and 40 % at the end.
    assert found[between].ms == pytest.approx(0.3 * 1.1 + 0.3 * 3.2 + 0.4 * 5.2)
    assert found[between].leaving[0] == pytest.approx(1.1 / found[between].ms)
    order = [bundle.space.original, between, bold, smallest(bundle)]
    ranked = ParetoTable(candidates)
    assert [candidate.arch for candidate in reversed(ranked.frontier)] == order
    policy = RatioPolicy(dwell_s=0.0)
    budget_ms = 1.1 * found[order[0]].ms
    for now, following in pairwise(order):
        # Just more load than the subnet in use can take.
        ratio = 1.05 * budget_ms / found[now].ms
        load = Load(ratio, ratio, 100, high=ratio, begin_s=0.0)
        situation = Situation(100.0, budget_ms, load, found[now], ranked)
        assert policy.decide(situation).target.arch == following


def test_decisions_cost_time(bundle: Bundle, table: LatencyTable, between: Cascade) -> None:
    dear = table.mapped(lambda costs: replace(costs, per_decision=0.2), LATENCY)
    pool = pool_of(bundle, [entry_of(between)], smallest(bundle))
    candidates = candidates_of(bundle, pool, dear, "assembled")
    (found,) = (one for one in candidates if one.arch == between)
    assert found.ms == pytest.approx(0.3 * 1.3 + 0.3 * 3.6 + 0.4 * 5.6)
    assert found.leaving[0] == pytest.approx(1.3 / found.ms)


def test_a_budget_for_a_percentile_counts_the_exits_of_that_share(
    bundle: Bundle, table: LatencyTable, between: Cascade
) -> None:
    pool = pool_of(bundle, [entry_of(between)], smallest(bundle))
    for percentile, ms in ((25, 1.1), (50, 3.2), (95, 5.2)):
        for known in (table, None):
            found = candidates_of(bundle, pool, known, "assembled", percentile=percentile)
            (candidate,) = (one for one in found if one.arch == between)
            assert candidate.ms == pytest.approx(ms)
            assert candidate.ms * candidate.leaving[0] == pytest.approx(1.1)


def test_a_runtime_moves_along_the_thresholds(bundle: Bundle, between: Cascade) -> None:
    bold = cascade(bundle, (0.2, 0.2))
    second = CascadeEntry(
        *(bold, 2.0, (0.7, 0.2, 0.1), 0.03, 0.03, 0.03, (0.9, 0.9), 600, 0.03, 0.87)
    )
    pool = pool_of(bundle, [entry_of(between), second], smallest(bundle))
    policy = RatioPolicy(calm_s=0.0)
    with edge.serve(bundle, None, pool, budget_ms=1e3, policy=policy) as runtime:
        assert {candidate.arch for candidate in runtime.entries} >= {between, bold}
        for budget_ms, arch in ((3.5, between), (2.2, bold), (1.6, smallest(bundle))):
            runtime.budget_ms = budget_ms

            def served(arch: Any = arch) -> bool:
                step = runtime.status().step
                return step is not None and step.arch == arch

            wait_until(served)


def test_segments_are_prepared_ahead(
    bundle: Bundle, table: LatencyTable, between: Cascade, mode: str, tmp_path: Path
) -> None:
    pool = pool_of(bundle, [entry_of(between)], smallest(bundle))
    made = edge.prepare(bundle, pool, table, mode=mode, prepared=tmp_path)
    files = PreparedFiles.of(bundle, tmp_path)
    wanted = [
        item for arch in (bundle.space.original, between) for item in items_of(bundle, arch, mode)
    ]
    assert all(files.find(item) is not None for item in wanted)
    assert made.n_made >= len(set(wanted))


def test_a_broken_cascade_is_left_for_another_subnet(
    tmp_path: Path, between: Cascade, mode: str
) -> None:
    bundle = write_bundle(tmp_path / "bundle", exits=(1, 3))
    exit_file = bundle.path / bundle.segment(between.archs[1].branches[-1]).file
    exit_file.write_bytes(exit_file.read_bytes()[:-9] + b"corrupted")
    pool = pool_of(bundle, [entry_of(between, accuracy=0.95)], smallest(bundle))
    with edge.serve(bundle, None, pool, budget_ms=1e3, mode=mode) as runtime:
        reply = runtime.infer(X[:3])
        assert reply.arch == bundle.space.original
        assert reply.left_at is None
        assert runtime.status().events["load_failed"] >= 1
        assert runtime.status().n_failed == 0


def test_cascades_of_unknown_accuracy_are_not_served(bundle: Bundle, between: Cascade) -> None:
    pool = pool_of(bundle, [entry_of(between, accuracy=float("nan"))], smallest(bundle))
    again = SubnetPool.from_dict(pool.to_dict())
    assert len(again.cascades) == 1
    assert all(
        isinstance(candidate.arch, Arch)
        for candidate in candidates_of(bundle, again, None, "assembled")
    )


def test_a_candidate_scales_with_the_exits_of_a_batch(between: Cascade) -> None:
    candidate = Candidate.of(entry_of(between, latency_ms=2.0))
    assert candidate.scale_of(np.array([0, 2])) == pytest.approx((1.1 + 5.2) / 2 / 2.0)
    assert candidate.scale_of(np.array([], int)) == 1.0
