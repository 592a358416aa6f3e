"""The runtime as a whole, over subnets that are fakes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fxelastic.edge.monitoring.lookahead import Lookahead, Outlook
from fxelastic.edge.serving.events import Event
from fxelastic.edge.serving.monitor import Monitor
from fxelastic.edge.serving.options import Serving
from fxelastic.edge.serving.policy import Decision, RatioPolicy, Situation
from fxelastic.edge.serving.preload import Preload
from fxelastic.edge.serving.runtime import Runtime
from fxelastic.errors import ServingError, UsageError
from fxelastic.spec import Arch
from fxelastic.spec.limits import Limits
from tests.edge.serving.fakes import (
    SIZE,
    FakeLoader,
    OneArray,
    archs,
    factor,
    n_threads,
    pool,
    wait_until,
)

POOL = pool(1, 2, 4, 8)
X = np.ones((1, 3), np.float32)


class Clock:
    """Time that goes on only when it is told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Stay:
    """A policy that keeps what there is."""

    def decide(self, situation: Situation) -> Decision:
        return Decision(situation.current, True, situation.budget_ms, "stay")


class GoTo:
    """A policy that wants one subnet."""

    def __init__(self, arch: Arch | None = None) -> None:
        self.arch = arch

    def decide(self, situation: Situation) -> Decision:
        steps = [step for step in situation.table.frontier if step.arch == self.arch]
        target = steps[0] if steps else situation.current
        return Decision(target, True, target.latency_ms, "told to")


@contextmanager
def serving(loader: FakeLoader, budget_ms: float = 10.0, **options: Any) -> Iterator[Runtime]:
    options = {"tick_s": 0.002, "policy": Stay(), "preload": Preload(limit=0), **options}
    searcher = options.pop("searcher", None)
    entries = options.pop("entries", POOL)
    before = n_threads()
    with Runtime(loader, OneArray(), entries, budget_ms, Serving(**options), searcher) as runtime:
        yield runtime
    assert not loader.faults
    assert loader.closed
    assert sum(loader.open.values()) == 0
    assert n_threads() == before


def kinds(runtime: Runtime) -> list[str]:
    return [event.kind for event in runtime.events]


def right(runtime: Runtime) -> Arch:
    """Send a request; returns its subnet after a look at its output."""
    reply = runtime.infer(X)
    np.testing.assert_array_equal(reply.value, X * factor(reply.arch))
    return reply.arch


def test_the_best_subnet_under_the_budget_serves() -> None:
    with serving(FakeLoader(), 5.0) as runtime:
        assert right(runtime) == POOL[2].arch
        assert runtime(X).shape == X.shape
        status = runtime.status()
        assert status.step is POOL[2]
        assert status.n_requests == 2
        assert status.state == "serving"
    assert runtime.status().state == "closed"


def test_a_budget_below_everything_begins_with_the_quickest() -> None:
    with serving(FakeLoader(), 0.5) as runtime:
        assert right(runtime) == POOL[0].arch


def test_the_first_to_preload_is_there_before_the_first_request() -> None:
    loader = FakeLoader()
    with serving(loader, 9.0, preload=Preload(limit=1)) as runtime:
        assert loader.loaded == [POOL[3].arch, POOL[0].arch]
        assert [event.kind for event in runtime.events[:2]] == ["started", "loaded"]
        wait_until(lambda: right(runtime) == POOL[3].arch and runtime.status().ratio is not None)
        assert runtime.status().resident == 2


@pytest.mark.parametrize("fault", ["broken", "bulky"])
def test_serving_begins_where_it_can_t_be_had(fault: str) -> None:
    loader = FakeLoader(broken={POOL[0].arch} if fault == "broken" else set())
    loader.bulky[POOL[0].arch] = 10 if fault == "bulky" else 1
    with serving(loader, 9.0, preload=Preload(limit=1), memory_bytes=5 * SIZE) as runtime:
        assert right(runtime) == POOL[3].arch
        assert runtime.status().resident == 1
        assert ("load_failed" in kinds(runtime)) == (fault == "broken")


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(UsageError, match="pool is empty"):
        Runtime(FakeLoader(), OneArray(), [], 5.0)


