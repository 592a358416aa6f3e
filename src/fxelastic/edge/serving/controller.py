"""The loop that watches the latency and switches subnets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fxelastic.edge.candidates import Candidate
from fxelastic.edge.monitoring.lookahead import Lookahead
from fxelastic.edge.monitoring.recent_latencies import RecentLatencies
from fxelastic.edge.monitoring.slow_requests import SlowRequests
from fxelastic.edge.serving.cache import SubnetCache
from fxelastic.edge.serving.catalogue import Catalogue
from fxelastic.edge.serving.events import EventLog, describe
from fxelastic.edge.serving.monitor import Load, Monitor
from fxelastic.edge.serving.policy import BudgetState, Decision, Situation, SwitchPolicy
from fxelastic.edge.serving.preload import Preload, Preloader


@dataclass
class Controller:
    """Reads the monitor, queries the policy, and loads and switches subnets accordingly.

    `tick` does one round. A test may call it with its own clock, without the thread. The thread
    sleeps while there are no requests.

    Attributes:
        monitor: Records requests.
        policy: Decides which subnet serves.
        preload: Chooses the subnets to keep in memory.
        catalogue: The subnets.
        cache: The subnets in memory; switches between them.
        preloader: Loads other subnets.
        events: Records changes.
        clock: Returns the time in s.
        budget_ms: The latency budget of a request, in ms; may be set at any time.
        tick_s: The time between two rounds, in seconds.
        on_unmet: Called in each round in which no subnet keeps the budget, with ``T/r`` in ms.
        on_tick: Called after each round with the situation and the policy's decision.
        missing: Returns why there is no estimate for the sizes of a request.
        n_unmeasured: The number of requests so far whose sizes have no estimate.
        lookahead: Reads the device's resources and forecasts the load; None not to.
        state: Whether the budget can be kept.
        load: The latest reading of the monitor.
        latencies: The latencies of the last seconds.
        thread: The thread that runs the rounds; None before `start`.
    """

    monitor: Monitor
    policy: SwitchPolicy
    preload: Preload
    catalogue: Catalogue
    cache: SubnetCache
    preloader: Preloader
    events: EventLog
    clock: Callable[[], float]
    budget_ms: float
    tick_s: float = 0.05
    on_unmet: Callable[[float], None] | None = None
    on_tick: Callable[[Situation, Decision], None] | None = None
    missing: Callable[[Mapping[str, int]], str] | None = None
    n_unmeasured: int = 0
    lookahead: Lookahead | None = None
    state: BudgetState = field(default_factory=BudgetState)
    load: Load = field(init=False, default_factory=Load)
    latencies: RecentLatencies = field(init=False, default_factory=RecentLatencies)
    _slow: SlowRequests = field(init=False, repr=False)
    _wake: threading.Event = field(init=False, repr=False, default_factory=threading.Event)
    _hurry: threading.Event = field(init=False, repr=False, default_factory=threading.Event)
    _closed: bool = field(init=False, repr=False, default=False)
    thread: threading.Thread | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        """Start with no slow requests."""
        self._slow = SlowRequests(self.events.add, self.monitor.slow)

    def start(self) -> None:
        """Start the thread."""
        self.thread = threading.Thread(target=self._work, name="fxelastic-control", daemon=True)
        self.thread.start()

    def wake(self) -> None:
        """Request a round within ``tick_s``, after a request. Cheap."""
        if not self._wake.is_set():
            self._wake.set()

    def hurry(self) -> None:
        """Request a round now, after a change."""
        self._hurry.set()
        self._wake.set()

    def close(self) -> None:
        """End the thread."""
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
            # Read after the events are cleared: `close` may set them just before or after that.
            if self._closed:
                return
            again_s = None
            try:
                decision = self.tick()
                if decision is not None:
                    waits = (decision.again_s, self.state.again_s)
                    again_s = min((wait for wait in waits if wait is not None), default=None)
            except Exception as e:  # noqa: BLE001 - a policy is user code; serving goes on
                self.events.add("control_failed", describe(e))

    def tick(self) -> Decision | None:
        """Do one round.

        Returns:
            The policy's decision; None if the cache is closed.
        """
        now_s = self.clock()
        load = self._read(now_s)
        self._report(load)
        self.catalogue.end_bans(now_s)
        current = self.cache.current
        if current is None:
            return None
        situation = self._situation(now_s, load, current)
        decision = self._decide(situation)
        self._act(decision, situation)
        self._judge(decision, situation)
        if self.on_tick is not None:
            self.on_tick(situation, decision)
        return decision

    def finish(self, last: Candidate | None) -> None:
        """Pass the requests since the last round to ``on_tick``, without a decision.

        Args:
            last: The subnet that was in use; None if there was none.
        """
        now_s = self.clock()
        load = self._read(now_s)
        self.latencies.update(now_s, now=True)
        self.n_unmeasured += load.n_unmeasured
        self._slow.add(load.n_slow, len(load.fresh), now_s, last=True)
        if self.on_tick is None or last is None:
            return
        situation = self._situation(now_s, load, last)
        try:
            self.on_tick(situation, Decision(last, self.state.met, self.budget_ms, "closed"))
        except Exception as e:  # noqa: BLE001 - user code; the rest must still be freed
            self.events.add("control_failed", describe(e))

    def _read(self, now_s: float) -> Load:
        """Read the monitor, and count the new requests."""
        load = self.load = self.monitor.read(now_s)
        budget_ms, add = self.budget_ms, self.latencies.add
        for seen in load.fresh:
            if seen.scale is not None:
                add(seen.time_s, seen.actual_ms / seen.scale, budget_ms)
        self.latencies.update(now_s)
        if self.lookahead is not None:
            try:
                self.lookahead.update(now_s, load.recent)
            except Exception as e:  # noqa: BLE001 - the decisions go on without a forecast
                self.lookahead = None
                self.events.add("control_failed", f"no more forecasts: {describe(e)}")
        return load

    def _situation(self, now_s: float, load: Load, current: Candidate) -> Situation:
        ahead = self.lookahead
        return Situation(
            *(now_s, self.budget_ms, load, current, self.catalogue.table, self.cache.history),
            latency=self.latencies.summary,
            resources=None if ahead is None else ahead.resources,
            outlook=None if ahead is None else ahead.outlook,
        )

    def _report(self, load: Load) -> None:
        if load.clock_jumped:
            self.events.add("clock_jumped", "the clock was set back; the latencies are forgotten")
        self._slow.add(load.n_slow, len(load.fresh), self.clock())
        if load.n_unmeasured:
            if not self.n_unmeasured:
                self._report_unmeasured(load)
            self.n_unmeasured += load.n_unmeasured

    def _report_unmeasured(self, load: Load) -> None:
        """Say once why some requests do not count for the load."""
        sizes = next(seen.sizes for seen in load.fresh if seen.scale is None)
        why = "" if self.missing is None or sizes is None else self.missing(sizes)
        self.events.add(
            "size_not_measured",
            f"requests without an estimated latency do not count for the load: {why}; "
            "measure at the sizes in use: edge.profile(bundle, sizes=...)",
            sizes=None if sizes is None else dict(sizes),
        )

    def _decide(self, situation: Situation) -> Decision:
        decision = self.policy.decide(situation)
        if self.catalogue.allows(decision.target.arch):
            return decision
        # The subnet in use failed and nothing could take over at once, or the limits have changed.
        table = situation.table
        other = table.best(decision.limit_ms) or table.quickest
        if other is None:
            return decision
        return Decision(
            other,
            decision.met,
            decision.limit_ms,
            "the subnet in use failed, or exceeds the limits",
        )

    def _act(self, decision: Decision, situation: Situation) -> None:
        current, target = situation.current, decision.target
        here = self.cache.archs
        others = self.preload.candidates(
            situation.table, target, situation.budget_ms, decision.limit_ms, here
        )
        if target.arch == current.arch or self.cache.switch(target, decision.reason):
            self.preloader.want(None, others)
            return
        self.preloader.want(target, others)
        if target.ms >= current.ms:
            return
        # Until the target is loaded, the best subnet in memory that keeps the budget serves.
        loaded = situation.table.only(here)
        interim = loaded.best(decision.limit_ms) or loaded.quickest
        if interim is not None and interim.ms < current.ms:
            self.cache.switch(interim, f"{decision.reason}; until a better one is loaded")

    def _judge(self, decision: Decision, situation: Situation) -> None:
        if self.state.update(decision.met, situation.budget_ms, situation.now_s):
            r = situation.load.ratio
            at = "" if r is None else f" at r {r:.2f}"
            if decision.met:
                self.events.add("budget_met", f"{situation.budget_ms:.3g} ms are kept{at}")
            else:
                self.events.add("budget_unmet", f"{situation.budget_ms:.3g} ms can't be kept{at}")
        if not decision.met and self.on_unmet is not None:
            self.on_unmet(decision.limit_ms)
