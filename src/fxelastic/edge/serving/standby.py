"""Which subnets to have in memory before they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fxelastic.edge.serving.ladder import Ladder, Step


@dataclass(frozen=True)
class Standby:
    """Names the subnets that the next changes of the load may ask for, the likeliest first.

    Attributes:
        ratios: Loads to be ready for, as multiples of the load there is.
        limit: How many subnets to hold ready besides the one in use.
    """

    ratios: Sequence[float] = (1.25, 1.5, 2.0, 3.0)
    limit: int = 5

    def steps(
        self, ladder: Ladder, current: Step, budget_ms: float, limit_ms: float
    ) -> tuple[Step, ...]:
        """The subnets to hold ready.

        Args:
            ladder: The subnets that may be served.
            current: The one in use.
            budget_ms: What a request may take, in ms.
            limit_ms: Estimated latency that a subnet may have at the load there is, in ms.

        Returns:
            What serves without a load, what serves under more of it, the quickest, and the
            neighbours on the ladder; at most ``limit``.
        """
        found: list[Step | None] = [ladder.best_under(budget_ms)]
        found += [ladder.best_under(limit_ms / ratio) for ratio in self.ratios]
        found.append(ladder.quickest)
        index = sum(step.latency_ms <= current.latency_ms for step in ladder.steps)
        found += ladder.steps[index : index + 1] + ladder.steps[max(index - 2, 0) : index]
        unique = {
            step.arch: step for step in found if step is not None and step.arch != current.arch
        }
        return tuple(unique.values())[: self.limit]