@pytest.mark.parametrize("budget_ms", [0, -1, float("nan"), float("inf"), "soon", None])
def test_a_budget_that_is_no_latency_is_refused(budget_ms: Any) -> None:
    with pytest.raises(UsageError, match="budget_ms"):
        Runtime(FakeLoader(), OneArray(), POOL, budget_ms)
    with serving(FakeLoader()) as runtime, pytest.raises(UsageError, match="budget_ms"):
        runtime.budget_ms = budget_ms


def test_load_slows_the_requests_and_the_runtime_steps_down_and_returns() -> None:
    clock = Clock()
    load = 1.0

    def run_s(arch: Arch) -> float:
        clock.now_s += next(step.latency_ms for step in POOL if step.arch == arch) * load / 1000
        return 0.0

    loader = FakeLoader(run_s=run_s)
    with serving(loader, 9.0, policy=RatioPolicy(), clock=clock, preload=Preload()) as runtime:

        def goes_to(arch: Arch) -> bool:
            return right(runtime) == arch

        assert right(runtime) == POOL[3].arch
        load = 2.0
        wait_until(lambda: goes_to(POOL[2].arch))
        load = 1.0
        wait_until(lambda: goes_to(POOL[3].arch))
        switched = [event for event in runtime.events if event.kind == "switched"]
        assert len(switched) == 2
        assert runtime.status().n_switches == 2
        assert runtime.status().ratio == pytest.approx(1.0)


def test_a_new_budget_takes_effect_without_a_request() -> None:
    with serving(FakeLoader(), 9.0, policy=RatioPolicy()) as runtime:
        runtime.budget_ms = 3.0
        wait_until(lambda: runtime.status().step is POOL[1])
        assert runtime.budget_ms == 3.0
        assert "budget_changed" in kinds(runtime)


def test_a_subnet_that_is_added_serves_without_a_request() -> None:
    policy = GoTo()
    with serving(FakeLoader(), 5.0, entries=POOL[:2], policy=policy) as runtime:
        assert right(runtime) == POOL[1].arch
        runtime.add(POOL[2:3])
        assert len(runtime.entries) == 3
        policy.arch = POOL[2].arch
        wait_until(lambda: right(runtime) == POOL[2].arch)
        assert "subnets_added" in kinds(runtime)
        with pytest.raises(UsageError, match="can't be ranked"):
            runtime.add([replace(POOL[0], accuracy=float("nan"))])
        assert len(runtime.entries) == 3


def test_a_budget_that_can_t_be_kept_is_told_once() -> None:
    with serving(FakeLoader(), 9.0, policy=RatioPolicy(dwell_s=0.0)) as runtime:
        runtime.budget_ms = 0.5
        wait_until(lambda: not runtime.status().budget_met)
        wait_until(lambda: runtime.status().step is POOL[0])
        for _ in range(20):
            right(runtime)
        runtime.budget_ms = 1000
        wait_until(lambda: runtime.status().budget_met)
        assert kinds(runtime).count("budget_unmet") == 1
        assert kinds(runtime).count("budget_met") == 1


def test_requests_go_on_while_the_target_is_loaded() -> None:
    policy = GoTo()
    gate = threading.Event()
    loader = FakeLoader(before_load=lambda arch: arch == POOL[1].arch and gate.wait(20) and None)
    with serving(loader, policy=policy) as runtime:
        policy.arch = POOL[1].arch
        for _ in range(50):
            assert right(runtime) == POOL[3].arch
        gate.set()
        wait_until(lambda: right(runtime) == POOL[1].arch)


def test_until_a_cold_target_is_there_the_best_in_memory_steps_in() -> None:
    policy = GoTo()
    gate = threading.Event()
    loader = FakeLoader(before_load=lambda arch: arch == POOL[1].arch and gate.wait(20) and None)
    with serving(loader, policy=policy, preload=Preload(ratios=(), limit=3)) as runtime:
        wait_until(lambda: POOL[0].arch in loader.loaded)
        policy.arch = POOL[1].arch
        wait_until(lambda: right(runtime) == POOL[0].arch)
        gate.set()
        wait_until(lambda: right(runtime) == POOL[1].arch)


