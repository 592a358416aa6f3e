"""Which subnets to have in memory before they are needed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from fxelastic.edge.serving.ladder import Ladder, Step
from fxelastic.spec import Arch


@dataclass(frozen=True)
class Standby:
    """Names the subnets that the next changes of the load may ask for, the likeliest first.

    The quickest comes before them: with it at hand, a load is answered at once as well as it can
    be, and what is best under it can be loaded without disturbing the requests.

    What is in memory stays as long as it serves the purpose: the load is never the same twice, and
    loading another subnet for each of its readings would be a load itself.

    Attributes:
        ratios: Loads to be ready for, as multiples of the load there is.
        limit: How many subnets to hold ready besides the one in use.
        slack: A subnet in memory serves a load, too, if it is quicker than the best one by no more
            than this share.
    """

    ratios: Sequence[float] = (1.25, 1.5, 2.0, 3.0)
    limit: int = 5
    slack: float = 0.15

    def steps(
        self,
        ladder: Ladder,
        current: Step,
        budget_ms: float,
        limit_ms: float,
        here: Collection[Arch] = (),
    ) -> tuple[Step, ...]:
        """The subnets to hold ready.

        Args:
            ladder: The subnets that may be served.
            current: The one in use.
            budget_ms: What a request may take, in ms.
            limit_ms: Estimated latency that a subnet may have at the load there is, in ms.
            here: The subnets in memory.

        Returns:
            The quickest, what serves without a load, what serves under more of it, the neighbours
            on the ladder, and what is in memory anyway; at most ``limit``.
        """
        resident = ladder.only(here)
        found: list[Step | None] = [ladder.quickest, ladder.best_under(budget_ms)]
        found += [self._under(limit_ms / ratio, ladder, resident) for ratio in self.ratios]
        index = sum(step.latency_ms <= current.latency_ms for step in ladder.steps)
        found += ladder.steps[index : index + 1] + ladder.steps[max(index - 2, 0) : index]
        found += resident.steps
        unique = {
            step.arch: step for step in found if step is not None and step.arch != current.arch
        }
        return tuple(unique.values())[: self.limit]

    def _under(self, limit_ms: float, ladder: Ladder, resident: Ladder) -> Step | None:
        """The best subnet of at most that latency, or one in memory that is nearly as slow."""
        best, near = ladder.best_under(limit_ms), resident.best_under(limit_ms)
        if best is None or near is None or near.latency_ms < (1 - self.slack) * best.latency_ms:
            return best
        return near
