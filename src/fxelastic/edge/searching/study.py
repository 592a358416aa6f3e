"""One search within one set of limits, and the contract of strategies."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from typing import Protocol

from fxelastic.edge.searching.evaluation import Evaluator
from fxelastic.errors import UsageError
from fxelastic.spec import Arch, SearchSpace
from fxelastic.spec.costs import Costs
from fxelastic.spec.knapsack import most_valuable
from fxelastic.spec.limits import Limits
from fxelastic.spec.resources import LATENCY, PEAK, SUM, resource

ENTRY_POINT_GROUP = "fxelastic.search"

_PACKAGE = "fxelastic.edge.searching"
BUILT_IN = {
    "evolutionary": f"{_PACKAGE}.evolutionary:Evolutionary",
    "plain-evolutionary": f"{_PACKAGE}.baselines:PlainEvolutionary",
    "annealing": f"{_PACKAGE}.baselines:Annealing",
    "plain-annealing": f"{_PACKAGE}.baselines:PlainAnnealing",
    "additive": f"{_PACKAGE}.additive:Additive",
    "exhaustive": f"{_PACKAGE}.baselines:Exhaustive",
}

_ROUNDING = 1e-12  # windows may be slightly too wide; `Study.fits` decides
_REPORT_S = 1.0  # time between two progress reports while nothing is scored


class SearchEndedError(Exception):
    """Raised inside a strategy when it may not evaluate any more subnets."""


class SearchAbortedError(SearchEndedError):
    """Raised by a progress callback when the result is no longer needed."""


@dataclass(frozen=True)
class Improvement:
    """A point of a search's history: a subnet that is better than those before.

    Attributes:
        subnets: The number of subnets evaluated so far.
        seconds: Time since the start of the search.
        latency_ms: Predicted latency of the best subnet so far, in ms.
        accuracy: The score of that subnet.
    """

    subnets: int
    seconds: float
    latency_ms: float
    accuracy: float

    @property
    def kept(self) -> tuple[int, float, float]:
        """What a pool keeps of it: all but the time that one search took."""
        return self.subnets, self.latency_ms, self.accuracy


@dataclass
class Study:
    """A search in progress.

    Windows of costs and mutations use a single resource, `resource`: the first limited resource
    whose costs are summed, or otherwise the latency. `fits` checks all limits.

    Attributes:
        space: The subnets.
        resources: The costs of each branch by resource.
        limits: Absolute bounds on the resources.
        evaluator: Scores subnets.
        max_subnets: The maximum number of subnets to evaluate.
        rng: The search's own random generator.
        until_s: The time at which to end, by the clock.
        clock: Returns the time in s.
        progress: Called with the study after each group, and about once a second in between.
        additive_best: The best subnet, assuming that the losses of branches add up; None if no
            known subnet keeps all limits.
        incumbent: The latest additive best that was evaluated; None before the first.
        scores: The score of each subnet of this search, in the order of evaluation.
        history: One entry for each improvement.
        resource: The name of the resource for windows of costs.
        costs: The cost of each branch in that resource, by id.
        high: The highest total cost of a subnet's branches in that resource.
    """

    space: SearchSpace
    resources: Costs
    limits: Limits
    evaluator: Evaluator
    max_subnets: int
    rng: random.Random
    until_s: float = math.inf
    clock: Callable[[], float] = time.perf_counter
    progress: Callable[[Study], None] | None = None
    additive_best: Arch | None = None
    incumbent: Arch | None = None
    scores: dict[Arch, float] = field(default_factory=dict)
    history: list[Improvement] = field(default_factory=list)
    _tried: set[Arch] = field(default_factory=set)
    _lost: dict[Arch, float] = field(default_factory=dict)
    # The best of the first scores, and how many these are.
    _ranked: tuple[Arch | None, int] = (None, 0)

    def __post_init__(self) -> None:
        """Choose the resource for windows, and start the clock."""
        self._begin_s = self._reported_s = self.clock()
        sums = (name for name in self.limits if resource(name).rule == SUM)
        self.resource = next(sums, LATENCY)
        found = self.resources[self.resource]
        self.costs: Mapping[str, float] = found.costs
        bound = self.limits.bound(self.resource)
        self.high = bound - found.overhead + _ROUNDING * bound
        if math.isinf(self.high):
            self.high = self.cost(self.space.max_cost_arch(self.costs))

    def begin(self, time_s: float | None) -> None:
        """Restart the clock, and end after ``time_s``; None for no end."""
        self._begin_s = self._reported_s = self.clock()
        self.until_s = math.inf if time_s is None else self._begin_s + time_s

    @property
    def budget_ms(self) -> float:
        """The bound on the latency, in ms; infinity if latency is not limited."""
        return self.limits.bound(LATENCY)

    @property
    def seconds(self) -> float:
        """Time since the start, in seconds."""
        return self.clock() - self._begin_s

    @property
    def tried(self) -> int:
        """The number of subnets that this search requested."""
        return len(self._tried)

    def has_tried(self, arch: Arch) -> bool:
        """Whether this search requested a subnet, or knows its score."""
        return arch in self._tried or arch in self.scores

    @property
    def best(self) -> Arch | None:
        """The subnet with the highest score; ties go to the cheapest."""
        best, n = self._ranked
        if n != len(self.scores):
            self._ranked = best, _ = max(self.scores, key=self._rank), len(self.scores)
        return best

    def _rank(self, arch: Arch) -> tuple[float, float, tuple[str, ...]]:
        return self.scores[arch], -self.cost(arch), arch.branches

    def is_over(self) -> bool:
        """Whether the time is over. Also reports progress, which may end the search."""
        now_s = self.clock()
        if self.progress is not None and now_s > self._reported_s + _REPORT_S:
            self._reported_s = now_s
            self.progress(self)
        return now_s >= self.until_s

    def cost(self, arch: Arch) -> float:
        """The total cost of a subnet's branches in `resource`."""
        return math.fsum([self.costs[branch] for branch in arch.branches])

    def predict_ms(self, arch: Arch) -> float:
        """The predicted latency of a subnet, in ms."""
        return self.resources.total(LATENCY, arch)

    def fits(self, arch: Arch) -> bool:
        """Whether a subnet keeps the limits."""
        return all(self.resources.total(n, arch) <= self.limits.bound(n) for n in self.limits)

    @cached_property
    def other_costs(self) -> tuple[tuple[Mapping[str, float], float], ...]:
        """For each limited resource besides `resource`, costs that add up, and their highest sum.

        Every subnet within the limits keeps them; a subnet that keeps them may still exceed a limit
        if branches share weights. For a peak, a branch above it costs 1, and the highest sum is 0.
        """
        found: list[tuple[Mapping[str, float], float]] = []
        for name in self.limits:
            own, bound = self.resources[name], self.limits.bound(name)
            high = bound - own.overhead
            if name == self.resource:
                continue
            if resource(name).rule == PEAK:
                above = {branch: float(cost > high) for branch, cost in own.costs.items()}
                found.append((above, 0.0))
                continue
            shared = {branch: math.fsum(parts.values()) for branch, parts in own.shared.items()}
            costs = {branch: cost - shared.get(branch, 0.0) for branch, cost in own.costs.items()}
            found.append((costs, high + _ROUNDING * bound))
        return tuple(found)

    def most_valuable(self, values: Mapping[str, float], n: int = 1, most: int = 400) -> list[Arch]:
        """The subnets within the limits whose branches have the highest total value, best first."""
        return most_valuable(self.space, self.resources, self.limits, values, n, most)

    @cached_property
    def anchors(self) -> tuple[Arch, ...]:
        """The cheapest subnets within the limits; empty if no known subnet keeps all limits."""
        cheapest = (
            {branch: -cost for branch, cost in self.resources[name].costs.items()}
            for name in (self.resource, *self.limits)
        )
        found = [self.space.min_cost_arch(self.costs), self.space.original]
        found += [arch for values in cheapest for arch in self.most_valuable(values)]
        return tuple(arch for arch in dict.fromkeys(found) if self.fits(arch))

    def score(self, archs: Iterable[Arch], floor: float = -math.inf) -> dict[Arch, float]:
        """Score the subnets that keep the limits; the others are left out.

        Args:
            archs: The subnets, which are evaluated together: common prefixes are computed once.
            floor: Subnets below this score may end early and are left out. Subnets known to be
                below it are not evaluated again.

        Raises:
            SearchEndedError: No more subnets may be evaluated; the scores so far are kept.
        """
        wanted = [arch for arch in dict.fromkeys(archs) if self.fits(arch)]
        chosen, complete = self._admitted(wanted)
        group = [
            arch
            for arch in wanted
            if arch in chosen or (arch in self._tried and self._lost.get(arch, math.inf) > floor)
        ]
        found, evaluated = self._evaluated(group, floor)
        self._lost.update(dict.fromkeys((arch for arch in evaluated if arch not in found), floor))
        self._end_group(found, complete and len(evaluated) == len(group))
        return found

    def learn(self, archs: Iterable[Arch]) -> dict[Arch, float]:
        """Score subnets to learn from, even those beyond the limits, which are never the best.

        They count towards `max_subnets`, and subnets beyond that number are left out.

        Raises:
            SearchEndedError: No more subnets may be evaluated; the scores so far are kept.
        """
        wanted = list(dict.fromkeys(archs))
        admitted, _ = self._admitted(wanted)
        chosen = [arch for arch in wanted if arch in admitted]
        found, _ = self._evaluated(chosen, -math.inf)
        self._end_group({a: score for a, score in found.items() if self.fits(a)}, complete=True)
        return found

    def _evaluated(self, group: list[Arch], floor: float) -> tuple[dict[Arch, float], list[Arch]]:
        """The scores of subnets, and the subnets that there was time for.

        If time is short, as many subnets as possible are evaluated completely.
        """
        floors = dict.fromkeys(group, floor)
        if math.isinf(self.until_s):
            return self.evaluator.scores(group, floors, self.is_over), group
        known = [arch for arch in group if arch in self.evaluator.known]
        fresh = [arch for arch in group if arch not in self.evaluator.known]
        found, done = self.evaluator.scores(known), known
        while fresh:
            n = self.evaluator.affordable(self.until_s - self.clock())
            part, fresh = fresh[:n], fresh[n:]
            if not part:
                break
            found |= self.evaluator.scores(part, floors, self.is_over)
            if self.clock() >= self.until_s:
                done = [*done, *(arch for arch in part if arch in found)]
                break
            done = [*done, *part]
        return {arch: found[arch] for arch in group if arch in found}, done

    def _admitted(self, archs: list[Arch]) -> tuple[set[Arch], bool]:
        """The untried subnets that there is room and time for; whether these are all of them."""
        fresh = [arch for arch in archs if arch not in self._tried]
        room = max(0, self.max_subnets - len(self._tried))
        chosen = set(fresh[:room] if self.clock() < self.until_s else ())
        self._tried |= chosen
        return chosen, len(chosen) == len(fresh)

    def _end_group(self, found: Mapping[Arch, float], complete: bool) -> None:
        for arch, score in found.items():
            self._note(arch, score)
        if self.progress is not None:
            self.progress(self)
        over = self.clock() >= self.until_s
        if over or not complete or len(self._tried) >= self.max_subnets:
            raise SearchEndedError

    def _note(self, arch: Arch, score: float) -> None:
        before = self.best
        self.scores.setdefault(arch, score)
        after = arch if before is None else max(before, arch, key=self._rank)
        self._ranked = after, len(self.scores)
        if after != before or not self.history:
            ms = self.predict_ms(after)
            self.history.append(Improvement(len(self._tried), self.seconds, ms, self.scores[after]))