def test_a_target_that_can_t_be_loaded_leaves_things_as_they_are() -> None:
    policy = GoTo()
    loader = FakeLoader(broken={POOL[1].arch})
    with serving(loader, policy=policy) as runtime:
        policy.arch = POOL[1].arch
        wait_until(lambda: right(runtime) == POOL[3].arch and "load_failed" in kinds(runtime))
        assert runtime.status().barred == 1
        assert kinds(runtime).count("load_failed") == 1


def test_a_subnet_that_could_not_be_loaded_is_tried_again_later() -> None:
    policy, clock = GoTo(), Clock()
    loader = FakeLoader(broken={POOL[1].arch})
    with serving(loader, policy=policy, clock=clock, retry_s=30.0) as runtime:
        policy.arch = POOL[1].arch
        wait_until(lambda: right(runtime) == POOL[3].arch and runtime.status().barred == 1)
        loader.broken.clear()
        clock.now_s += 31
        wait_until(lambda: right(runtime) == POOL[1].arch)


def test_at_the_start_the_next_subnet_stands_in_for_a_broken_one() -> None:
    loader = FakeLoader(broken={POOL[3].arch, POOL[2].arch})
    with serving(loader) as runtime:
        assert right(runtime) == POOL[1].arch
        assert kinds(runtime).count("load_failed") == 2


def test_without_any_subnet_there_is_no_runtime() -> None:
    loader = FakeLoader(broken=set(archs(POOL)))
    with pytest.raises(ServingError, match=r"no subnet of the pool can be loaded[\s\S]*no file"):
        Runtime(loader, OneArray(), POOL, 5.0)
    assert loader.closed


def test_a_subnet_that_raises_is_left_and_no_request_fails() -> None:
    loader = FakeLoader()
    with serving(loader) as runtime:
        loader.raising.add(POOL[3].arch)
        assert right(runtime) == POOL[0].arch
        assert right(runtime) == POOL[0].arch
        assert [k for k in kinds(runtime) if k in ("run_failed", "rolled_back", "unloaded")] == [
            "run_failed",
            "rolled_back",
            "unloaded",
        ]


def test_rolling_back_prefers_the_subnet_that_served_before() -> None:
    policy, loader = GoTo(), FakeLoader()
    with serving(loader, policy=policy, preload=Preload(limit=9)) as runtime:
        wait_until(lambda: runtime.status().resident == len(POOL))
        policy.arch = POOL[2].arch
        wait_until(lambda: right(runtime) == POOL[2].arch)
        loader.raising.add(POOL[2].arch)
        assert right(runtime) == POOL[3].arch


def test_an_error_of_every_subnet_reaches_the_caller_and_bars_none() -> None:
    loader = FakeLoader(raising=set(archs(POOL)))
    with serving(loader) as runtime:
        with pytest.raises(ServingError, match="can't run") as caught:
            runtime(X)
        assert isinstance(caught.value.__cause__, RuntimeError)
        assert runtime.status().n_failed == 1
        assert runtime.status().barred == 0
        loader.raising.clear()
        right(runtime)


def test_a_subnet_that_gives_nan_never_serves_again() -> None:
    loader, clock = FakeLoader(nan={POOL[3].arch}), Clock()
    with serving(loader, clock=clock) as runtime:
        assert right(runtime) == POOL[0].arch
        clock.now_s += 1e9
        assert runtime.status().step is POOL[0]
        assert "non_finite" in kinds(runtime)
        assert runtime.status().barred == 1


def test_a_nan_of_the_input_is_nobody_s_fault() -> None:
    with serving(FakeLoader()) as runtime:
        assert np.isnan(runtime(X * np.nan)).all()
        assert "non_finite" not in kinds(runtime)


def test_a_model_that_gives_infinity_by_nature_is_soon_left_alone() -> None:
    loader = FakeLoader(nan=set(archs(POOL)))
    with serving(loader) as runtime:
        for _ in range(10):
            assert runtime.infer(X).arch == POOL[3].arch
        assert kinds(runtime).count("model_non_finite") == 3
        assert runtime.status().barred == 0


