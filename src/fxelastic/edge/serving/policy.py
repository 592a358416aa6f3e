"""Which subnet to serve next: the rule of §5.3, without flapping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

from fxelastic.edge.serving.ladder import Ladder, Step
from fxelastic.edge.serving.monitor import Load


class PastSwitch(NamedTuple):
    """A switch that was made.

    Attributes:
        time_s: When, on the runtime's clock.
        up: It was to a slower, more accurate subnet.
    """

    time_s: float
    up: bool


@dataclass(frozen=True)
class Situation:
    """All that a policy may look at.

    Attributes:
        now_s: The time, on the runtime's clock.
        budget_ms: What a request may take, in ms.
        load: What the monitor knows.
        current: The subnet in use; the ladder may no longer have it.
        ladder: The subnets that may be served.
        switches: The switches made, oldest first; at least those of the last ten minutes.
    """

    now_s: float
    budget_ms: float
    load: Load
    current: Step
    ladder: Ladder
    switches: Sequence[PastSwitch] = ()


@dataclass(frozen=True)
class Decision:
    """What a policy wants.

    Attributes:
        target: The subnet to serve; the current one to stay.
        met: The target is expected to keep the budget.
        limit_ms: Estimated latency that a subnet may have at the load there is: ``T/r``.
        reason: Why, for people.
        again_s: Ask again after this time in seconds, even if there is no request; None not to.
    """

    target: Step
    met: bool
    limit_ms: float
    reason: str
    again_s: float | None = None


class Policy(Protocol):
    """Decides which subnet to serve.

    The contract:

    * `decide` depends on its argument only, and changes nothing. It is called some twenty times a
      second, by one thread.
    * The target is a step of the ladder, or the current subnet.
    * It need not care whether the target is loaded: the runtime keeps the current subnet until
      then, and asks again.
    """

    def decide(self, situation: Situation) -> Decision:
        """Decide."""


@dataclass(frozen=True)
class RatioPolicy:
    """Serve the most accurate subnet under ``T/r`` (§5.3), slow to climb and quick to step down.

    *Down*: when the median latency exceeds the budget, at once, to the best subnet under ``T/r``
    less some room; r is the upper quartile of the newest requests, so that one switch is enough for
    a step of the load, whose level is seldom the same for a second.

    *Up*: when a more accurate subnet would have kept the budget at every moment of the last
    ``calm_s`` seconds. The hysteresis lies in this time rather than in the room: a large share of
    free budget would keep out the very subnet that was the best before the load came. Under a load
    the wait is longer, up to eight times, for what a load takes varies, and what is free may be so
    by chance; two and a half short waits after it has gone, the wait is short again. A climb that
    had to be taken back soon doubles the wait for the next one: a load that comes and goes costs
    fewer and fewer switches.

    Attributes:
        room_down: Share of the budget that stays free after a step down.
        room_up: Share of the budget that stays free after a climb.
        settle_s: How long there must have been requests before their latencies count, in seconds: a
            runtime that begins loads other subnets besides.
        dwell_s: Time between two switches down, in seconds.
        calm_s: How long there must have been room for a climb where r is 1 or less, in seconds.
        calm_rise: By how many times more for each 1 that r is above that, up to eight times in all.
        worth: Share of the ladder's range of accuracies that a climb must gain, unless it leads to
            the top: a switch for next to nothing is another one to take back.
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
        """Decide; see the class."""
        load, budget_ms, current = situation.load, situation.budget_ms, situation.current
        # Before there were requests for a while, the estimates are all there is.
        begun = load.begin_s is None or situation.now_s - load.begin_s >= self.settle_s
        ratio = load.ratio if load.ratio is not None and begun else 1.0
        actual_ms = ratio * current.latency_ms
        if actual_ms > budget_ms:
            return self._down(situation, ratio, actual_ms)
        return self._up(situation, ratio)

    def _down(self, situation: Situation, ratio: float, actual_ms: float) -> Decision:
        current, ladder = situation.current, situation.ladder
        recent = situation.load.recent
        # Not the whole window's, nor the median: one switch is to be enough for a step of the load.
        worst = situation.load.high or recent or ratio
        limit_ms = situation.budget_ms * (1 - self.room_down) / worst
        exceeded = (
            f"{actual_ms:.3g} ms exceed the budget of {situation.budget_ms:.3g} ms (r {ratio:.2f})"
        )
        since_s = _since_last(situation)
        if since_s is not None and 0 <= since_s < self.dwell_s:
            # Most of the window is from before the switch; that is no reason to give up.
            again_s = self.dwell_s - since_s
            return Decision(current, True, limit_ms, f"{exceeded}, just switched", again_s)
        if recent is not None and recent * current.latency_ms <= situation.budget_ms:
            return Decision(current, True, limit_ms, f"{exceeded}, but the newest requests do not")
        fitting = ladder.best_under(limit_ms)
        if fitting is not None and fitting.latency_ms < current.latency_ms:
            return Decision(fitting, True, limit_ms, exceeded)
        quickest = ladder.quickest
        if quickest is None or quickest.latency_ms >= current.latency_ms:
            return Decision(current, False, limit_ms, f"{exceeded}, and nothing is quicker")
        met = quickest.latency_ms * (recent or ratio) <= situation.budget_ms
        return Decision(quickest, met, limit_ms, f"{exceeded}, which only the quickest may keep")

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
        better = situation.ladder.best_under(limit_ms)
        if better is None or not self._is_worth_it(better, current, situation.ladder):
            return stay
        newer = load.peak_since(situation.now_s - calm_s / 2)
        if newer is not None:
            soon_ms = situation.budget_ms * (1 - self.room_up) / max(ratio, newer)
            soon = situation.ladder.best_under(soon_ms)
            if soon is not None and soon.accuracy > better.accuracy:
                # A load has just gone: one switch up is enough, too.
                return stay
        reason = f"there has been room for {calm_s:.3g} s (r at most {worst:.2f})"
        return Decision(better, True, limit_ms, reason)

    def _is_worth_it(self, better: Step, current: Step, ladder: Ladder) -> bool:
        steps = ladder.steps
        if better.accuracy <= current.accuracy or better.arch == steps[-1].arch:
            return better.accuracy > current.accuracy
        whole = steps[-1].accuracy - steps[0].accuracy
        return better.accuracy - current.accuracy >= self.worth * whole

    def calm_for(self, situation: Situation) -> float:
        """How long there must have been room: by the load and the failed climbs; in seconds."""
        # The peak of some time: a load that lets go for a moment has not gone.
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
