"""Choose among the best subnets within limits by a weighted cost of several resources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fxelastic.edge.searching.additive import quality_costs
from fxelastic.edge.searching.proposals import few_fitting
from fxelastic.edge.searching.schedule import answer
from fxelastic.edge.searching.study import (
    SearchAbortedError,
    SearchEndedError,
    Strategy,
    Study,
)
from fxelastic.spec import Arch
from fxelastic.spec.cost_weights import CostWeights

# The share of the subnets that are kept for cheaper ones.
_RESERVED = 8
# Prices of the weighted cost, in the score that a subnet may lose for a cost of the original's.
_PRICES = tuple(2.0**i for i in range(9))


@dataclass(frozen=True)
class Weighted:
    """Searches for the best score with another strategy, and then for cheaper subnets near it.

    The cheaper subnets have the highest expected score at a price of the weighted cost, for several
    prices: a Lagrangian relaxation of the least cost at a given score, solved by the dynamic
    programme over the branches. In a small space, the other strategy evaluates all subnets that
    fit, so that the choice is exact.

    Attributes:
        strategy: Searches for the best score.
        weights: How much each resource counts.
        tolerance: The score that a subnet may be below the best.

    Source: AdaScale, Eq. 6 and 7.
    """

    strategy: Strategy
    weights: CostWeights
    tolerance: float

    def check(self, study: Study) -> None:
        """Check the other strategy's demands; see `Strategy`.

        Raises:
            UsageError: The strategy does not suit the study.
        """
        check = getattr(self.strategy, "check", None)
        if check is not None:
            check(study)

    def run(self, study: Study) -> None:
        """Search; see `Strategy`."""
        most = study.max_subnets
        if few_fitting(study) is None:
            study.max_subnets = max(1, most - most // _RESERVED)
        try:
            self.strategy.run(study)
        except SearchAbortedError:
            raise
        except SearchEndedError:
            pass
        finally:
            study.max_subnets = most
        lost = quality_costs(study.space, study.evaluator.measured_distortion)
        best = max(study.scores.values(), default=0.0)
        scale = _score_of_quality(study, lost, best)
        own = self._branch_costs(study)
        fresh: dict[Arch, None] = {}
        for price in _PRICES:
            values = {
                branch: -scale * lost.get(branch, 0.0) - price * self.tolerance * cost
                for branch, cost in own.items()
            }
            fresh |= dict.fromkeys(study.most_valuable(values))
        study.score([arch for arch in fresh if not study.has_tried(arch)])

    def best(self, study: Study) -> Arch | None:
        """The subnet with the least weighted cost among those nearly as good as the best.

        Args:
            study: The search, after it has ended.

        Returns:
            The subnet; None if no subnet within the limits is known.
        """
        found = answer(study)
        if found is None or found not in study.scores:
            return found
        least = study.scores[found] - self.tolerance
        original = study.resources.predict(study.space.original)

        def rank(arch: Arch) -> tuple[float, float, tuple[str, ...]]:
            cost = self.weights.cost(study.resources.predict(arch), original)
            return cost, -study.scores[arch], arch.branches

        return min((a for a, s in study.scores.items() if s >= least and study.fits(a)), key=rank)

    def _branch_costs(self, study: Study) -> dict[str, float]:
        """The weighted cost of each branch alone, as a share of the original's."""
        original = study.resources.predict(study.space.original)
        names = [name for name in self.weights if original[name] > 0]
        return {
            spec.id: sum(
                self.weights[n] * study.resources[n].costs[spec.id] / original[n] for n in names
            )
            for spec in study.space.branches
        }


def _score_of_quality(study: Study, lost: Mapping[str, float], best: float) -> float:
    """How much score a unit of lost quality costs, in the median of the evaluated subnets."""
    ratios = []
    for arch, score in study.evaluator.known.items():
        quality = sum(lost.get(branch, 0.0) for branch in arch)
        if quality > 0:
            ratios.append(max(0.0, best - score) / quality)
    ratios.sort()
    return ratios[len(ratios) // 2] if ratios else 1.0