def test_without_another_subnet_to_compare_with_nan_is_handed_on_and_proves_nothing() -> None:
    loader = FakeLoader(nan={POOL[3].arch}, broken=set(archs(POOL[:3])))
    with serving(loader) as runtime:
        for _ in range(5):
            assert np.isnan(runtime(X)).all()
        assert "model_non_finite" not in kinds(runtime)
        assert kinds(runtime).count("non_finite") == 5


def test_the_memory_limit_holds_and_a_refused_switch_is_told() -> None:
    policy, loader = GoTo(), FakeLoader()
    with serving(loader, policy=policy, memory_bytes=SIZE) as runtime:
        policy.arch = POOL[1].arch
        wait_until(lambda: right(runtime) == POOL[3].arch and "memory_limit" in kinds(runtime))
        assert loader.most_open == 1


def test_memory_for_two_is_enough_for_every_switch() -> None:
    policy, loader = GoTo(), FakeLoader()
    with serving(loader, policy=policy, memory_bytes=2 * SIZE, preload=Preload()) as runtime:
        for step in (POOL[1], POOL[0], POOL[2], POOL[3], POOL[0]):
            policy.arch = step.arch
            wait_until(lambda step=step: right(runtime) == step.arch)
        assert loader.most_open == 2
        assert runtime.status().resident_bytes <= 2 * SIZE


def test_what_is_no_longer_wanted_leaves_memory() -> None:
    policy, loader = GoTo(), FakeLoader()
    with serving(loader, policy=policy) as runtime:
        for step in (POOL[1], POOL[0], POOL[2]):
            policy.arch = step.arch
            wait_until(lambda step=step: right(runtime) == step.arch)
            wait_until(lambda: sum(loader.open.values()) == 1)
        assert loader.most_open == 2


def test_a_policy_that_raises_does_not_stop_the_requests() -> None:
    class Broken:
        def decide(self, situation: Situation) -> Decision:
            raise ZeroDivisionError("policy")

    with serving(FakeLoader(), policy=Broken()) as runtime:
        wait_until(lambda: right(runtime) == POOL[3].arch and "control_failed" in kinds(runtime))


def test_a_listener_that_raises_does_not_stop_the_requests() -> None:
    def listener(event: Event) -> None:
        raise ZeroDivisionError(event.kind)

    with serving(FakeLoader(), listener=listener) as runtime:
        right(runtime)
        assert kinds(runtime)[:2] == ["started", "control_failed"]


def test_a_clock_that_goes_back_is_told() -> None:
    clock = Clock()
    with serving(FakeLoader(), clock=clock, monitor=Monitor) as runtime:
        for _ in range(3):
            right(runtime)
        clock.now_s -= 500
        wait_until(lambda: right(runtime) == POOL[3].arch and "clock_jumped" in kinds(runtime))


def test_closing_twice_is_closing_once_and_later_requests_are_refused() -> None:
    with serving(FakeLoader()) as runtime:
        runtime.close()
        with pytest.raises(ServingError, match="closed"):
            runtime(X)
        runtime.close()
    assert kinds(runtime)[-1] == "closed"
    assert runtime.status().step is None


def test_closing_goes_on_after_it_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(FakeLoader()) as runtime:
        close = runtime._preloader.close

        def interrupted() -> None:
            monkeypatch.setattr(runtime._preloader, "close", close)
            raise KeyboardInterrupt

        monkeypatch.setattr(runtime._preloader, "close", interrupted)
        with pytest.raises(KeyboardInterrupt):
            runtime.close()
        runtime.close()
        with pytest.raises(ServingError, match="closed"):
            runtime(X)
    assert kinds(runtime).count("closed") == 1


def test_a_listener_can_not_close_what_waits_for_it() -> None:
    runtimes: list[Runtime] = []

    def listener(event: Event) -> None:
        if event.kind == "loaded":
            runtimes[0].close()

    policy = GoTo()
    with serving(FakeLoader(), policy=policy, listener=listener) as runtime:
        runtimes.append(runtime)
        policy.arch = POOL[0].arch
        wait_until(lambda: right(runtime) == policy.arch)
        (told,) = [e for e in runtime.events if e.kind == "control_failed"]
        assert "by its own threads" in told.message


