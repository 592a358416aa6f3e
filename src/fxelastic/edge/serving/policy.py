"""Which subnet to serve next: the rule of §5.3, with hysteresis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, Protocol

from fxelastic.edge.candidates import Candidate
from fxelastic.edge.serving.monitor import Load
from fxelastic.spec.pareto import ParetoTable


class PastSwitch(NamedTuple):
    """An earlier switch.

    Attributes:
        time_s: When, on the runtime's clock.
        up: It led to a slower, more accurate subnet.
    """

    time_s: float
    up: bool


@dataclass(frozen=True)
class Situation:
    """All that a policy may look at.

    Attributes:
        now_s: The time, on the runtime's clock.
        budget_ms: What a request may take, in ms.
        load: The monitor's reading.
        current: The subnet in use; the table may no longer have it.
        table: The subnets that may be served.
        switches: Earlier switches, oldest first; at least the last ten minutes.
    """

    now_s: float
    budget_ms: float
    load: Load
    current: Candidate
    table: ParetoTable[Candidate]
    switches: Sequence[PastSwitch] = ()


@dataclass(frozen=True)
class Decision:
    """A policy's decision.

    Attributes:
        target: The subnet to serve; the current one for no change.
        met: Whether the target is expected to keep the budget.
        limit_ms: Estimated latency that a subnet may have at the present load: ``T/r``.
        reason: Why, for people.
        again_s: Decide again after this time in seconds, even without a request; None for no.
    """

    target: Candidate
    met: bool
    limit_ms: float
    reason: str
    again_s: float | None = None


class SwitchPolicy(Protocol):
    """Decides which subnet to serve.

    The contract:

    * `decide` depends on its argument only, and changes nothing. It is called some twenty times a
      second, by one thread.
    * The target is in the table, or is the current subnet.
    * It may name a target that is not loaded: the runtime keeps the current subnet until then, and
      asks again.
    """

    def decide(self, situation: Situation) -> Decision:
        """Decide."""


@dataclass(frozen=True)
class RatioPolicy:
    """Serve the most accurate subnet under ``T/r`` (§5.3), slow to climb and quick to step down.

    *Down*: as soon as the median latency exceeds the budget, to the best subnet under ``T/r`` less
    some room; r is the upper quartile of the newest requests, so that one switch is enough for a
    step of a load whose level varies.

    *Up*: when a more accurate subnet would have kept the budget at every moment of the last
    ``calm_s`` seconds. The hysteresis lies in this time rather than in the room: with a large share
    of free budget, the subnet that was the best before the load came would not return. Under a load
    the wait is up to eight times as long, since the load varies and room may be free by chance; it
    is short again two and a half short waits after the load has gone. A climb that was soon taken
    back doubles the wait for the next one, so a load that comes and goes costs ever fewer switches.

    Attributes:
        room_down: Share of the budget that stays free after a step down.
        room_up: Share of the budget that stays free after a climb.
        settle_s: Time after the first request from which latencies count, in seconds: a runtime
            that begins loads other subnets besides.
        dwell_s: Time between two switches down, in seconds.
        calm_s: How long there must have been room for a climb where r is 1 or less, in seconds.
        calm_rise: By how many times more for each 1 that r is above that, up to eight times in all.
        worth: Share of the table's range of accuracies that a climb must gain, unless it leads to
            the top: a switch with little gain is likely to be taken back.
        max_calm_s: The longest such wait, in seconds.
        failed_s: A climb taken back within this time has failed, in seconds.
        forget_s: Failed climbs older than this no longer count, in seconds.

    Source: AdaptiveNet §5.3; hysteresis, dwell and backing off are additions.
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

    def decide(self, situation: Situation) -> Decision:
        """Decide; see `SwitchPolicy`."""
        load, budget_ms, current = situation.load, situation.budget_ms, situation.current
        # Until there were requests for a while, only the estimates count.
        begun = load.begin_s is None or situation.now_s - load.begin_s >= self.settle_s
        ratio = load.ratio if load.ratio is not None and begun else 1.0
        actual_ms = ratio * current.ms
        if actual_ms > budget_ms:
            return self._down(situation, ratio, actual_ms)
        return self._up(situation, ratio)

    def _down(self, situation: Situation, ratio: float, actual_ms: float) -> Decision:
        current, table = situation.current, situation.table
        recent = situation.load.recent
        # High and recent, since one switch should be enough for a step of the load.
        worst = situation.load.high or recent or ratio
        limit_ms = situation.budget_ms * (1 - self.room_down) / worst
        exceeded = (
            f"{actual_ms:.3g} ms exceed the budget of {situation.budget_ms:.3g} ms (r {ratio:.2f})"
        )
        since_s = _since_last(situation)
        if since_s is not None and 0 <= since_s < self.dwell_s:
            # Most of the window is from before the switch.
            again_s = self.dwell_s - since_s
            return Decision(current, True, limit_ms, f"{exceeded}, just switched", again_s)
        if recent is not None and recent * current.ms <= situation.budget_ms:
            return Decision(current, True, limit_ms, f"{exceeded}, but the newest requests do not")
        fitting = table.best(limit_ms)
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
        since_s = _since_last(situation)
        peak = load.peak_since(situation.now_s - calm_s)
        worst = max(ratio, peak) if peak is not None else ratio
        limit_ms = situation.budget_ms * (1 - self.room_up) / worst
        stay = Decision(current, True, limit_ms, "the budget is kept")
        if since_s is not None and 0 <= since_s < calm_s:
            return stay
        better = situation.table.best(limit_ms)
        if better is None or not self._is_worth_it(better, current, situation.table):
            return stay
        newer = load.peak_since(situation.now_s - calm_s / 2)
        if newer is not None:
            soon_ms = situation.budget_ms * (1 - self.room_up) / max(ratio, newer)
            soon = situation.table.best(soon_ms)
            if soon is not None and soon.accuracy > better.accuracy:
                # A load has just gone: one switch up should be enough, too.
                return stay
        reason = f"there has been room for {calm_s:.3g} s (r at most {worst:.2f})"
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
        """How long there must have been room, given the load and failed climbs, in seconds."""
        # The peak over some time: a load that pauses for a moment has not gone.
        peak = situation.load.peak_since(situation.now_s - 2.5 * self.calm_s)
        loaded = 0.0 if peak is None else max(0.0, peak - 1.0)
        failed = 0
        recent = [
            past for past in situation.switches if past.time_s >= situation.now_s - self.forget_s
        ]
        for past, following in pairwise(recent):
            if past.up and not following.up and following.time_s - past.time_s < self.failed_s:
                failed += 1
        # The exponent is bounded, for 2.0**1024 is an error.
        calm_s = self.calm_s * min(8.0, 1.0 + self.calm_rise * loaded)
        return min(calm_s * 2.0 ** min(failed, 32), self.max_calm_s)


