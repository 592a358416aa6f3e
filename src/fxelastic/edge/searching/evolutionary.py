"""Evolutionary search, near the budget and plain."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fxelastic.edge.searching.exhaustive import all_subnets
from fxelastic.edge.searching.guide import Guide
from fxelastic.edge.searching.mutation import Mutations, replaced
from fxelastic.edge.searching.study import Study
from fxelastic.errors import UsageError
from fxelastic.spec import Arch
from fxelastic.spec.cost_window import CostWindow

_ATTEMPTS = 200
# Subnets that are evaluated together where all are: what was done when a search ends is kept.
_GROUP = 50
_FRUITLESS = 20  # generations without a subnet not tried before: there seem to be no more


@dataclass(frozen=True)
class Evolutionary:
    """Evolves subnets under the budget, guided by what was evaluated.

    After AdaptiveNet §5.1 and Algorithm 1: it mutates the best subnets so that they keep the
    budget, and evaluates each generation as a group. Beyond that, it knows before the first subnet
    how far each branch is from what it replaces, and learns what branches cost in accuracy, and in
    each sample's margin, from all subnets evaluated so far. The first generation solves for the
    best under the budget; later, of many mutations only those that promise most are evaluated,
    those with known prefixes rather than others. In a small space where no more subnets fit than
    may be evaluated, all of them are.

    A subnet ends early when it can't be the best any more: what it did until then is learned
    from, and it may be mutated all the same.

    Attributes:
        population: Subnets of a generation.
        parents: The best so far, which are mutated.
        first: Subnets of the first generation.
        boldness: How far these are from what distortions make likely, in standard deviations.
        pool: Mutations to choose a generation from, for each subnet of it.
        again: Probability to mutate a mutation once more.
        solved: Subnets of a generation that solve for the best. They share few prefixes.
        solved_first: As many in the generation after the first, but at most half of it.
        wider: More parents for each generation without a better subnet.
        contenders: A subnet ends early when it can't be among so many best.
        thrift: Accuracy that a whole run of a subnet must promise to be worth it, for each subnet
            of a generation: the more there are, the less depends on one.
    """

    population: int = 16
    parents: int = 12
    first: int = 10
    boldness: float = 0.5
    pool: int = 50
    again: float = 0.4
    solved: int = 1
    solved_first: int = 8
    thrift: float = 0.0006
    wider: int = 1
    contenders: int = 1

    def run(self, study: Study) -> None:
        """Search; see `Strategy`."""
        fitting = few_fitting(study)
        if fitting is not None:
            for start in range(0, len(fitting), _GROUP):
                study.score(fitting[start : start + _GROUP])
            return
        guide = Guide(study)
        group = guide.additive_best()
        group += guide.solutions(self.first - len(group), self.boldness)
        study.score(group + seeds(study, self.first - len(group)))
        self.evolve(study, guide)

    def evolve(self, study: Study, guide: Guide, generations: float = math.inf) -> None:
        """Go on from what was evaluated.

        Args:
            study: The search.
            guide: What is known of the study's subnets.
            generations: After so many it ends; or when the study does, or nothing new is found.

        Raises:
            SearchEndedError: The study has ended.
        """
        fruitless = generation = idle = 0
        while fruitless < _FRUITLESS and generation < generations:
            tried, best = study.tried, study.best
            guide.learn()
            n_solved = self.solved if generation else min(self.solved_first, self.population // 2)
            group = guide.solutions(n_solved)
            n_left = self.population - len(group)
            # The longer nothing better is found, the farther it looks.
            parents = guide.best(self.parents + self.wider * idle)
            pool = self._mutations(study, parents, self.pool * n_left, group)
            if not parents:
                pool = seeds(study, n_left)
            group += guide.chosen(pool, n_left, self.thrift * self.population)
            contenders = best_of(study, self.contenders)
            full = len(contenders) == self.contenders
            floor = study.scores[contenders[-1]] if full else -math.inf
            study.score(group, floor)
            generation += 1
            idle = 0 if study.best != best else idle + 1
            fruitless = 0 if study.tried > tried else fruitless + 1

    def _mutations(
        self, study: Study, parents: list[Arch], n: int, known: Sequence[Arch]
    ) -> list[Arch]:
        """Different mutations of subnets that fit and are new."""
        changes = Mutations(study.space, study.costs, 0.0, study.high)

        def child() -> Arch | None:
            found: Arch | None = study.rng.choice(parents)
            while found is not None:
                found = changes.nearby(found, study.rng)
                if study.rng.random() >= self.again:
                    break
            return found if found is not None and study.fits(found) else None

        return new_ones(study, child, n, known, 2 * n + _ATTEMPTS) if parents else []


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
    """The subnets that fit, those with common branches beside each other; None where too many."""
    if study.space.count() > max(10_000, 4 * study.max_subnets):
        return None
    fitting = [arch for arch in all_subnets(study.space) if study.fits(arch)]
    if len(fitting) > study.max_subnets:
        return None
    return fitting


def window_below(study: Study, width: float) -> tuple[CostWindow, float]:
    """The window below the budget and its lower end; all that fits, where it is empty."""
    low = study.high * (1 - width)
    window = CostWindow(study.space, study.costs, low, study.high)
    try:
        window.sample(1, 0)
    except UsageError:
        return CostWindow(study.space, study.costs, high=study.high), 0.0
    return window, low


def seeds(study: Study, n: int) -> list[Arch]:
    """Up to n subnets that fit and are new, from just below the budget if any is there.

    Where hardly any fits, the quickest is among them, and those that keep the other limits.
    """
    if n < 1 or study.is_over():
        return []
    found = dict[Arch, None]()
    for window in (
        window_below(study, 0.1)[0],
        CostWindow(study.space, study.costs, 0, study.high),
    ):
        drawn = window.sample(n + _ATTEMPTS, study.rng.getrandbits(32))
        for arch in (*drawn, study.space.min_cost_arch(study.costs), *study.anchors):
            if len(found) < n and study.fits(arch) and not study.has_tried(arch):
                found[arch] = None
    return list(found)


def best_of(study: Study, n: int) -> list[Arch]:
    """The best subnets so far, best first; of equal ones the quicker first."""
    order = sorted(study.scores, key=lambda a: (-study.scores[a], study.cost(a), a.branches))
    return order[:n]


def new_ones(
    study: Study,
    child: Callable[[], Arch | None],
    n: int,
    known: Sequence[Arch] = (),
    attempts: int = _ATTEMPTS,
) -> list[Arch]:
    """Up to n different subnets that the study has not tried, in a bounded number of attempts."""
    found: dict[Arch, None] = {}
    for _ in range(attempts):
        if len(found) >= n or study.is_over():
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
        if study.is_over():
            break
        found += filter(study.fits, study.space.sample(n, study.rng.getrandbits(32)))
        if len(found) >= n:
            break
    return found[:n] or [study.space.min_cost_arch(study.costs)]
