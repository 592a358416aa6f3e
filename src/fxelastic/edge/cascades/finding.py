"""Find cascades whose loss is bounded, on the samples of a search."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.cascades.confidence import confidence
from fxelastic.edge.cascades.entry import CascadeEntry
from fxelastic.edge.cascades.thresholds import NEVER, Leaving, choose
from fxelastic.edge.executor import Array, Executor
from fxelastic.edge.searching.choice import default_result
from fxelastic.edge.searching.data import Dataset
from fxelastic.errors import UsageError
from fxelastic.spec import EXIT, Arch
from fxelastic.spec.cascade import Cascade
from fxelastic.spec.costs import BranchCosts


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
    max_loss: float,
    delta: float,
    by: str = "max_softmax",
    batch_size: int = 50,
) -> tuple[CascadeEntry, ...]:
    """For each subnet the cascade along it that costs least and keeps a bound.

    Args:
        executor: Runs the branches.
        data: Samples to choose thresholds on, and held-out samples to test them on.
        trunks: The subnets.
        costs: The latencies of the branches.
        max_loss: The largest share of samples that may get a wrong answer where the original is
            right.
        delta: The probability that more do in spite of the test, for each of the cascades.
        by: The confidence, by name.
        batch_size: Samples of a batch.

    Returns:
        The cascades, by their latency; without those that use no exit, or cost no less than their
        subnet.

    Raises:
        UsageError: The held-out samples are too few, or the results have no class scores.
        BundleError: A branch is missing or damaged, or can't be run.
    """
    if not (0 < max_loss < 1 and 0 < delta < 1):
        raise UsageError(
            "max_loss and delta must be shares",
            expected="numbers above 0 and below 1",
            got=f"max_loss={max_loss!r}, delta={delta!r}",
        )
    if not executor.bundle.manifest.model.dynamic_batch:
        data = data[0].whole(batch_size), data[1].whole(batch_size)
    proposing, testing = data
    found = []
    for trunk in dict.fromkeys(trunks):
        exits = _exits_along(executor.bundle, trunk)
        if not exits:
            continue
        first = _recorded(executor, proposing, trunk, exits, by, batch_size)
        first = first.of(_useful(first))
        second = _recorded(executor, testing, trunk, exits, by, batch_size).of(first.exits)
        found.append(_entry(executor.bundle, trunk, (first, second), costs, (max_loss, delta), by))
    return tuple(sorted(filter(None, found), key=lambda entry: entry.latency_ms))


def _exits_along(bundle: Bundle, trunk: Arch) -> dict[int, str]:
    """The exits at the borders of a subnet's branches, by position, but for its own."""
    n_blocks = bundle.space.n_blocks
    starts = {bundle.segment(branch).spec.start for branch in trunk}
    specs = [s for s in bundle.space.branches if s.kind == EXIT and s.stop == n_blocks]
    return {s.start: s.id for s in specs if s.start in starts and s.id not in trunk.branches}


def _recorded(
    executor: Executor,
    data: Dataset,
    trunk: Arch,
    exits: Mapping[int, str],
    by: str,
    batch_size: int,
) -> Recorded:
    """Run a subnet and its exits on all samples."""
    bundle, sure = executor.bundle, confidence(by)
    name = bundle.outputs[default_result(bundle)].name
    ordered = [exits[start] for start in sorted(exits)]
    confidences: list[Array] = []
    right: list[Array] = []
    originals: list[Array] = []
    for inputs, targets in data.batches(batch_size):
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


def _useful(found: Recorded) -> list[str]:
    """The exits that are right more often than all before them."""
    useful, best = [], -1.0
    for name, right in zip(found.exits, found.right, strict=False):
        share = float(right.mean())
        if share > best:
            useful.append(name)
            best = share
    return useful


def _entry(
    bundle: Bundle,
    trunk: Arch,
    data: tuple[Recorded, Recorded],
    costs: BranchCosts,
    limits: tuple[float, float],
    by: str,
) -> CascadeEntry | None:
    """The cascade along a subnet; None if no exit pays."""
    first, second = data
    starts = [bundle.segment(branch).spec.start for branch in trunk]
    archs = []
    for name in first.exits:
        shared = starts.index(bundle.segment(name).spec.start)
        archs.append(Arch((*trunk.branches[:shared], name)))
    # A sample that leaves has run the heads of all exits before, too.
    heads = accumulate(costs.costs[name] for name in first.exits)
    until = [
        sum(costs.costs[branch] for branch in arch.branches[:-1]) + head
        for arch, head in zip(archs, heads, strict=True)
    ]
    alone = costs.overhead + sum(costs.costs[branch] for branch in trunk)
    whole = alone + sum(costs.costs[name] for name in first.exits)
    price = np.array([*(costs.overhead + ms for ms in until), whole])
    chosen = choose(
        Leaving(first.confidences, first.harm, price),
        Leaving(second.confidences, second.harm, price),
        *limits,
    )
    used = [i for i, threshold in enumerate(chosen.thresholds) if threshold < NEVER]
    if not used or chosen.bound > limits[0]:
        return None
    kept = second.of([first.exits[i] for i in used])
    thresholds = tuple(chosen.thresholds[i] for i in used)
    cascade = Cascade((*(archs[i] for i in used), trunk), thresholds, by)
    leaving = Leaving(kept.confidences, kept.harm, np.zeros(len(used) + 1))
    at = leaving.leaves_at(thresholds).astype(int)
    counts = np.bincount(at, minlength=len(used) + 1)
    reached = 1 - np.concatenate([[0], np.cumsum(counts)[:-1]]) / len(at)
    latency_ms = cascade.expected_cost(costs, reached.tolist())
    if latency_ms >= alone:
        return None
    right = kept.right[at, np.arange(len(at))].mean()
    return CascadeEntry(
        cascade,
        latency_ms,
        tuple((counts / len(at)).tolist()),
        chosen.bound,
        float(kept.original.mean() - right),
        float(kept.right[-1].mean() - right),
        tuple(map(_auroc, kept.confidences, kept.right)),
        chosen.n_tested,
    )


def _auroc(confidences: Array, right: Array) -> float:
    """The probability that a right answer has a higher confidence than a wrong one."""
    n_right = int(right.sum())
    n_wrong = len(right) - n_right
    if not n_right or not n_wrong:
        return float("nan")
    _, inverse, counts = np.unique(confidences, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # the mean rank of equal values
    total = float(ranks[inverse][right].sum())
    return (total - n_right * (n_right + 1) / 2) / (n_right * n_wrong)
