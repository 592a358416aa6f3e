"""Decide which subnet to serve next: the rule of AdaptiveNet §5.3, with hysteresis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, Protocol

from fxelastic.edge.candidates import Candidate
from fxelastic.edge.monitoring.lookahead import Outlook
from fxelastic.edge.monitoring.matching import closest
from fxelastic.edge.monitoring.recent_latencies import LatencySummary
from fxelastic.edge.monitoring.resource_monitor import Resources
from fxelastic.edge.serving.monitor import Load
from fxelastic.errors import UsageError
from fxelastic.spec.pareto import ParetoTable


class PastSwitch(NamedTuple):
    """An earlier switch.

    Attributes:
        time_s: The time, on the runtime's clock.
        up: Whether it led to a slower, more accurate subnet.
    """

    time_s: float
    up: bool


@dataclass(frozen=True)
class Situation:
    """The input of a policy.

    Attributes:
        now_s: The time, on the runtime's clock.
        budget_ms: The latency budget of a request, in ms.
        load: The monitor's reading.
        current: The subnet in use; it may no longer be in the table.
        table: The subnets that may be served.
        switches: Earlier switches, oldest first; at least the last ten minutes.
        latency: The latencies of the last 10 s; None before the first request.
        resources: The latest reading of the device's resources; None if they are not read.
        outlook: The forecast of the load and of r; None if there is none.
    """

    now_s: float
    budget_ms: float
    load: Load
    current: Candidate
    table: ParetoTable[Candidate]
    switches: Sequence[PastSwitch] = ()
    latency: LatencySummary | None = None
    resources: Resources | None = None
    outlook: Outlook | None = None


#: What the best subnet within the budget is: the most accurate one, or the one whose demands are
#: closest to what the device has; see `closest`.
OBJECTIVES = ("accuracy", "distance")


@dataclass(frozen=True)
class Decision:
    """A policy's decision.

    Attributes:
        target: The subnet to serve; the current one if nothing changes.
        met: Whether the target is expected to keep the budget.
        limit_ms: The highest estimated latency that keeps the budget at the current load, ``T/r``.
        reason: The reason, for people.
        again_s: Decide again after this time, in seconds, even without a request; None to wait for
            a request.
    """

    target: Candidate
    met: bool
    limit_ms: float
    reason: str
    again_s: float | None = None


class SwitchPolicy(Protocol):
    """Decides which subnet to serve.

    The contract:

    * `decide` depends only on its argument and has no side effects. One thread calls it about
      twenty times a second.
    * The target is in the table, or is the current subnet.
    * The target need not be loaded: the runtime keeps the current subnet until it is, and calls
      `decide` again.
    """

    def decide(self, situation: Situation) -> Decision:
        """Decide."""


@dataclass(frozen=True)
class RatioPolicy:
    """Serve the most accurate subnet under ``T/r`` (§5.3), slow to climb and quick to step down.

    *Down*: as soon as the median latency exceeds the budget (or another percentile, see
    `Serving.latency_percentile`), switch to the best subnet under
    ``T/r`` minus some room. Here r is the upper quartile of the newest requests, so that one switch
    is enough for a step to a load whose level varies.

    *Up*: climb when a more accurate subnet would have kept the budget throughout the last
    ``calm_s`` seconds. The hysteresis lies in this wait rather than in the room: with much room,
    the subnet that was best before a load would not return after it. Under load, the wait is up to
    eight times as long, since the load varies and room may be free by chance; it is short again
    ``2.5 * calm_s`` after the load has ended. A climb that is soon reverted doubles the wait for
    the next one, so a load that comes and goes causes fewer and fewer switches.

    Attributes:
        room_down: Share of the budget that stays free after a step down.
        room_up: Share of the budget that stays free after a climb.
        settle_s: Latencies count from this time after the first request, in seconds: a runtime that
            has just started also loads other subnets.
        dwell_s: Minimum time between two switches down, in seconds.
        calm_s: How long there must have been room for a climb if r is at most 1, in seconds.
        calm_rise: For each 1 that r exceeds 1, the wait grows by this multiple of ``calm_s``, up to
            eight times ``calm_s`` in total.
        worth: Share of the table's range of accuracies that a climb must gain, unless it leads to
            the top: a switch with little gain is likely to be reverted.
        max_calm_s: The longest such wait, in seconds.
        failed_s: A climb that is reverted within this time has failed, in seconds.
        forget_s: Failed climbs older than this no longer count, in seconds.
        objective: One of `OBJECTIVES`.

    Source: AdaptiveNet §5.3; hysteresis, dwell and back-off are additions.
    """

    room_down: float = 0.03
    room_up: float = 0.01
    settle_s: float = 0.4
    dwell_s: float = 0.4
    calm_s: float = 2.0
    calm_rise: float = 12.0
    worth: float = 0.05
    max_calm_s: float = 120.0
    failed_s: float = 30.0
    forget_s: float = 600.0
    objective: str = "accuracy"

    def __post_init__(self) -> None:
        """Check the objective.

        Raises:
            UsageError: It is unknown.
        """
        if self.objective not in OBJECTIVES:
            raise UsageError(
                f"unknown objective {self.objective!r}",
                expected=" or ".join(OBJECTIVES),
                got=repr(self.objective),
            )

    def decide(self, situation: Situation) -> Decision:
        """Decide; see `SwitchPolicy`."""
        load, budget_ms, current = situation.load, situation.budget_ms, situation.current
        # During the first requests, only the estimates count.
        ratio = load.ratio if load.ratio is not None and self._has_begun(situation) else 1.0
        actual_ms = ratio * current.ms
        if actual_ms > budget_ms:
            return self._down(situation, ratio, actual_ms)
        return self._up(situation, ratio)

    def _has_begun(self, situation: Situation) -> bool:
        begin_s = situation.load.begin_s
        return begin_s is None or situation.now_s - begin_s >= self.settle_s

    def best(self, situation: Situation, limit_ms: float) -> Candidate | None:
        """The best subnet within a latency, by the objective; None if none is within it."""
        table = situation.table
        if self.objective == "accuracy" or not len(table):
            return table.best(limit_ms)
        return closest(table, situation.current, situation.resources, limit_ms)

    def _down(self, situation: Situation, ratio: float, actual_ms: float) -> Decision:
        current, table = situation.current, situation.table
        recent = situation.load.recent
        # The highest recent ratio, since one switch should be enough for a step of the load.
        worst = situation.load.high or recent or ratio
        limit_ms = situation.budget_ms * (1 - self.room_down) / worst
        exceeded = (
            f"{actual_ms:.3g} ms exceed the budget of {situation.budget_ms:.3g} ms (r {ratio:.2f})"
        )
        since_s = since_last(situation)
        if since_s is not None and 0 <= since_s < self.dwell_s:
            # Most requests in the window are from before the switch.
            again_s = self.dwell_s - since_s
            return Decision(current, True, limit_ms, f"{exceeded}, just switched", again_s)
        if recent is not None and recent * current.ms <= situation.budget_ms:
            return Decision(current, True, limit_ms, f"{exceeded}, but the newest requests do not")
        fitting = self.best(situation, limit_ms)
        if fitting is not None and fitting.ms < current.ms:
            return Decision(fitting, True, limit_ms, exceeded)
        quickest = table.quickest
        if quickest is None or quickest.ms >= current.ms:
            return Decision(current, False, limit_ms, f"{exceeded}, and nothing is quicker")
        met = quickest.ms * (recent or ratio) <= situation.budget_ms
        return Decision(quickest, met, limit_ms, f"{exceeded}, and only the quickest may keep it")

    def _up(self, situation: Situation, ratio: float) -> Decision:
        current, load = situation.current, situation.load
        calm_s = self.calm_for(situation)
        since_s = since_last(situation)
        peak = load.peak_since(situation.now_s - calm_s)
        worst = max(ratio, peak) if peak is not None else ratio
        limit_ms = situation.budget_ms * (1 - self.room_up) / worst
        stay = Decision(current, True, limit_ms, "the budget is kept")
        if since_s is not None and 0 <= since_s < calm_s:
            return stay
        better = self.best(situation, limit_ms)
        if better is not None and better.ms < current.ms and self.objective != "accuracy":
            return Decision(better, True, limit_ms, "it is closer to what the device has")
        if better is None or not self._is_worth_it(better, current, situation.table):
            return stay
        newer = load.peak_since(situation.now_s - calm_s / 2)
        if newer is not None:
            soon_ms = situation.budget_ms * (1 - self.room_up) / max(ratio, newer)
            soon = self.best(situation, soon_ms)
            if soon is not None and soon.accuracy > better.accuracy:
                # A load has just gone: one switch up should be enough, too.
                return stay
        calm = "" if since_s is None else f" for {calm_s:.3g} s"
        reason = f"there has been room{calm} (r at most {worst:.2f})"
        return Decision(better, True, limit_ms, reason)

    def _is_worth_it(
        self, better: Candidate, current: Candidate, table: ParetoTable[Candidate]
    ) -> bool:
        frontier = table.frontier
        if better.accuracy <= current.accuracy or better.arch == frontier[-1].arch:
            return better.accuracy > current.accuracy
        whole = frontier[-1].accuracy - frontier[0].accuracy
        return better.accuracy - current.accuracy >= self.worth * whole

    def calm_for(self, situation: Situation) -> float:
        """The wait before a climb, given the load and failed climbs, in seconds."""
        # Use the peak over some time: a load that pauses for a moment has not ended.
        peak = situation.load.peak_since(situation.now_s - 2.5 * self.calm_s)
        loaded = 0.0 if peak is None else max(0.0, peak - 1.0)
        failed = 0
        recent = [
            past for past in situation.switches if past.time_s >= situation.now_s - self.forget_s
        ]
        for past, following in pairwise(recent):
            if past.up and not following.up and following.time_s - past.time_s < self.failed_s:
                failed += 1
        # Bound the exponent, because 2.0**1024 raises OverflowError.
        calm_s = self.calm_s * min(8.0, 1.0 + self.calm_rise * loaded)
        return min(calm_s * 2.0 ** min(failed, 32), self.max_calm_s)


def since_last(situation: Situation) -> float | None:
    """Time since the last switch, in seconds; negative if the clock was set back."""
    if not situation.switches:
        return None
    return situation.now_s - situation.switches[-1].time_s


@dataclass
class BudgetState:
    """Whether the budget can be kept, with hysteresis.

    The state becomes unmet immediately, and met after decisions have expected it for a while. At a
    load at which the quickest subnet is barely quick enough, decisions alternate many times a
    second.

    Attributes:
        kept_s: How long decisions must have expected the budget to be kept, in seconds.
        met: The current state.
    """

    kept_s: float = 1.0
    met: bool = field(init=False, default=True)
    _since_s: float | None = field(init=False, repr=False, default=None)
    _budget_ms: float | None = field(init=False, repr=False, default=None)

    @property
    def again_s(self) -> float | None:
        """The time until the next decision is needed, in seconds; None to wait for a request."""
        return None if self._since_s is None else self.kept_s

    def update(self, met: bool, budget_ms: float, now_s: float) -> bool:
        """Update the state by one decision.

        Args:
            met: Whether the decision's target is expected to keep the budget.
            budget_ms: The budget, in ms; after a change of the budget, the state changes at once.
            now_s: The time, on the runtime's clock.

        Returns:
            Whether the state has changed.
        """
        known, self._budget_ms = self._budget_ms, budget_ms
        if met == self.met:
            self._since_s = None
            return False
        if met and budget_ms == known and not self._for_long(now_s):
            return False
        self.met = met
        self._since_s = None
        return True

    def _for_long(self, now_s: float) -> bool:
        # If the clock was set back, start again.
        if self._since_s is None or now_s < self._since_s:
            self._since_s = now_s
        return now_s - self._since_s >= self.kept_s