class Strategy(Protocol):
    """Decides which subnets to evaluate: a frozen dataclass whose fields are its options.

    The contract: `run` calls `Study.score` with subnets until that raises `SearchEndedError`, or
    returns when there is nothing left to try. It keeps no state between runs, and uses only
    ``study.rng`` for randomness: the same study leads to the same subnets.

    A strategy may have a method ``check(study)``, which is called before anything is evaluated and
    raises a `UsageError` if the strategy does not suit the study.
    """

    def run(self, study: Study) -> None:
        """Search."""
        ...  # pragma: no cover


def strategy_names() -> tuple[str, ...]:
    """The names of all strategies: the built-in ones, then those of other packages."""
    others = sorted(entry.name for entry in entry_points(group=ENTRY_POINT_GROUP))
    return tuple(dict.fromkeys((*BUILT_IN, *others)))


def strategy(name: str) -> Callable[..., Strategy]:
    """Look up a strategy class by name.

    Raises:
        UsageError: No strategy has this name.
    """
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        found: Callable[..., Strategy] = getattr(import_module(module), attribute)
        return found
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        if entry.name == name:
            loaded: Callable[..., Strategy] = entry.load()
            return loaded
    raise UsageError(
        f"unknown search strategy {name!r}",
        expected="one of " + ", ".join(strategy_names()),
        got=repr(name),
        fix=f"other packages add strategies by an entry point in the group {ENTRY_POINT_GROUP!r}",
    )
