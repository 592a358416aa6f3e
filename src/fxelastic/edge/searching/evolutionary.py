"""Evolutionary search under the limits, guided by everything that was evaluated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fxelastic.edge.executor import Array
from fxelastic.edge.searching.additive import additive_best, quality_costs
from fxelastic.edge.searching.prefixes import Prefixes
from fxelastic.edge.searching.proposals import (
    ATTEMPTS,
    FRUITLESS,
    Mutations,
    best_of,
    few_fitting,
    new_ones,
    seeds,
)
from fxelastic.edge.searching.study import Study
from fxelastic.edge.searching.surrogates import MarginModel, Prior, ScoreModel
from fxelastic.spec import Arch

# Subnets that are evaluated together where all are: a search that ends in between keeps the groups
# that are done.
_GROUP = 50
_DRAWS = 4  # for each solution that is wanted
_CURIOSITY = 0.002  # standard deviation of the promise of a subnet of which nothing is known
_WORTH = 0.002  # of the score, for an expected improvement that is e times as large
_LEAST_DEVIATION = 1e-5
_FEW = 5  # subnets with margins that a model of margins needs


@dataclass(frozen=True)
class Evolutionary:
    """Evolves subnets within the limits, guided by what was evaluated.

    As in AdaptiveNet §5.1 and Algorithm 1, it mutates the best subnets so that they keep the
    limits, and evaluates each generation as a group. Beyond that, it measures before the first
    subnet how far each branch is from what it replaces, and learns from all evaluated subnets what
    branches cost in accuracy and in each sample's margin. The first generation solves for the best
    within the limits; later, of many mutations only the most promising are evaluated, and those
    with known prefixes are preferred. In a small space where no more subnets fit than may be
    evaluated, all of them are.

    A subnet ends early when it can't be the best any more. The search still learns from its
    samples, and may mutate it.

    Attributes:
        population: Subnets of a generation.
        parents: The best so far, which are mutated.
        first: Subnets of the first generation.
        boldness: How far these are from the likely best, in standard deviations.
        pool: Mutations to choose a generation from, for each subnet of it.
        again: Probability to mutate a mutation once more.
        solved: Subnets of a generation that solve for the best. They share few prefixes.
        solved_first: The same for the generation after the first; at most half of it.
        wider: Additional parents for each generation without a better subnet.
        contenders: A subnet ends early when it can't be among this many best.
        thrift: Accuracy that a whole run of a subnet must promise, for each subnet of a
            generation: the more there are, the less depends on one.
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
        """Continue from the subnets that were evaluated.

        Args:
            study: The search.
            guide: Predicts the study's subnets.
            generations: The most generations; it ends earlier where nothing new is found.

        Raises:
            SearchEndedError: The study has ended.
        """
        fruitless = generation = idle = 0
        while fruitless < FRUITLESS and generation < generations:
            tried, best = study.tried, study.best
            guide.learn()
            n_solved = self.solved if generation else min(self.solved_first, self.population // 2)
            group = guide.solutions(n_solved)
            n_left = self.population - len(group)
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
        changes = Mutations.of(study)

        def child() -> Arch | None:
            found: Arch | None = study.rng.choice(parents)
            while found is not None:
                found = changes.nearby(found, study.rng)
                if study.rng.random() >= self.again:
                    break
            return found if found is not None and study.fits(found) else None

        return new_ones(study, child, n, known, 2 * n + ATTEMPTS) if parents else []


class Guide:
    """Learns from a study's evaluated subnets, and proposes others."""

    def __init__(self, study: Study) -> None:
        """Measure the branches' distortions, unless that was done.

        Args:
            study: The search.
        """
        self._study = study
        self._distortion = study.evaluator.distortion(study.is_over)
        self._prior = Prior(self._distortion)
        self._scores = ScoreModel(self._prior, study.evaluator.metric.most)
        self._margins: MarginModel | None = None
        self._best = 0.0  # score of those that fit, on the samples with margins
        self._estimates: dict[Arch, float] = {}

    def learn(self) -> None:
        """Fit the models to all evaluated subnets."""
        evaluator = self._study.evaluator
        margins = evaluator.margins.by_arch
        early = [arch for arch in margins if arch not in evaluator.known]
        self._margins, self._estimates = None, evaluator.estimates()
        longest = max(map(len, margins.values()), default=0)
        evaluator.make_room(MarginModel.needed_bytes(len(margins), longest))
        if len(margins) >= _FEW:
            self._margins = MarginModel(self._prior, margins, self._study.fits)
            estimates = self._margins.completed({arch: margins[arch] for arch in early})
            # The first samples, which have margins, may be easier than the rest.
            whole = [arch for arch in margins if arch in evaluator.known]
            easier = [float((margins[a] > 0).mean()) - evaluator.known[a] for a in whole]
            bias = math.fsum(easier) / max(len(easier), 1)
            self._estimates = {arch: score - bias for arch, score in estimates.items()}
            self._best = max(self._study.scores.values(), default=0.0) + bias
        scores = evaluator.known | self._estimates
        if scores:
            self._scores.fit(scores)

    def best(self, n: int) -> list[Arch]:
        """The best subnets so far, best first; of equal ones the cheaper first.

        Subnets that ended early count by their estimated scores.
        """
        study = self._study
        early = {arch: score for arch, score in self._estimates.items() if study.fits(arch)}
        scores = early | study.scores
        return sorted(scores, key=lambda a: (-scores[a], study.cost(a), a.branches))[:n]

    def additive_best(self) -> list[Arch]:
        """The subnet of the least total distortion within the limits, if it is new."""
        study = self._study
        found = additive_best(study, quality_costs(study.space, self._distortion))
        return [] if found is None or study.has_tried(found) else [found]

    def solutions(self, n: int, scale: float = 1.0) -> list[Arch]:
        """New subnets, each the best within the limits for one draw of the branches' costs.

        Args:
            n: The most subnets.
            scale: The standard deviation of draws, in units of the model's.
        """
        study, found = self._study, dict[Arch, None]()
        for _ in range(_DRAWS * n):
            if len(found) >= n or study.is_over():
                break
            values = self._scores.draw(study.rng, scale)
            for arch in study.most_valuable(values):
                if not study.has_tried(arch):
                    found[arch] = None
        return list(found)

    def chosen(self, pool: Sequence[Arch], n: int, thrift: float) -> list[Arch]:
        """The most promising subnets of a pool.

        Args:
            pool: Subnets to choose from.
            n: The most subnets.
            thrift: The promise, in units of the score, that is worth the time of a whole run.
                Prefixes shared with a chosen subnet take no time.
        """
        if not pool or n < 1:
            return []
        study = self._study
        prefixes = Prefixes(pool, study.costs)
        promise = self._promise(pool)
        chosen: list[Arch] = []
        for _ in range(min(n, len(pool))):
            i = int(np.argmax(promise - thrift / study.high * prefixes.own))
            chosen.append(pool[i])
            promise[i] = -math.inf
            prefixes.add(i)
        return chosen

    def _promise(self, pool: Sequence[Arch]) -> Array:
        study = self._study
        if self._margins is None:
            draws = [self._scores.draw(study.rng) for _ in range(8)]
            values = [
                sum(draws[i % len(draws)].get(branch, 0.0) for branch in arch)
                for i, arch in enumerate(pool)
            ]
            return np.array(values)
        accuracy, deviation, unknown = self._margins.predict(pool)
        chance = np.array([study.rng.gauss(0.0, _CURIOSITY) for _ in pool])
        promise: Array = (
            _WORTH * log_improvement(accuracy - self._best, deviation) + unknown * chance
        )
        return promise


def log_improvement(ahead: Array, deviation: Array) -> Array:
    """The logarithm of the expected improvement (Mockus, 1974), under normal distributions.

    Args:
        ahead: The expected scores less the best so far.
        deviation: Their standard deviations.
    """
    deviation = np.maximum(deviation, _LEAST_DEVIATION)
    improvement = np.array([_log_unit_improvement(z) for z in (ahead / deviation).tolist()])
    return np.asarray(np.log(deviation) + improvement)


def _log_unit_improvement(z: float) -> float:
    """The same for a standard deviation of 1."""
    log_density = -0.5 * (z * z + math.log(2 * math.pi))
    if z < -3:
        # The difference of two almost equal numbers; within 4 % from here on.
        return log_density - math.log(z * z + 3)
    return math.log(math.exp(log_density) + 0.5 * z * math.erfc(-z / math.sqrt(2)))
