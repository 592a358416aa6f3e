"""The loop that watches the latency and acts on it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from fxelastic.edge.serving.builder import Builder
from fxelastic.edge.serving.catalogue import Catalogue
from fxelastic.edge.serving.courtesy import Courtesy
from fxelastic.edge.serving.events import EventLog, describe
from fxelastic.edge.serving.ladder import Step
from fxelastic.edge.serving.monitor import Load, Monitor
from fxelastic.edge.serving.policy import Decision, Policy, Situation
from fxelastic.edge.serving.residents import Residents
from fxelastic.edge.serving.standby import Standby
from fxelastic.edge.serving.switcher import Switcher
from fxelastic.edge.serving.verdict import Verdict


@dataclass
class Controller:
    """Reads the monitor, asks the policy, and has subnets loaded and switched.

    `tick` does one round and may be called without the thread, by a test with a clock of its own.
    The thread sleeps while there are no requests.

    Attributes:
        monitor: Where requests are recorded.
        policy: Decides.
        standby: Names what to have in memory.
        catalogue: The subnets.
        residents: Those in memory.
        switcher: Changes the one in use.
        builder: Loads others.
        events: Told what happens.
        clock: Tells the time, in s.
        budget_ms: What a request may take; may be set at any time.
        tick_s: The time between two rounds, in seconds.
        on_unmet: Called in each round in which no subnet keeps the budget, with ``T/r`` in ms.
        on_tick: Called after each round with what the policy saw and decided.
        courtesy: Told when no request runs.
        verdict: Says whether the budget can be kept.
        thread: The thread that does the rounds; None before `start`.
    """

    monitor: Monitor
    policy: Policy
    standby: Standby
    catalogue: Catalogue
    residents: Residents
    switcher: Switcher
    builder: Builder
    events: EventLog
    clock: Callable[[], float]
    budget_ms: float
    tick_s: float = 0.05
    on_unmet: Callable[[float], None] | None = None
    on_tick: Callable[[Situation, Decision], None] | None = None
    courtesy: Courtesy | None = None
    verdict: Verdict = field(default_factory=Verdict)
    load: Load = field(init=False, default_factory=Load)
    _wake: threading.Event = field(init=False, repr=False, default_factory=threading.Event)
    _hurry: threading.Event = field(init=False, repr=False, default_factory=threading.Event)
    _closed: bool = field(init=False, repr=False, default=False)
    thread: threading.Thread | None = field(init=False, repr=False, default=None)

    def start(self) -> None:
        """Begin the rounds."""
        self.thread = threading.Thread(target=self._work, name="fxelastic-control", daemon=True)
        self.thread.start()

    def wake(self) -> None:
        """There was a request: do a round within ``tick_s``. Cheap."""
        if not self._wake.is_set():
            self._wake.set()

    def hurry(self) -> None:
        """Something changed: do a round now."""
        self._hurry.set()
        self._wake.set()

    def close(self) -> None:
        """Do no more rounds."""
        self._closed = True
        self.hurry()
        if self.thread is not None:
            self.thread.join()

    def _work(self) -> None:
        again_s: float | None = None
        while True:
            if self._wake.wait(again_s):
                self._hurry.wait(self.tick_s)
            self._wake.clear()
            self._hurry.clear()
            # Looked at last: what `close` has set by now is cleared, what it sets later wakes.
            if self._closed:
                return
            again_s = None
            try:
                decision = self.tick()
                if decision is not None:
                    waits = (decision.again_s, self.verdict.again_s)
                    again_s = min((wait for wait in waits if wait is not None), default=None)
            except Exception as e:  # noqa: BLE001 - a policy is user code; serving goes on
                self.events.add("control_failed", describe(e))

    def tick(self) -> Decision | None:
        """Do one round.

        Returns:
            What the policy decided; None when nothing serves any more.
        """
        if self.courtesy is not None and self.residents.idle:
            self.courtesy.rest()
        now_s = self.clock()
        load = self.load = self.monitor.read(now_s)
        self._tell(load)
        self.catalogue.admit(now_s)
        current = self.residents.current
        if current is None:
            return None
        situation = Situation(
            now_s, self.budget_ms, load, current, self.catalogue.ladder, self.switcher.history
        )
        decision = self._decide(situation)
        self._act(decision, situation)
        self._judge(decision, situation)
        if self.on_tick is not None:
            self.on_tick(situation, decision)
        return decision

    def finish(self, last: Step | None) -> None:
        """Tell of the requests since the last round; nothing is decided any more.

        Args:
            last: The subnet that was in use; None for none.
        """
        if self.on_tick is None or last is None:
            return
        now_s, ladder = self.clock(), self.catalogue.ladder
        load = self.load = self.monitor.read(now_s)
        situation = Situation(now_s, self.budget_ms, load, last, ladder, self.switcher.history)
        try:
            self.on_tick(situation, Decision(last, self.verdict.met, self.budget_ms, "closed"))
        except Exception as e:  # noqa: BLE001 - it is user code; what is left is freed all the same
            self.events.add("control_failed", describe(e))

    def _tell(self, load: Load) -> None:
        if load.clock_jumped:
            self.events.add("clock_jumped", "the clock was set back; the latencies are forgotten")
        if load.n_slow:
            self.events.add(
                "slow_requests",
                f"{load.n_slow} of {len(load.fresh)} requests took over "
                f"{self.monitor.slow:g} times what the others did",
                n=load.n_slow,
            )

    def _decide(self, situation: Situation) -> Decision:
        decision = self.policy.decide(situation)
        barred = self.catalogue.barred
        if decision.target.arch not in barred:
            return decision
        # The subnet in use failed and nothing could take over at once.
        ladder = situation.ladder
        other = ladder.best_under(decision.limit_ms) or ladder.quickest
        if other is None:
            return decision
        return Decision(other, decision.met, decision.limit_ms, "the subnet in use failed")

    def _act(self, decision: Decision, situation: Situation) -> None:
        current, target = situation.current, decision.target
        standby = self.standby.steps(
            situation.ladder,
            target,
            situation.budget_ms,
            decision.limit_ms,
            self.residents.archs,
        )
        if target.arch == current.arch or self.switcher.switch(target, decision.reason):
            self.builder.want(None, standby)
            return
        if target.latency_ms >= current.latency_ms:
            self.builder.want(target, standby)
            return
        # Until the target is there, the best of what is in memory and keeps the budget serves.
        here = situation.ladder.only(self.residents.archs)
        interim = here.best_under(decision.limit_ms) or here.quickest
        self.builder.want(target, standby)
        if interim is not None and interim.latency_ms < current.latency_ms:
            self.switcher.switch(interim, f"{decision.reason}; until a better one is loaded")

    def _judge(self, decision: Decision, situation: Situation) -> None:
        if self.verdict.hear(decision.met, situation.budget_ms, situation.now_s):
            r = situation.load.ratio
            at = "" if r is None else f" at r {r:.2f}"
            if decision.met:
                self.events.add("budget_met", f"{situation.budget_ms:.3g} ms are kept{at}")
            else:
                self.events.add("budget_unmet", f"{situation.budget_ms:.3g} ms can't be kept{at}")
        if not decision.met and self.on_unmet is not None:
            self.on_unmet(decision.limit_ms)
