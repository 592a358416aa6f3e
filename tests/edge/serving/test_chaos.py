"""Ten thousand requests of four threads while everything that can go wrong does."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from fxelastic.edge.candidates import Candidate
from fxelastic.edge.serving.monitor import Monitor
from fxelastic.edge.serving.options import Serving
from fxelastic.edge.serving.policy import Decision, Situation
from fxelastic.edge.serving.preload import Preload
from fxelastic.edge.serving.runtime import Runtime
from fxelastic.errors import ServingError
from fxelastic.spec import Arch
from tests.edge.serving.fakes import SIZE, FakeLoader, OneArray, factor, n_threads, pool

N_THREADS = 4
N_REQUESTS = 2_500
# The quickest never fails, so that there is always an answer.
POOL = pool(1, 2, 3, 4, 5, 6, 7, 8)
FRAIL = [step.arch for step in POOL[1:]]
LYING = FRAIL[:3]


@dataclass
class JumpingClock:
    """Real time, set back and forth."""

    offset_s: float = 0.0

    def __call__(self) -> float:
        return time.perf_counter() + self.offset_s


@dataclass
class Restless:
    """A policy that wants another subnet all the time, and sometimes raises."""

    rng: random.Random

    def decide(self, situation: Situation) -> Decision:
        if self.rng.random() < 0.02:
            raise ZeroDivisionError("the policy is broken")
        target = self.rng.choice(situation.table.frontier)
        return Decision(target, self.rng.random() < 0.9, situation.budget_ms, "restless")


@dataclass
class Clumsy:
    """A search that raises every other time."""

    rng: random.Random
    n_searches: int = 0

    def search(self, limit_ms: float, stop: threading.Event) -> Sequence[Candidate]:
        self.n_searches += 1
        if self.n_searches % 2:
            raise ValueError("the search is broken")
        return pool(8 + self.n_searches)


@dataclass
class Gremlin:
    """Breaks and mends things until it is stopped."""

    rng: random.Random
    loader: FakeLoader
    clock: JumpingClock
    runtime: Runtime
    stop: threading.Event = field(default_factory=threading.Event)
    slow: bool = False
    n_actions: int = 0

    def work(self) -> None:
        actions = (
            self.break_loading,
            self.break_running,
            self.break_outputs,
            self.fill_memory,
            self.mend,
            self.mend,
            self.set_clock,
            self.set_budget,
            self.slow_down,
        )
        while not self.stop.wait(0.001):
            self.rng.choice(actions)()
            self.n_actions += 1

    def break_loading(self) -> None:
        self.loader.broken = set(self.rng.sample(FRAIL, 3))

    def break_running(self) -> None:
        self.loader.raising = {self.rng.choice(FRAIL)}

    def break_outputs(self) -> None:
        self.loader.nan = {self.rng.choice(LYING)}

    def fill_memory(self) -> None:
        self.loader.bulky = dict.fromkeys(self.rng.sample(FRAIL, 3), 3)

    def mend(self) -> None:
        self.loader.bulky = {}
        self.loader.broken, self.loader.raising, self.loader.nan = set(), set(), set()

    def set_clock(self) -> None:
        self.clock.offset_s += self.rng.choice((-500.0, 300.0, 300.0))

    def set_budget(self) -> None:
        self.runtime.budget_ms = self.rng.uniform(1, 9)

    def slow_down(self) -> None:
        self.slow = True

    def run_s(self, arch: Arch) -> float:
        slow, self.slow = self.slow, False
        return 0.01 if slow else 0.0


@pytest.mark.parametrize("seed", [0, 1])
def test_every_output_is_that_of_the_subnet_it_claims(seed: int) -> None:
    rng = random.Random(seed)
    before = n_threads()
    loader, clock = FakeLoader(load_s=0.0005), JumpingClock()
    runtime = Runtime(
        loader,
        OneArray(),
        POOL,
        9.0,
        Serving(
            policy=Restless(rng),
            preload=Preload(),
            monitor=lambda: Monitor(window_s=0.02),
            memory_bytes=3 * SIZE,
            tick_s=0.001,
            retry_s=0.005,
            clock=clock,
        ),
        Clumsy(rng),
    )
    gremlin = Gremlin(rng, loader, clock, runtime)
    loader.run_s = gremlin.run_s
    wrong: list[str] = []
    refused: list[BaseException] = []
    n_answers = [0] * N_THREADS

    def ask(index: int) -> None:
        x = np.full((1, 4), index + 1, np.float32)
        while n_answers[index] < N_REQUESTS or gremlin.n_actions < 1000:
            reply = runtime.infer(x)
            if not np.array_equal(reply.value, x * factor(reply.arch)):
                wrong.append(f"{reply.arch} gave {reply.value}")
            n_answers[index] += 1
            time.sleep(1e-5)

    def ask_on() -> None:
        try:
            while True:
                runtime(np.ones((1, 4), np.float32))
        except ServingError as e:
            refused.append(e)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(N_THREADS)]
    chaos = threading.Thread(target=gremlin.work)
    for thread in (chaos, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    last = [threading.Thread(target=ask_on) for _ in range(N_THREADS)]
    for thread in last:
        thread.start()
    runtime.close()
    for thread in last:
        thread.join()
    gremlin.stop.set()
    chaos.join()

    assert wrong == []
    assert sum(n_answers) >= N_THREADS * N_REQUESTS
    assert all("closed" in str(e) for e in refused)
    assert len(refused) == N_THREADS
    assert loader.faults == []
    assert sum(loader.open.values()) == 0
    assert loader.most_open <= 3
    assert n_threads() == before
    counts = runtime.status().events
    for kind in (
        *("load_failed", "run_failed", "non_finite", "rolled_back", "memory_limit"),
        *("clock_jumped", "control_failed", "research_failed", "budget_changed"),
        *("switched", "unloaded", "slow_requests", "budget_unmet", "closed"),
    ):
        assert counts.get(kind, 0) > 0, f"no {kind} among {counts}"
    assert counts.get("request_failed", 0) == 0
    assert counts.get("model_non_finite", 0) == 0
