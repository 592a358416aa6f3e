"""Evaluate groups of subnets; common prefixes are computed once."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fxelastic.edge.executor import Array, Executor, State
from fxelastic.edge.searching.answers import Answers
from fxelastic.edge.searching.checked_score import has_no_nan, nan_of, score_of
from fxelastic.edge.searching.data import Batch, Dataset, Stretch, batch_of
from fxelastic.edge.searching.distortion import Distortion, measure
from fxelastic.edge.searching.prefixes import PrefixCache
from fxelastic.edge.searching.scores import Metric
from fxelastic.edge.searching.tally import BatchScore, Margins, Tally, joined_scores
from fxelastic.errors import UsageError
from fxelastic.spec import Arch
from fxelastic.spec.options import is_number

# Sums of the same numbers in another order differ by less.
_ROUNDING = 1e-9


@dataclass
class Counts:
    """The work of evaluations.

    Attributes:
        subnets: Subnets evaluated, each once.
        executed: Runs of branches on batches.
        one_by_one: Runs of branches if each subnet were run by itself.
        ended_early: Subnets that could not win any more before their last batch.
    """

    subnets: int = 0
    executed: int = 0
    one_by_one: int = 0
    ended_early: int = 0

    @property
    def saved(self) -> float:
        """The share of branch runs that common prefixes saved."""
        return 1 - self.executed / self.one_by_one if self.one_by_one else 0.0


@dataclass
class _Node:
    """A prefix: the subnets that begin with it."""

    branch: str
    children: dict[str, _Node] = field(default_factory=dict)
    n_archs: int = 0
    ends: Arch | None = None


class Evaluator:
    """Scores subnets on data, each to its end at most once (AdaptiveNet §5.2).

    A group's subnets form a tree of prefixes, which is walked depth first for one batch after the
    other; samples of different sizes are in different batches. At a fork, the state is kept until
    its last child was taken. Scores do not depend on the cache: the same branches run on the same
    values. Where the data has no targets, the original's own results stand for them.

    Attributes:
        executor: Runs branches.
        data: The samples.
        metric: The score.
        counts: The work so far.
        known: The score of every subnet that was evaluated to its end.
        bounds: For subnets that ended early, a score that they do not exceed on the data.
        known_bounds: The same from earlier searches: a subnet whose bound is below its floor is
            not evaluated.
        clock: Returns the time, in s.
        margins: The metric's margins of the first samples, and the samples' order.
        cache: The states that are kept.
    """

    def __init__(
        self,
        executor: Executor,
        data: Dataset,
        metric: Metric,
        *,
        batch_size: int = 50,
        cache_bytes: int | None = None,
        reuse: bool = True,
        costs: Mapping[str, float] | None = None,
        watch: Callable[[int], None] | None = None,
        confidence: float = 1.0,
        first: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Prepare.

        Args:
            executor: Runs branches.
            data: The samples.
            metric: The score.
            batch_size: Samples that are scored together, in a batch for each size. A model with a
                fixed batch size has that.
            cache_bytes: The most bytes of states; None for no bound.
            reuse: Whether common prefixes are computed once; otherwise each subnet is run by
                itself, as a comparison.
            costs: The latency of each branch, for the importance of states; None for equal ones.
            watch: Called with the bytes kept after every change.
            confidence: A subnet ends early when its floor is out of reach: for certain with 1,
                otherwise with this probability, given samples in random order and scores between
                the metric's ``least`` and ``most``.
            first: Samples of the first stretch, as in `Dataset.stretches`; None for stretches of
                one size.
            clock: Returns the time, in s.

        Raises:
            UsageError: The confidence is out of range.
        """
        if not (is_number(confidence) and 0.5 <= confidence <= 1):
            raise UsageError(
                "confidence is out of range",
                expected="a number from 0.5 to 1",
                got=repr(confidence),
            )
        self.executor = executor
        # The original's answers are kept by the index of each sample.
        self.data = data if data.labelled else replace(data, targets=np.arange(len(data)))
        self.metric = metric
        self._answers = None if data.labelled else Answers(executor, metric, len(data))
        self.counts = Counts()
        self.known: dict[Arch, float] = {}
        self.bounds: dict[Arch, float] = {}
        self.known_bounds: dict[Arch, float] = {}
        self.cache = PrefixCache(cache_bytes, watch)
        self._batch_size = batch_of(executor.bundle, batch_size)
        # Ending early by a probability needs samples in random order, and a fixed batch size needs
        # the data's order if sizes differ.
        dynamic = executor.bundle.manifest.model.dynamic_batch
        self._reorder = confidence == 1 and (dynamic or data.groups is None)
        self.margins = Margins(len(data), self._batch_size, reorder=self._reorder)
        # For a bounded score without margins, its mean after each batch.
        self._so_far: dict[Arch, list[float]] = {}
        self._batch_scores: dict[Arch, list[tuple[float, int]]] = {}
        self._distortion: Distortion | None = None
        self._n_whole = len(data)
        self._first = first if dynamic else None
        self.clock = clock
        self._pace_s = 0.0  # of one subnet on one sample, in the latest batch
        self._reuse = reuse
        self._costs = costs or {}
        self._confidence = confidence

    @property
    def is_shortened(self) -> bool:
        """Whether scores are on fewer samples than the search has."""
        return len(self.data) < self._n_whole

    @property
    def measured_distortion(self) -> Distortion | None:
        """The result of `distortion`; None before, and where no branch could be compared."""
        found = self._distortion
        return None if found is None or found.unknown.all() else found

    def distortion(
        self, stop: Callable[[], bool], enough: Callable[[], bool] = lambda: False
    ) -> Distortion:
        """By how much branches change the original's features; measured once.

        Args:
            stop: Called now and then; returns whether to end with the result so far.
            enough: Called before each batch but the first; returns the same.

        Raises:
            BundleError: A branch can't be run, or returns NaN.
        """
        if self._distortion is None:
            self._distortion = measure(
                self.executor,
                self.data,
                self._batch_size,
                stop=stop,
                first=self._first,
                enough=enough,
            )
        return self._distortion

    def begin_with(self, distortion: Distortion) -> None:
        """Use a known distortion instead of a measurement.

        Raises:
            UsageError: It is of other branches than the space's.
        """
        new = tuple(s.id for s in self.executor.bundle.space.branches if s.kind != "original")
        if distortion.branches != new:
            raise UsageError(
                "the prior is of other branches",
                expected="a plan of this bundle and latency table",
                got=f"{len(distortion.branches)} branches, not these {len(new)}",
                fix="call fxelastic.edge.plan with the same bundle, table and mode",
            )
        self._distortion = distortion

    def affordable(self, seconds: float) -> int:
        """The number of subnets that can be evaluated in a time, at the latest batch's pace."""
        if self._pace_s <= 0 or math.isinf(seconds):
            return sys.maxsize
        return int(max(0.0, seconds) / self.expected_s(1, len(self.data)))

    def expected_s(self, n_subnets: int, n_samples: int) -> float:
        """The time that subnets take on samples, in s, at the pace of the latest batch."""
        return self._pace_s * n_subnets * n_samples

    def make_room(self, n_bytes: int) -> None:
        """Free memory of the executor until the process may grow by so many bytes."""
        self.executor.make_room(n_bytes)

    def estimates(self) -> dict[Arch, float]:
        """Estimated scores of subnets that ended early, where the metric has no margins.

        A subnet's shortfall from the highest possible score on its samples is scaled by the ratio
        of shortfalls on all samples and on these, as the fully evaluated subnets have it.
        """
        most = self.metric.most
        whole = [self._so_far[arch] for arch in self.known if arch in self._so_far]
        if most is None or not whole:
            return {}
        lack = np.maximum(most - np.array(whole), 0.0).sum(axis=0)
        ratio = np.where(lack > 0, lack[-1] / np.where(lack > 0, lack, 1.0), 1.0)
        return {
            arch: most - (most - means[-1]) * float(ratio[len(means) - 1])
            for arch, means in self._so_far.items()
            if arch not in self.known
        }

    def scores(
        self,
        archs: Iterable[Arch],
        floors: Mapping[Arch, float] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> dict[Arch, float]:
        """The scores of subnets.

        Args:
            archs: The subnets; one may come twice.
            floors: For each a score: a subnet that can't reach it any more ends early and gets no
                score. The scores of the others do not depend on floors.
            stop: Called before each branch; returns whether to end.

        Returns:
            The scores of the subnets that were evaluated to their end.

        Raises:
            BundleError: A branch can't be run, or a subnet returns NaN.
        """
        wanted = list(dict.fromkeys(archs))
        fresh = [arch for arch in wanted if arch not in self.known]
        for group in [fresh] if self._reuse else [[arch] for arch in fresh]:
            if not self._evaluate(group, floors or {}, stop):
                break
        return {arch: self.known[arch] for arch in wanted if arch in self.known}

    def stretches(self) -> Iterator[Stretch]:
        """The samples that subnets are evaluated on, in this order."""
        return self.data.stretches(self._batch_size, self.margins.order, self._first)

    def run_batch(
        self,
        archs: Sequence[Arch],
        stretch: Stretch,
        stop: Callable[[], bool],
        *,
        keep_margins: bool = True,
    ) -> dict[Arch, BatchScore]:
        """The scores of subnets on some samples.

        Args:
            archs: The subnets.
            stretch: One of `stretches`.
            stop: Called before each branch; returns whether to end.
            keep_margins: Whether to compute the metric's margins, if it has any.

        Returns:
            The scores; if stopped, those that are complete.

        Raises:
            BundleError: A branch can't be run, or a subnet returns NaN.
        """
        begin_s, n_loaded = self.clock(), self._n_loaded()
        parts: list[dict[Arch, BatchScore]] = []
        places: list[Array] = []
        for batch, where in stretch.parts():
            found = self._run_part(archs, batch, stop, keep_margins=keep_margins)
            parts.append(found)
            places.append(where)
            if len(found) < len(archs):
                break
        if sum(map(len, places)) < len(stretch):
            return {}
        pace_s = (self.clock() - begin_s) / max(1, len(archs) * len(stretch))
        if len(parts[-1]) == len(archs):
            if self._n_loaded() > n_loaded and self._pace_s:
                pace_s = min(pace_s, self._pace_s)  # sessions open once
            self._pace_s = pace_s
        return {arch: joined_scores([part[arch] for part in parts], places) for arch in parts[-1]}

    def _run_part(
        self, archs: Sequence[Arch], batch: Batch, stop: Callable[[], bool], *, keep_margins: bool
    ) -> dict[Arch, BatchScore]:
        """The scores of subnets on a batch; if stopped, those that are complete."""
        inputs, targets = batch
        n_samples = len(targets)
        if self._answers is not None:
            answers = self._answers.targets(inputs, targets, stop)
            if answers is None:
                return {}
            targets = answers
        keeps = self.metric.margins if keep_margins else None
        found: dict[Arch, BatchScore] = {}
        for arch, outputs in self._walk(_tree(archs), self.executor.start(inputs), stop):
            if arch is None:
                return found
            # argmax and comparisons ignore NaN, so such a subnet would get a wrong score.
            if not all(map(has_no_nan, outputs)):
                raise nan_of(arch, inputs)
            total, count = score_of(self.metric, outputs, targets, arch)
            margins = None if keeps is None else keeps(outputs, targets)
            found[arch] = BatchScore(total, count, n_samples, margins)
        self.counts.one_by_one += sum(len(arch) for arch in archs)
        return found

    def adopt(self, data: Dataset, tallies: Mapping[Arch, Tally]) -> None:
        """Evaluate on these samples from now on.

        Args:
            data: The first samples of the data, or all.
            tallies: Subnets that were evaluated on all of them; earlier scores are dropped.
        """
        self.counts.subnets += len(tallies.keys() - self.known.keys())
        self.data = data
        self.bounds, self.known_bounds = {}, {}
        self.margins = Margins(len(data), self._batch_size, reorder=self._reorder)
        self.known, self._so_far, self._batch_scores = {}, {}, {}
        self._record(tallies, tallies)

    def is_better(self, arch: Arch, other: Arch) -> bool:
        """Whether a subnet's score is higher than another's, by more than chance.

        On all samples any difference counts. On fewer, it must be at least twice its standard
        error, which is estimated from the batches.
        """
        difference = self.known[arch] - self.known[other]
        if not self.is_shortened:
            return difference > 0
        pairs = list(zip(self._batch_scores[arch], self._batch_scores[other], strict=True))
        n, more = len(pairs), sum(size for (_, size), _ in pairs)
        if n < 2:
            return False
        square = sum(size * (a - b - difference) ** 2 for (a, size), (b, _) in pairs) / (n - 1)
        return difference > 2 * (n + 1) / (n - 1) * math.sqrt(square / more) + _ROUNDING

    def _n_loaded(self) -> int:
        return getattr(self.executor, "n_loaded", 0)  # executors of tests have no sessions

    def _evaluate(
        self, archs: list[Arch], floors: Mapping[Arch, float], stop: Callable[[], bool]
    ) -> bool:
        """Evaluate a group; returns whether that was not stopped."""
        hopeless = [
            arch
            for arch in archs
            if self.known_bounds.get(arch, math.inf) + _ROUNDING < floors.get(arch, -math.inf)
        ]
        self.counts.ended_early += len(hopeless)
        archs = [arch for arch in archs if arch not in hopeless]
        tallies = {arch: Tally() for arch in archs}
        alive, seen = list(archs), 0
        for stretch in self.stretches():
            if not alive:
                break
            found = self.run_batch(alive, stretch, stop, keep_margins=self.margins.wanted(seen))
            if len(found) < len(alive):
                return False
            for arch, part in found.items():
                tallies[arch].add(part)
            seen += len(stretch)
            left = len(self.data) - seen
            if self.metric.most is not None and left:
                going = [
                    arch
                    for arch, sums in ((arch, tallies[arch]) for arch in alive)
                    if self._at_most(self.metric.most, sums.total, sums.count, left) + _ROUNDING
                    >= floors.get(arch, -math.inf)
                ]
                self.counts.ended_early += len(alive) - len(going)
                if self._confidence == 1:
                    kept = set(going)
                    for arch in alive:
                        if arch in kept:
                            continue
                        sums = tallies[arch]
                        bound = self._at_most(self.metric.most, sums.total, sums.count, left)
                        self.bounds[arch] = min(bound, self.bounds.get(arch, math.inf))
                alive = going
        self.counts.subnets += len(archs)
        self._record(tallies, alive)
        return True

    def _record(self, tallies: Mapping[Arch, Tally], whole: Iterable[Arch]) -> None:
        """Keep the scores of a group; those not in ``whole`` ended early."""
        for arch in whole:
            self.known[arch] = tallies[arch].score
            self._batch_scores[arch] = tallies[arch].batches
        self.margins.add({arch: tally.margins for arch, tally in tallies.items()})
        if self.metric.most is not None and self.metric.margins is None:
            for arch, tally in tallies.items():
                if len(tally.means) > len(self._so_far.get(arch, ())):
                    self._so_far[arch] = tally.means

    def _at_most(self, most: float, total: float, count: float, left: int) -> float:
        """The highest score that is still possible, or likely by the confidence."""
        certain = (total + most * left) / (count + left)
        if self._confidence == 1:
            return certain
        # Serfling, 1974: the mean of a finite population, by samples drawn without replacement.
        unseen = 1 - (count - 1) / (count + left)
        margin = math.sqrt(unseen * -math.log(1 - self._confidence) / (2 * count))
        return min(certain, total / count + (most - self.metric.least) * margin)

    def _walk(
        self, root: _Node, state: State, stop: Callable[[], bool]
    ) -> Iterable[tuple[Arch | None, Sequence[Any]]]:
        """Every subnet of the tree with its outputs, depth first; None if stopped."""
        self.cache.clear()
        start = state
        stack: list[tuple[int, _Node]] = [(0, child) for child in reversed(_ordered(root))]
        path: list[str] = []
        here, depth_here = state, 0
        if len(root.children) > 1:
            self._keep(0, state, root, path)
        while stack:
            if stop():
                self.cache.clear()
                yield None, ()
                return
            depth, node = stack.pop()
            del path[depth:]
            if depth_here != depth:
                here = self._again(depth, path, start)
            # The last child of a fork needs the state for itself only.
            if not any(d == depth for d, _ in stack):
                self.cache.forget(depth)
            here = self._run(node.branch, here)
            path.append(node.branch)
            depth_here = depth + 1
            if node.ends is not None:
                yield node.ends, self.executor.results(here)
            if len(node.children) > 1:
                self._keep(depth_here, here, node, path)
            stack += [(depth_here, child) for child in reversed(_ordered(node))]
        self.cache.clear()

    def _again(self, depth: int, path: Sequence[str], start: State) -> State:
        """The state behind a prefix, from the cache or from the nearest kept one."""
        at, state = self.cache.deepest(depth) or (0, start)
        for branch in path[at:depth]:
            state = self._run(branch, state)
        return state

    def _run(self, branch: str, state: State) -> State:
        self.counts.executed += 1
        return self.executor.advance(branch, state)

    def _keep(self, depth: int, state: State, node: _Node, path: Sequence[str]) -> None:
        nearest = self.cache.deepest(depth)
        since = path[nearest[0] if nearest else 0 : depth]
        latency = math.fsum(self._costs.get(branch, 1.0) for branch in since)
        self.cache.keep(depth, state, latency * (len(node.children) - 1))


def _tree(archs: Iterable[Arch]) -> _Node:
    root = _Node("")
    for arch in archs:
        node = root
        for branch in arch:
            node = node.children.setdefault(branch, _Node(branch))
            node.n_archs += 1
        node.ends = arch
    return root


def _ordered(node: _Node) -> list[_Node]:
    """Children, those with the fewest subnets first: states kept longest are used least."""
    return sorted(node.children.values(), key=lambda child: (child.n_archs, child.branch))