def _since_last(situation: Situation) -> float | None:
    """Time since the last switch; negative when the clock was set back."""
    if not situation.switches:
        return None
    return situation.now_s - situation.switches[-1].time_s


@dataclass
class BudgetState:
    """Whether the budget can be kept, with hysteresis.

    An unmet budget counts at once; a met one when decisions have expected it for a while. At a
    load at which the quickest subnet is just about quick enough, decisions alternate many times a
    second.

    Attributes:
        kept_s: For how long decisions must have expected the budget to be kept, in seconds.
        met: The present state.
    """

    kept_s: float = 1.0
    met: bool = field(init=False, default=True)
    _since_s: float | None = field(init=False, repr=False, default=None)
    _budget_ms: float | None = field(init=False, repr=False, default=None)

    @property
    def again_s(self) -> float | None:
        """The time until the next decision is needed, in seconds; None if none is."""
        return None if self._since_s is None else self.kept_s

    def update(self, met: bool, budget_ms: float, now_s: float) -> bool:
        """Take over one decision's expectation.

        Args:
            met: Whether the decision's target is expected to keep the budget.
            budget_ms: The budget, in ms; after a change of the budget, no time is needed.
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
        # A clock that was set back begins anew.
        if self._since_s is None or now_s < self._since_s:
            self._since_s = now_s
        return now_s - self._since_s >= self.kept_s
