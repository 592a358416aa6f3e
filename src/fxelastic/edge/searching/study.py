"""One search for one budget: what a strategy may ask for, and what is kept of it."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from fxelastic.edge.searching.evaluation import Evaluator
from fxelastic.spec import Arch, SearchSpace

_TELL_S = 1.0  # between two calls of the progress while nothing is scored


class SearchEndedError(Exception):
    """Raised inside a strategy when it may evaluate nothing more."""


class SearchAbortedError(SearchEndedError):
    """Raised by a progress when nobody waits for the result any more."""


@dataclass(frozen=True)
class Step:
    """A point of a search's history.

    Attributes:
        subnets: Subnets evaluated so far.
        seconds: Time since the beginning.
        latency_ms: Predicted latency of the best so far.
        accuracy: Its score.
    """

    subnets: int
    seconds: float
    latency_ms: float
    accuracy: float


@dataclass
class Study:
    """A search in progress.

    Attributes:
        space: The subnets.
        costs: The latency of each branch, in ms.
        overhead_ms: What a run takes besides.
        budget_ms: The most that a subnet may take.
        evaluator: Scores subnets.
        max_subnets: The most subnets to evaluate.
        rng: The search's own chance.
        allowed: Whether a subnet may be chosen, for limits other than latency.
        anchors: Subnets that keep other limits if any does.
        additive_best: The best subnet if what branches cost in quality adds up; None where no
            subnet is known that keeps all limits.
        incumbent: The latest additive best that was evaluated; None before.
        scores: The score of each subnet of this search, in the order of evaluation.
        history: A step for each improvement.
    """

    space: SearchSpace
    costs: Mapping[str, float]
    overhead_ms: float
    budget_ms: float
    evaluator: Evaluator
    max_subnets: int
    rng: random.Random
    allowed: Callable[[Arch], bool] = lambda _: True
    anchors: tuple[Arch, ...] = ()
    until_s: float = math.inf
    clock: Callable[[], float] = time.perf_counter
    progress: Callable[[Study], None] | None = None
    additive_best: Arch | None = None
    incumbent: Arch | None = None
    scores: dict[Arch, float] = field(default_factory=dict)
    history: list[Step] = field(default_factory=list)
    _tried: set[Arch] = field(default_factory=set)
    _lost: dict[Arch, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._begin_s = self._told_s = self.clock()

    def begin(self, time_s: float | None) -> None:
        """Count time from now, and end after some of it; None for no end."""
        self._begin_s = self._told_s = self.clock()
        self.until_s = math.inf if time_s is None else self._begin_s + time_s

    @property
    def high(self) -> float:
        """The most that a subnet's branches may take, in ms."""
        return self.budget_ms - self.overhead_ms

    @property
    def seconds(self) -> float:
        """Time since the beginning."""
        return self.clock() - self._begin_s

    @property
    def tried(self) -> int:
        """Subnets that this search asked for."""
        return len(self._tried)

    def has_tried(self, arch: Arch) -> bool:
        """Whether this search asked for a subnet, or knew its score."""
        return arch in self._tried or arch in self.scores

    @property
    def best(self) -> Arch | None:
        """The subnet with the highest score; of equal ones the quickest."""
        if not self.scores:
            return None
        return max(self.scores, key=lambda a: (self.scores[a], -self.cost(a), a.branches))

    def is_over(self) -> bool:
        """Whether the time has gone; tells the progress now and then, which may end the search."""
        now_s = self.clock()
        if self.progress is not None and now_s > self._told_s + _TELL_S:
            self._told_s = now_s
            self.progress(self)
        return now_s >= self.until_s

    def cost(self, arch: Arch) -> float:
        """What a subnet's branches take, in ms."""
        return math.fsum(self.costs[branch] for branch in arch)

    def fits(self, arch: Arch) -> bool:
        """Whether a subnet keeps the budget and the other limits."""
        return self.cost(arch) <= self.high and self.allowed(arch)

    def score(self, archs: Iterable[Arch], floor: float = -math.inf) -> dict[Arch, float]:
        """Scores of subnets that keep the limits; the others are left out.

        Args:
            archs: Subnets, together: what they have in common is computed once.
            floor: A score below which a subnet does not count: it may end early, and is left out.
                What is known to be below is not evaluated again.

        Raises:
            SearchEndedError: No more may be evaluated; what was scored is kept.
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
        """Scores of subnets for what they tell: those that break the limits are never the best.

        They count like any others. What there is no room for is left out.

        Raises:
            SearchEndedError: No more may be evaluated; what was scored is kept.
        """
        wanted = list(dict.fromkeys(archs))
        admitted, _ = self._admitted(wanted)
        chosen = [arch for arch in wanted if arch in admitted]
        found, _ = self._evaluated(chosen, -math.inf)
        self._end_group({a: score for a, score in found.items() if self.fits(a)}, complete=True)
        return found

    def _evaluated(self, group: list[Arch], floor: float) -> tuple[dict[Arch, float], list[Arch]]:
        """The scores of subnets, and the subnets that there was time for.

        Where time is short, as many as can be evaluated are, rather than a part of each.
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
        """Those not tried yet that there is room and time for; whether that is all of them."""
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
        after = self.best
        if after is not None and (after != before or not self.history):
            latency = self.overhead_ms + self.cost(after)
            step = Step(len(self._tried), self.seconds, latency, self.scores[after])
            self.history.append(step)