def test_an_interrupted_request_does_not_keep_closing_waiting() -> None:
    """Ctrl-C may come while a request runs."""

    def interrupted(arch: Arch) -> float:
        raise KeyboardInterrupt

    loader = FakeLoader()
    with serving(loader) as runtime:
        loader.run_s = interrupted
        with pytest.raises(KeyboardInterrupt):
            runtime(X)
        assert runtime._cache.close(timeout_s=5)


def test_closing_waits_for_the_request_that_runs() -> None:
    gate, entered = threading.Event(), threading.Event()

    def run_s(arch: Arch) -> float:
        entered.set()
        gate.wait(20)
        return 0.0

    answers: list[Any] = []
    with serving(FakeLoader(run_s=run_s)) as runtime:
        request = threading.Thread(target=lambda: answers.append(runtime(X)))
        request.start()
        entered.wait()
        threading.Timer(0.02, gate.set).start()
        runtime.close()
        request.join()
    assert len(answers) == 1


def test_closing_during_a_switch_leaves_nothing() -> None:
    policy = GoTo()
    loading = threading.Event()
    loader = FakeLoader(load_s=0.02, before_load=lambda arch: loading.set())
    with serving(loader, policy=policy) as runtime:
        right(runtime)
        loading.clear()
        policy.arch = POOL[0].arch
        right(runtime)
        loading.wait()


class Searcher:
    """Finds what it is told, or raises."""

    def __init__(self, found: Any) -> None:
        self.found = found
        self.limits: list[float] = []

    def search(self, limit_ms: float, stop: threading.Event) -> Any:
        self.limits.append(limit_ms)
        if isinstance(self.found, Exception):
            raise self.found
        if self.found is None:
            stop.wait()
            return []
        return self.found


def test_when_nothing_fits_a_search_finds_what_does() -> None:
    searcher = Searcher(pool(0.2, 0.4))
    with serving(FakeLoader(), 9.0, policy=RatioPolicy(dwell_s=0.0), searcher=searcher) as runtime:
        runtime.budget_ms = 0.5
        wait_until(lambda: right(runtime) == searcher.found[1].arch)
        wait_until(lambda: runtime.status().budget_met)
        assert searcher.limits[0] == pytest.approx(0.5, rel=0.05)
        assert len(runtime.entries) == 6
        assert {"research_started", "research_finished", "budget_met"} <= set(kinds(runtime))


@pytest.mark.parametrize("found", [[], ValueError("no data")])
def test_a_search_in_vain_is_not_repeated_at_once(found: Any) -> None:
    searcher = Searcher(found)
    with serving(FakeLoader(), 0.5, policy=RatioPolicy(), searcher=searcher) as runtime:
        wait_until(
            lambda: (
                right(runtime) == POOL[0].arch
                and bool({"research_finished", "research_failed"} & set(kinds(runtime)))
            )
        )
        for _ in range(50):
            right(runtime)
        assert len(searcher.limits) == 1


def test_closing_stops_a_search() -> None:
    searcher = Searcher(None)
    with serving(FakeLoader(), 0.5, policy=RatioPolicy(), searcher=searcher) as runtime:
        wait_until(lambda: right(runtime) == POOL[0].arch and runtime.status().searching)


def test_a_status_reads_well_and_is_plain_data() -> None:
    with serving(FakeLoader()) as runtime:
        for _ in range(20):
            right(runtime)
        wait_until(lambda: runtime.status().ratio is not None)
        text = str(runtime.status())
        assert "of 10.00 ms" in text
        assert "20 requests" in text
        data = runtime.status().to_json()
        assert data["arch"] == str(POOL[3].arch)
        assert data["n_requests"] == 20
        assert data["events"]["started"] == 1


def test_the_last_requests_are_told_when_it_closes() -> None:
    told: list[int] = []

    def on_tick(situation: Situation, decision: Decision) -> None:
        told.append(len(situation.load.fresh))

    with serving(FakeLoader(), tick_s=1e6, on_tick=on_tick) as runtime:
        for _ in range(20):
            runtime(X)
    assert sum(told) == 20


