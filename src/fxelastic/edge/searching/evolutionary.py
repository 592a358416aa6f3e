"""Evolutionary search, near the budget and plain."""

from __future__ import annotations

from dataclasses import dataclass

from fxelastic.edge.searching.additive import predicted_best
from fxelastic.edge.searching.mutation import Mutations, replaced
from fxelastic.edge.searching.study import Study
from fxelastic.errors import UsageError
from fxelastic.spec import Arch
from fxelastic.spec.cost_window import CostWindow

_ATTEMPTS = 200


@dataclass(frozen=True)
class Evolutionary:
    """Evolves subnets whose latency is just under the budget (AdaptiveNet §5.1, Algorithm 1).

    It begins with a uniform sample of the window below the budget, and goes on with mutations of
    the best that stay in it. A quarter of the mutations may be quicker than the window, as the
    best subnet need not be among the slowest that fit. Each generation is evaluated as a group.

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
        low = study.high * (1 - self.width)
        near = CostWindow(study.space, study.costs, low, study.high)
        wide = CostWindow(study.space, study.costs, high=study.high)
        try:
            near.sample(1, 0)
        except UsageError:
            near, low = wide, 0.0  # few subnets are near the budget: take what fits
        mutations = Mutations(study.space, study.costs, low, study.high)
        anywhere = Mutations(study.space, study.costs, 0.0, study.high)
        first = near.sample(self.population, study.rng.getrandbits(32))
        if study.fits(study.space.original):
            first.append(study.space.original)
        study.score(first)
        idle, best = 0, study.best
        while True:
            children: list[Arch] = []
            if self.informed:
                children += predicted_best(study, self.population // 4)
            parents = sorted(study.scores, key=lambda a: (-study.scores[a], study.cost(a)))
            parents = parents[: self.parents]
            for _ in range(_ATTEMPTS):
                if len(children) >= self.population or not parents:
                    break
                parent = study.rng.choice(parents)
                source = anywhere if study.rng.random() < 0.25 else mutations
                child = source.mutate(parent, study.rng)
                if child is not None and child not in study.scores and child not in children:
                    children.append(child)
            if idle >= self.patience:
                children += near.sample(self.population // 2, study.rng.getrandbits(32))
                idle = 0
            if not children:
                children = wide.sample(self.population, study.rng.getrandbits(32))
            floor = study.scores[parents[-1]] if len(parents) == self.parents else float("-inf")
            tried = study.tried
            study.score(children, floor)
            idle = 0 if study.best != best else idle + 1
            best = study.best
            if study.tried == tried and idle > 10 * self.patience:
                return  # the space seems to be exhausted


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
        first = _fitting(study, self.population)
        study.score(first)
        while True:
            parents = sorted(study.scores, key=lambda a: (-study.scores[a], study.cost(a)))
            parents = parents[: self.parents]
            children: list[Arch] = []
            for _ in range(_ATTEMPTS):
                if len(children) >= self.population:
                    break
                child = plain_mutation(study, study.rng.choice(parents))
                if study.fits(child) and child not in study.scores and child not in children:
                    children.append(child)
            study.score(children or _fitting(study, self.population))


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
