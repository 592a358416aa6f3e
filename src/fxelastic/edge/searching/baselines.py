"""Baseline strategies: every subnet, simulated annealing, and searches that ignore costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from fxelastic.edge.searching.proposals import (
    ATTEMPTS,
    FRUITLESS,
    Mutations,
    all_subnets,
    best_of,
    fitting,
    new_ones,
    plain_mutation,
    seeds,
    window_below,
)
from fxelastic.edge.searching.study import Study
from fxelastic.errors import UsageError
from fxelastic.spec import Arch


@dataclass(frozen=True)
class Exhaustive:
    """Evaluates every subnet that fits.

    Attributes:
        limit: The largest number of subnets in the space.
        group: The number of subnets evaluated together.
    """

    limit: int = 20_000
    group: int = 200

    def run(self, study: Study) -> None:
        """Search; see `Strategy`.

        Raises:
            UsageError: See `check`.
        """
        archs = self.check(study)
        for start in range(0, len(archs), self.group):
            study.score(archs[start : start + self.group])

    def check(self, study: Study) -> list[Arch]:
        """The subnets that `run` evaluates.

        Raises:
            UsageError: There are more subnets than the limit, or more fit than may be evaluated.
        """
        count = study.space.count()
        if count > self.limit:
            raise UsageError(
                "the search space has too many subnets to evaluate all of them",
                expected=f"at most {self.limit:,}",
                got=f"{count:,}" if count < 10**15 else f"about {count:.2g}",
                fix="use another strategy, such as evolutionary",
            )
        archs = [arch for arch in all_subnets(study.space) if study.fits(arch)]
        if len(archs) > study.max_subnets:
            raise UsageError(
                "more subnets fit than may be evaluated",
                expected=f"max_subnets of at least {len(archs)}, or another strategy",
                got=str(study.max_subnets),
                fix=f"pass max_subnets={len(archs)}, or --max-subnets on the command line",
            )
        return archs


@dataclass(frozen=True)
class Annealing:
    """Simulated annealing in the window of costs below the limit (AdaptiveNet §5.1).

    A worse neighbour is accepted with a probability that decreases over time.

    Attributes:
        width: Width of the window, as a share of the limit.
        start: Temperature at the beginning, as a difference of scores.
        end: Temperature at the end.
    """

    width: float = 0.1
    start: float = 0.03
    end: float = 0.001

    def run(self, study: Study) -> None:
        """Search; see `Strategy`."""
        window, low = window_below(study, self.width)
        drawn = window.sample(ATTEMPTS, study.rng.getrandbits(32))
        here = next(filter(study.fits, drawn), None) or next(iter(seeds(study, 1)), drawn[0])
        mutations = Mutations.of(study, low)
        below = Mutations.of(study)

        def neighbour(arch: Arch) -> Arch | None:
            """A neighbour in the window, or below the window if that one exceeds other limits."""
            child = mutations.mutate(arch, study.rng)
            if study.fits(child) if child is not None else not mutations.others:
                return child
            for _ in range(ATTEMPTS):
                other = below.nearby(arch, study.rng)
                if other is not None and study.fits(other):
                    return other
            return child

        _anneal(study, here, neighbour, self.start, self.end)


@dataclass(frozen=True)
class PlainAnnealing:
    """Simulated annealing that ignores costs and discards subnets that do not fit.

    Attributes:
        start: Temperature at the beginning, as a difference of scores.
        end: Temperature at the end.
    """

    start: float = 0.03
    end: float = 0.001

    def run(self, study: Study) -> None:
        """Search; see `Strategy`."""
        (here,) = fitting(study, 1)

        def neighbour(arch: Arch) -> Arch | None:
            for _ in range(ATTEMPTS):
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
    while stuck < ATTEMPTS and here in study.scores:
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


@dataclass(frozen=True)
class PlainEvolutionary:
    """An evolutionary search that ignores costs and discards subnets that do not fit.

    This is the baseline of AdaptiveNet §7.6.

    Attributes:
        population: The number of subnets in a generation.
        parents: The number of best subnets so far that are mutated.
    """

    population: int = 20
    parents: int = 8

    def run(self, study: Study) -> None:
        """Search; see `Strategy`."""
        study.score(fitting(study, self.population))
        fruitless = 0
        while fruitless < FRUITLESS:
            tried, parents = study.tried, best_of(study, self.parents)

            def child(parents: list[Arch] = parents) -> Arch | None:
                found = plain_mutation(study, study.rng.choice(parents))
                return found if study.fits(found) else None

            children = new_ones(study, child, self.population) if parents else []
            study.score(children or fitting(study, self.population))
            fruitless = 0 if study.tried > tried else fruitless + 1
