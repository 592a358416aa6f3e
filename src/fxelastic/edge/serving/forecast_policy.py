"""Switch before the budget is broken, by the forecast."""

from __future__ import annotations

from dataclasses import dataclass

from fxelastic.edge.serving.policy import Decision, RatioPolicy, Situation, since_last


@dataclass(frozen=True)
class ForecastPolicy(RatioPolicy):
    """The rule of `RatioPolicy`, which also steps down ahead of a load that is forecast.

    *Down*: if the highest r that is expected within a second would exceed the budget, switch now to
    the best subnet that keeps it then. *Up*: climb only to what keeps the budget then, too.

    Where no model was clearly better than the last r lately, the decisions are those of
    `RatioPolicy`.

    Attributes:
        least_rise: How much the expected r must exceed the r of the newest requests, as a share of
            it, for a step down ahead.
    """

    least_rise: float = 0.03

    def decide(self, situation: Situation) -> Decision:
        """Decide; see `SwitchPolicy`."""
        decision = super().decide(situation)
        current, outlook = situation.current, situation.outlook
        if outlook is None or outlook.high is None:
            return decision
        expected, budget_ms = outlook.high, situation.budget_ms
        if decision.target.ms > current.ms:
            limit_ms = min(decision.limit_ms, budget_ms * (1 - self.room_up) / expected)
            if decision.target.ms <= limit_ms:
                return decision
            better = self.best(situation, limit_ms)
            if better is not None and self._is_worth_it(better, current, situation.table):
                return Decision(better, True, limit_ms, decision.reason)
            return Decision(current, True, limit_ms, f"r {expected:.2f} is expected")
        recent = situation.load.recent
        if (
            decision.target.arch != current.arch
            or not decision.met
            or not self._has_begun(situation)
            or expected * current.ms <= budget_ms
            or (recent is not None and expected < (1 + self.least_rise) * recent)
        ):
            return decision
        since_s = since_last(situation)
        if since_s is not None and 0 <= since_s < self.dwell_s:
            return decision
        limit_ms = budget_ms * (1 - self.room_down) / expected
        target = self.best(situation, limit_ms) or situation.table.quickest
        if target is None or target.ms >= current.ms:
            return decision
        reason = (
            f"r {expected:.2f} is expected in {outlook.horizon_s:g} s, at which "
            f"{expected * current.ms:.3g} ms exceed the budget of {budget_ms:.3g} ms"
        )
        return Decision(target, True, limit_ms, reason)
