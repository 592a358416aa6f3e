"""Evolutionary search, near the budget and plain."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fxelastic.edge.searching.additive import predicted_best
from fxelastic.edge.searching.exhaustive import all_subnets
from fxelastic.edge.searching.mutation import Mutations, replaced
from fxelastic.edge.searching.study import Study
from fxelastic.errors import UsageError
from fxelastic.spec import Arch
from fxelastic.spec.cost_window import CostWindow

_ATTEMPTS = 200
_FRUITLESS = 20  # generations without a subnet not tried before: there seem to be no more


@dataclass(frozen=True)
class Evolutionary:
    """Evolves subnets whose latency is just under the budget (AdaptiveNet §5.1, Algorithm 1).

    It begins with a uniform sample of the window below the budget, and goes on with mutations of
    the best that stay in it. A quarter of the mutations may be quicker than the window, as the
    best subnet need not be among the slowest that fit. Each generation is evaluated as a group.
    Where no more subnets fit than may be evaluated, all of them are.

    Attributes:
        population: Subnets of a generation.
        parents: The best so far, which are mutated.
        width: Width of the window, as a share of the budget.
        informed: Take what was learned of single branches into account: the subnets that are best
            if every branch costs the accuracy that it seems to cost.
        patience: Generations without a better subnet before the window is drawn anew.
    """

    population: int = 20
    parents: int = 8
    width: float = 0.1
    informed: bool = True
    patience: int = 3

    def run(self, study: Study) -> None:
        """Search; see `Strategy`."""
        fitting = few_fitting(study)
        if fitting is not None:
            study.score(fitting)
            return
        window, _ = window_below(study, self.width)
        first = window.sample(self.population, study.rng.getrandbits(32))
        study.score([study.space.original, *first])
        self.evolve(study)

    def evolve(self, study: Study, generations: float = math.inf) -> None:
        """Go on from what was evaluated.

        Args:
            study: The search.
            generations: After so many it ends; or when the study does, or nothing new is found.

        Raises:
            SearchEndedError: The study has ended.
        """
        window, low = window_below(study, self.width)
        near = Mutations(study.space, study.costs, low, study.high)
        anywhere = Mutations(study.space, study.costs, 0.0, study.high)
        idle = fruitless = generation = 0
        while fruitless < _FRUITLESS and generation < generations:
            generation += 1
            tried, best = study.tried, study.best
            children = predicted_best(study, self.population // 4) if self.informed else []
            if idle % self.patience == self.patience - 1:
                children += window.sample(self.population // 2, study.rng.getrandbits(32))
            parents = best_of(study, self.parents)

            def child(parents: list[Arch] = parents) -> Arch | None:
                source = anywhere if study.rng.random() < 0.25 else near
                return source.mutate(study.rng.choice(parents), study.rng)

            if parents:
                children += new_ones(study, child, self.population - len(children), children)
            else:
                children += window.sample(self.population, study.rng.getrandbits(32))
            full = len(parents) == self.parents
            study.score(children, study.scores[parents[-1]] if full else -math.inf)
            idle = 0 if study.best != best else idle + 1
            fruitless = 0 if study.tried > tried else fruitless + 1


@dataclass(frozen=True)
class PlainEvolutionary:
    """Evolves subnets without regard to latency; what does not fit is thrown away.

    The baseline of AdaptiveNet §7.6.

    Attributes:
        population: Subnets of a generation.
        parents: The best so far, which are mutated.
    """

    population: int = 20
    parents: int = 8

    def run(self, study: Study) -> None:
        """Search; see `Strategy`."""
        study.score(_fitting(study, self.population))
        fruitless = 0
        while fruitless < _FRUITLESS:
            tried, parents = study.tried, best_of(study, self.parents)

            def child(parents: list[Arch] = parents) -> Arch | None:
                found = plain_mutation(study, study.rng.choice(parents))
                return found if study.fits(found) else None

            children = new_ones(study, child, self.population) if parents else []
            study.score(children or _fitting(study, self.population))
            fruitless = 0 if study.tried > tried else fruitless + 1


def few_fitting(study: Study) -> list[Arch] | None:
    """The subnets that fit, slowest first; None where more do than may be evaluated."""
    if study.space.count() > max(10_000, 4 * study.max_subnets):
        return None
    fitting = [arch for arch in all_subnets(study.space) if study.fits(arch)]
    if len(fitting) > study.max_subnets:
        return None
    return sorted(fitting, key=lambda arch: (-study.cost(arch), arch.branches))


def window_below(study: Study, width: float) -> tuple[CostWindow, float]:
    """The window below the budget and its lower end; all that fits, where it is empty."""
    low = study.high * (1 - width)
    window = CostWindow(study.space, study.costs, low, study.high)
    try:
        window.sample(1, 0)
    except UsageError:
        return CostWindow(study.space, study.costs, high=study.high), 0.0
    return window, low


def best_of(study: Study, n: int) -> list[Arch]:
    """The best subnets so far, best first; of equal ones the quicker first."""
    order = sorted(study.scores, key=lambda a: (-study.scores[a], study.cost(a), a.branches))
    return order[:n]


def new_ones(
    study: Study, child: Callable[[], Arch | None], n: int, known: Sequence[Arch] = ()
) -> list[Arch]:
    """Up to n different subnets that the study has not tried, in a bounded number of attempts."""
    found: dict[Arch, None] = {}
    for _ in range(_ATTEMPTS):
        if len(found) >= n:
            break
        arch = child()
        if arch is not None and not study.has_tried(arch) and arch not in known:
            found[arch] = None
    return list(found)


def plain_mutation(study: Study, arch: Arch) -> Arch:
    """A subnet with one random branch put in."""
    others = [spec for spec in study.space.branches if spec.id not in set(arch.branches)]
    return replaced(study.space, arch, study.rng.choice(others)) if others else arch


def _fitting(study: Study, n: int) -> list[Arch]:
    """Random subnets that fit; the quickest where none seems to."""
    found: list[Arch] = []
    for _ in range(_ATTEMPTS):
        found += filter(study.fits, study.space.sample(n, study.rng.getrandbits(32)))
        if len(found) >= n:
            break
    return found[:n] or [study.space.min_cost_arch(study.costs)]
