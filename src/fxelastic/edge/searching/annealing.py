"""Simulated annealing, near the budget and plain."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from fxelastic.edge.searching.evolutionary import plain_mutation, seeds, window_below
from fxelastic.edge.searching.mutation import Mutations
from fxelastic.edge.searching.study import Study
from fxelastic.spec import Arch

_ATTEMPTS = 200


@dataclass(frozen=True)
class Annealing:
    """Walks from neighbour to neighbour in the window below the budget (AdaptiveNet §5.1).

    A worse neighbour is taken with a probability that falls with time.

    Attributes:
        width: Width of the window, as a share of the budget.
        start: Temperature at the beginning, as a difference of scores.
        end: Temperature at the end.
    """

    width: float = 0.1
    start: float = 0.03
    end: float = 0.001

    def run(self, study: Study) -> None:
        """Search; see `Strategy`."""
        window, low = window_below(study, self.width)
        drawn = window.sample(_ATTEMPTS, study.rng.getrandbits(32))
        here = next(filter(study.fits, drawn), None) or next(iter(seeds(study, 1)), drawn[0])
        mutations = Mutations(study.space, study.costs, low, study.high)
        below = Mutations(study.space, study.costs, 0.0, study.high)

        def neighbour(arch: Arch) -> Arch | None:
            """One in the window; where that breaks other limits, one below the window."""
            child = mutations.mutate(arch, study.rng)
            if child is None or study.fits(child):
                return child
            for _ in range(_ATTEMPTS):
                other = below.nearby(arch, study.rng)
                if other is not None and study.fits(other):
                    return other
            return child

        _anneal(study, here, neighbour, self.start, self.end)


@dataclass(frozen=True)
class PlainAnnealing:
    """Walks without regard to latency; what does not fit is thrown away.

    Attributes:
        start: Temperature at the beginning, as a difference of scores.
        end: Temperature at the end.
    """

    start: float = 0.03
    end: float = 0.001

    def run(self, study: Study) -> None:
        """Search; see `Strategy`."""
        here = study.space.min_cost_arch(study.costs)
        for arch in study.space.sample(_ATTEMPTS, study.rng.getrandbits(32)):
            if study.fits(arch):
                here = arch
                break

        def neighbour(arch: Arch) -> Arch | None:
            for _ in range(_ATTEMPTS):
                child = plain_mutation(study, arch)
                if study.fits(child) and child != arch:
                    return child
            return None

        _anneal(study, here, neighbour, self.start, self.end)


def _anneal(
    study: Study, here: Arch, neighbour: Callable[[Arch], Arch | None], start: float, end: float
) -> None:
    study.score([here])
    stuck = 0
    while stuck < _ATTEMPTS and here in study.scores:
        other = neighbour(here)
        if other is None:
            return
        known = study.tried
        found = study.score([other]).get(other)
        stuck = 0 if study.tried > known else stuck + 1
        if found is None:
            continue
        progress = min(1.0, study.tried / max(1, study.max_subnets))
        temperature = start * (end / start) ** progress
        change = found - study.scores[here]
        if change >= 0 or study.rng.random() < math.exp(change / temperature):
            here = other