def test_closing_between_a_look_and_a_sleep_is_heard() -> None:
    """What wakes the control loop must not be forgotten just as it comes."""
    with serving(FakeLoader()) as runtime:
        controller = runtime._controller
        clear = controller._wake.clear

        def closed_meanwhile() -> None:
            controller._closed = True
            controller._hurry.set()
            controller._wake.set()
            clear()

        controller._wake.clear = closed_meanwhile  # type: ignore[method-assign]
        runtime(X)
        assert controller.thread is not None
        controller.thread.join(20)
        assert not controller.thread.is_alive()


def test_inputs_may_have_any_name() -> None:
    class Selfish(OneArray):
        def bind(self, args: Any, kwargs: Any) -> Any:
            return {"x": kwargs["self"]}

    options = Serving(policy=Stay(), preload=Preload(limit=0))
    with Runtime(FakeLoader(), Selfish(), POOL, 10.0, options) as runtime:
        assert np.array_equal(runtime(**{"self": X}), X * factor(POOL[-1].arch))


def test_status_has_the_tail_and_the_requests_over_the_budget() -> None:
    clock = Clock()
    loader = FakeLoader()
    ticks: list[Situation] = []
    with serving(
        *(loader,),
        **{"clock": clock, "latency_percentile": 95, "tick_s": 1e6},
        on_tick=lambda situation, _: ticks.append(situation),
    ) as runtime:
        # The first round of the control thread; the next ones are the test's.
        wait_until(lambda: bool(ticks))
        assert runtime.status().latency is None
        for i in range(60):
            clock.now_s += 0.1
            loader.run_s = lambda _, i=i: (
                setattr(clock, "now_s", clock.now_s + (0.05 if i % 6 == 0 else 0.008)) or 0.0
            )
            right(runtime)
        runtime._controller.tick()
        status = runtime.status()
        assert status.latency is not None
        assert status.latency.p50_ms == pytest.approx(8)
        assert status.latency.p95_ms == pytest.approx(50)
        assert status.n_over == 10
        # The policy and the peaks see the tail, and people the median, too.
        load = runtime._controller.load
        assert (load.ratio, load.median) == pytest.approx((6.25, 1.0))
        assert status.ratio == load.median


def test_limits_may_change_while_serving() -> None:
    entries = [replace(found, others={"energy_mj": 5.0 * found.ms}) for found in POOL]
    options = Serving(policy=RatioPolicy(), tick_s=0.002, preload=Preload(limit=0))
    with Runtime(
        *(FakeLoader(), OneArray(), entries, 10.0, options),
        absolute=lambda bounds: Limits(bounds) if bounds else None,
    ) as runtime:
        assert runtime.limits is None
        assert runtime.status().step == entries[-1]
        runtime.limits = {"energy_mj": 21.0}
        # The subnet in use exceeds the limit, without any request that is too slow.
        wait_until(lambda: runtime.status().step == entries[2])
        assert runtime.status().energy_mj == 20.0
        with pytest.raises(UsageError, match="no subnet of the pool keeps the limits"):
            runtime.limits = {"energy_mj": 1.0}
        assert runtime.limits == Limits({"energy_mj": 21.0})
        runtime.limits = {"latency_ms": 3.0}
        assert runtime.limits is None
        assert runtime.budget_ms == 3.0
        wait_until(lambda: runtime.status().step == entries[1])
        assert kinds(runtime).count("limits_changed") == 2


def test_a_monitor_of_resources_that_fails_ends_the_forecasts_and_nothing_else() -> None:
    class Broken(Lookahead):
        def update(self, now_s: float, ratio: float | None) -> Outlook | None:
            raise OSError("no /proc")

    with serving(FakeLoader(), lookahead=Broken) as runtime:
        right(runtime)
        wait_until(lambda: "control_failed" in kinds(runtime))
        right(runtime)
        status = runtime.status()
        assert (status.load_index, status.outlook) == (None, None)
    with serving(FakeLoader(), lookahead=None) as runtime:
        right(runtime)
        assert runtime.status().resources is None
