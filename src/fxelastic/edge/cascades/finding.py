"""Find cascades whose loss is bounded, on the samples of a search."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.cascades.confidence import confidence
from fxelastic.edge.cascades.costs import costs_of_leaving
from fxelastic.edge.cascades.entry import CascadeEntry
from fxelastic.edge.cascades.thresholds import (
    NEVER,
    Leaving,
    check_enough,
    checked_losses,
    choose,
    proposals,
    samples_needed,
)
from fxelastic.edge.executor import Array, Executor
from fxelastic.edge.searching.choice import default_result
from fxelastic.edge.searching.data import Dataset
from fxelastic.spec import EXIT, Arch
from fxelastic.spec.cascade import Cascade
from fxelastic.spec.costs import BranchCosts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recorded:
    """The answers of the exits along a subnet, and of the subnet itself.

    Attributes:
        exits: The branches of the exits, in the order of their positions.
        confidences: ``(exits, N)``.
        right: ``(exits + 1, N)``: whether each answer is the target, or the original's.
        original: ``(N,)``: whether the original's answer is right.
    """

    exits: tuple[str, ...]
    confidences: Array
    right: Array
    original: Array

    def __len__(self) -> int:
        return len(self.original)

    @property
    def harm(self) -> Array:
        """``(exits + 1, N)``: wrong where the original is right."""
        return np.asarray(~self.right & self.original)

    def of(self, exits: Sequence[str]) -> Recorded:
        """The same with some of the exits."""
        index = [self.exits.index(name) for name in exits]
        rows = [*index, len(self.exits)]
        return Recorded(tuple(exits), self.confidences[index], self.right[rows], self.original)


def find_cascades(
    executor: Executor,
    data: tuple[Dataset, Dataset],
    trunks: Iterable[Arch],
    costs: BranchCosts,
    *,
    max_loss: float | Sequence[float],
    delta: float,
    by: str = "max_softmax",
    batch_size: int = 50,
    end_s: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[CascadeEntry, ...]:
    """For each subnet and limit the cascade along the subnet that costs least and keeps the limit.

    Args:
        executor: Runs the branches.
        data: Samples to choose thresholds on, and held-out samples to test them on.
        trunks: The subnets.
        costs: The latencies of the branches.
        max_loss: The largest share of samples that may get a wrong answer where the original is
            right; several limits for several sets of thresholds.
        delta: The probability that more do in spite of the test, for each of the cascades.
        by: The confidence, by name.
        batch_size: Samples of a batch.
        end_s: When to end, by ``clock``. The subnets share the time; what one has no time for is
            left out of its samples.
        clock: Returns the time, in s.

    Returns:
        The cascades, by their latency; without those that use no exit, or cost no less than their
        subnet.

    Raises:
        UsageError: The held-out samples are too few, or the results have no class scores.
        BundleError: A branch is missing or damaged, or can't be run.
    """
    limits = checked_losses(max_loss, delta)
    if not executor.bundle.manifest.model.dynamic_batch:
        data = data[0].whole(batch_size), data[1].whole(batch_size)
    proposing, testing = data

    def until(time_s: float) -> Callable[[], bool]:
        return lambda: clock() >= time_s

    found, short = [], 0
    places = {trunk: exits_along(executor.bundle, trunk, costs) for trunk in trunks}
    places = {trunk: exits for trunk, exits in places.items() if exits}
    for limit in limits if places else ():
        check_enough(len(testing), limit, delta)
    for i, (trunk, exits) in enumerate(places.items()):
        begin_s = clock()
        time_s = (end_s - begin_s) / (len(places) - i)
        recorded = [
            record(executor, part, trunk, exits, by, batch_size, until(part_s))
            for part, part_s in ((proposing, begin_s + time_s / 2), (testing, begin_s + time_s))
        ]
        first = recorded[0].of(useful(recorded[0]))
        second = recorded[1].of(first.exits)
        possible = [limit for limit in limits if len(second) >= samples_needed(limit, delta)]
        short += len(possible) < len(limits)
        along = _Along(executor.bundle, trunk, (first, second), costs, by)
        found += _distinct(along.entry(limit, delta) for limit in possible)
    if short:
        logger.warning(
            "the search was short of time: for %d of %d subnets too few samples were run to find "
            "cascades; raise time_budget_s (--time-budget)",
            short,
            len(places),
        )
    return tuple(sorted(found, key=lambda entry: entry.ms))


def check_before(
    bundle: Bundle, held_out: Dataset, max_loss: float | Sequence[float], delta: float
) -> None:
    """Raise before a search what `find_cascades` would raise after it: too few samples.

    Raises:
        UsageError: The held-out samples are too few.
    """
    if not any(_is_exit(bundle, spec.id) for spec in bundle.space.branches):
        logger.warning("there will be no cascades: the bundle has no early exits")
        return
    for limit in checked_losses(max_loss, delta):
        check_enough(len(held_out), limit, delta)


def _distinct(entries: Iterable[CascadeEntry | None]) -> list[CascadeEntry]:
    """The cascades of ascending limits that are quicker than those of lower limits.

    A cascade of a higher limit ranks below the others by at least the difference of the bounds,
    even if it lost no more on the held-out samples.
    """
    kept: list[CascadeEntry] = []
    for entry in entries:
        if entry is None or (kept and entry.ms >= kept[-1].ms):
            continue
        while kept and entry.bound <= kept[-1].bound:
            kept.pop()
        if kept:
            most = kept[-1].accuracy - (entry.bound - kept[-1].bound)
            entry = replace(entry, accuracy=min(entry.accuracy, most))
        kept.append(entry)
    return kept


def exits_along(bundle: Bundle, trunk: Arch, costs: BranchCosts) -> dict[int, str]:
    """The exits at the borders of a subnet's branches, by position, but for its own.

    Of an exit and its 8-bit forms, it is the quickest.

    Args:
        bundle: The bundle.
        trunk: The subnet.
        costs: The latencies of the branches.
    """
    starts = {bundle.segment(branch).spec.start for branch in trunk}
    found = [
        spec
        for spec in bundle.space.branches
        if spec.start in starts and spec.id not in trunk.branches and _is_exit(bundle, spec.id)
    ]
    found.sort(key=lambda spec: (spec.start, -costs.costs[spec.id]))
    return {spec.start: spec.id for spec in found}


def _is_exit(bundle: Bundle, branch: str) -> bool:
    segment = bundle.segment(branch)
    source = segment if segment.quantised is None else bundle.segment(segment.quantised.source)
    return bool(source.spec.kind == EXIT and source.spec.stop == bundle.space.n_blocks)


def record(
    executor: Executor,
    data: Dataset,
    trunk: Arch,
    exits: Mapping[int, str],
    by: str,
    batch_size: int,
    stop: Callable[[], bool] = lambda: False,
) -> Recorded:
    """Run a subnet and its exits on all samples, or on those until ``stop``, at least a batch."""
    bundle, sure = executor.bundle, confidence(by)
    name = bundle.outputs[default_result(bundle)].name
    ordered = [exits[start] for start in sorted(exits)]
    confidences: list[Array] = []
    right: list[Array] = []
    originals: list[Array] = []
    for inputs, targets in data.batches(batch_size):
        if originals and stop():
            break
        start = executor.start(inputs)
        answers: list[Array] = []
        own: list[Array] = []
        state: Any = start
        for branch in trunk:
            leaving = exits.get(bundle.segment(branch).spec.start)
            if leaving is not None:
                logits = {**state, **executor.run_branch(leaving, state)}[name].numpy()
                own.append(sure(logits))
                answers.append(logits.argmax(1))
            state = executor.advance(branch, state)
        logits = state[name].numpy()
        sure(logits)  # checks that there are class scores
        answers.append(logits.argmax(1))
        if trunk == bundle.space.original:
            original = answers[-1]
        else:
            state = start
            for branch in bundle.space.original:
                state = executor.advance(branch, state)
            original = state[name].numpy().argmax(1)
        wanted = targets if data.labelled else original
        confidences.append(np.stack(own))
        right.append(np.stack(answers) == wanted)
        originals.append(original == wanted)
    joined = [np.concatenate(found, axis=-1) for found in (confidences, right, originals)]
    return Recorded(tuple(ordered), *joined)


def useful(found: Recorded) -> list[str]:
    """The exits that are right more often than all before them."""
    kept, best = [], -1.0
    for name, right in zip(found.exits, found.right, strict=False):
        share = float(right.mean())
        if share > best:
            kept.append(name)
            best = share
    return kept


@dataclass(frozen=True)
class _Along:
    """The exits along a subnet, as recorded on the samples that propose and on those that test.

    Attributes:
        bundle: The bundle.
        trunk: The subnet.
        data: The answers on either samples.
        costs: The latencies of the branches.
        by: The confidence, by name.
    """

    bundle: Bundle
    trunk: Arch
    data: tuple[Recorded, Recorded]
    costs: BranchCosts
    by: str

    def cascade(self, exits: Sequence[str], thresholds: Sequence[float]) -> Cascade:
        """The cascade with some of the exits."""
        starts = [self.bundle.segment(branch).spec.start for branch in self.trunk]
        archs = []
        for name in exits:
            shared = starts.index(self.bundle.segment(name).spec.start)
            archs.append(Arch((*self.trunk.branches[:shared], name)))
        return Cascade((*archs, self.trunk), tuple(thresholds), self.by)

    @cached_property
    def _proposals(self) -> list[tuple[float, ...]]:
        return proposals(leaving_along(self.bundle, self.trunk, self.data[0], self.costs))

    def entry(self, max_loss: float, delta: float) -> CascadeEntry | None:
        """The cheapest cascade that keeps a limit; None if no exit pays."""
        first, second = self.data
        testing = leaving_along(self.bundle, self.trunk, second, self.costs)
        chosen = choose(self._proposals, testing, max_loss, delta)
        used = [i for i, threshold in enumerate(chosen.thresholds) if threshold < NEVER]
        if not used or chosen.bound > max_loss:
            return None
        kept = second.of([first.exits[i] for i in used])
        thresholds = tuple(chosen.thresholds[i] for i in used)
        cascade = self.cascade(kept.exits, thresholds)
        leaving_ms = costs_of_leaving(self.costs, cascade)
        leaving = Leaving(kept.confidences, kept.harm, np.array(leaving_ms))
        at = leaving.leaves_at(thresholds).astype(int)
        coverage = np.bincount(at, minlength=len(leaving_ms)) / len(at)
        expected_ms = math.fsum(
            share * ms for share, ms in zip(coverage.tolist(), leaving_ms, strict=True)
        )
        alone_ms = self.costs.overhead + sum(self.costs.costs[branch] for branch in self.trunk)
        if expected_ms >= alone_ms:
            return None
        right = float(kept.right[at, np.arange(len(at))].mean())
        loss_of_end = float(kept.right[-1].mean()) - right
        return CascadeEntry(
            cascade,
            expected_ms,
            tuple(coverage.tolist()),
            chosen.bound,
            float(kept.original.mean()) - right,
            loss_of_end,
            tuple(map(auroc, kept.confidences, kept.right)),
            chosen.n_tested,
            max_loss,
            float(first.right[-1].mean()) - loss_of_end,
            leaving_ms,
            delta,
        )


def leaving_along(bundle: Bundle, trunk: Arch, data: Recorded, costs: BranchCosts) -> Leaving:
    """What happens to samples at the exits along a subnet.

    Args:
        bundle: The bundle.
        trunk: The subnet.
        data: The answers of its exits.
        costs: The latencies of the branches.
    """
    before = np.cumsum([0.0, *(costs.costs[branch] for branch in trunk)])
    starts = [bundle.segment(branch).spec.start for branch in trunk]
    shared = [starts.index(bundle.segment(name).spec.start) for name in data.exits]
    heads = [costs.costs[name] + costs.per_decision for name in data.exits]
    price = costs.overhead + before[[*shared, len(starts)]]
    return Leaving(data.confidences, data.harm, price, np.array(heads))


def auroc(confidences: Array, right: Array) -> float:
    """The probability that a right answer has a higher confidence than a wrong one."""
    n_right = int(right.sum())
    n_wrong = len(right) - n_right
    if not n_right or not n_wrong:
        return float("nan")
    _, inverse, counts = np.unique(confidences, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # the mean rank of equal values
    total = float(ranks[inverse][right].sum())
    return (total - n_right * (n_right + 1) / 2) / (n_right * n_wrong)
