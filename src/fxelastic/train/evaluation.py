"""Scores of many subnets in one pass over the data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fxelastic.errors import UsageError
from fxelastic.ir.supernet import Supernet
from fxelastic.spec import Arch
from fxelastic.threads import computing_with
from fxelastic.train.batches import BatchReader, Split, no_labels, numbered
from fxelastic.train.learners import BranchRunner
from fxelastic.train.metrics import accuracy, counts, likeness
from fxelastic.train.reports import Bucket
from fxelastic.train.sampling import cost_windows, flops_of

#: Scores a batch: a function of a subnet's result and the target, higher is better.
Metric = Callable[[Any, Any], float]


@dataclass
class Prefix:
    """A prefix of one or more subnets, in the tree of their common prefixes.

    Attributes:
        following: The prefixes that are one branch longer, by that branch's id.
        arch: The subnet that ends here, if one does.

    Source: AdaptiveNet, section 5.2.
    """

    following: dict[str, Prefix] = field(default_factory=dict)
    arch: Arch | None = None

    @classmethod
    def tree(cls, archs: Iterable[Arch], without: Collection[str] = ()) -> Prefix:
        """The tree of these subnets; its root is the empty prefix.

        Args:
            archs: The subnets.
            without: Ids of branches to leave out, which have run already.
        """
        root = cls()
        for arch in archs:
            node = root
            for name in arch:
                if name in without:
                    continue
                node = node.following.setdefault(name, cls())
            node.arch = arch
        return root

    def __len__(self) -> int:
        """The number of branches that run when every subnet runs once."""
        return sum(1 + len(node) for node in self.following.values())


@computing_with()
def evaluate(
    supernet: Supernet,
    archs: Iterable[Arch],
    loader: Iterable[Any],
    *,
    metric: Metric | None = None,
    split: Split | None = None,
) -> dict[Arch, float]:
    """Score subnets; their common prefixes are computed once for each batch.

    The subnets form a tree of their common prefixes. It is walked depth first with one batch
    after the other, so that at most one feature a level is kept.

    Args:
        supernet: The supernet.
        archs: The subnets; duplicates are scored once.
        loader: Any iterable of batches, in the forms that `BatchReader` reads.
        metric: Scores a batch, as a mean over its samples. Accuracy where None, or for a batch
            without a target `agreement` with the original, or `cosine` where its result holds no
            logits. A custom metric then gets the original's result as the target:
            ``metric=fxelastic.train.spearman``.
        split: Takes a batch apart.

    Returns:
        The mean score of each subnet over all samples, in the order given. Without ``metric``,
        a batch in which no element counts is left out.

    Raises:
        UsageError: archs is empty, the loader is empty, a batch is not understood, or no batch
            has an element to score.

    Source: AdaptiveNet, section 5.2.
    """
    wanted = tuple(dict.fromkeys(archs))
    if not wanted:
        raise UsageError("archs is empty", expected="at least one subnet", got="no subnet")
    for arch in wanted:
        supernet.space.validate(arch)
    reader = BatchReader(supernet, split)
    runner = BranchRunner(supernet)
    tree = Prefix.tree(wanted)
    totals = dict.fromkeys(wanted, 0.0)
    n_samples = 0
    supernet.eval()
    with torch.no_grad():
        for number, raw in numbered(loader, "the loader"):
            batch = reader.read(raw, number)
            values = reader.bind(batch)
            target, score = batch.target, metric or accuracy
            if target is None:
                target = runner.result(supernet.space.original, values)
                score = metric or likeness
            if metric is None and not counts(target):
                continue
            for arch, result in results_of(tree, runner, values):
                totals[arch] += float(runner.layout.compare(score, result, target)) * batch.size
            n_samples += batch.size
    if not n_samples:
        raise UsageError(
            "no batch of the loader has an element to score",
            expected="at least one target that counts, or one result with elements",
            got="only empty or ignored targets",
            fix="check the targets, or pass metric= to score such batches",
        )
    return {arch: total / n_samples for arch, total in totals.items()}


def range_accuracy(
    supernet: Supernet,
    loader: Iterable[Any],
    *,
    costs: Mapping[str, float] | None = None,
    n_buckets: int = 5,
    n_subnets: int = 8,
    metric: Metric | None = None,
    split: Split | None = None,
    seed: int = 0,
) -> tuple[Bucket, ...]:
    """Mean score of random subnets in each range of costs: the latency-range accuracy.

    Args:
        supernet: The supernet.
        loader: Batches to score on, see `evaluate`.
        costs: Cost of each branch by id, such as a latency in ms; FLOPs where None.
        n_buckets: Ranges of equal width from the cheapest to the most expensive subnet.
        n_subnets: Random subnets of each range; fewer where draws repeat.
        metric: Scores a batch, see `evaluate`.
        split: Takes a batch apart.
        seed: Seed of the subnets.

    Returns:
        The ranges, the cheapest first.

    Raises:
        UsageError: As `evaluate`, or costs lacks a branch.

    Source: AdaptiveNet, section 4.2 (further tuning).
    """
    windows = cost_windows(supernet.space, n_buckets, costs)
    drawn: list[tuple[Arch, ...]] = []
    for i, window in enumerate(windows):
        try:
            drawn.append(tuple(dict.fromkeys(window.sample(n_subnets, seed + i))))
        except UsageError:  # No subnet is in this range.
            drawn.append(())
    scores = evaluate(
        supernet, [arch for archs in drawn for arch in archs], loader, metric=metric, split=split
    )
    buckets = []
    for window, archs in zip(windows, drawn, strict=True):
        found = [scores[arch] for arch in archs]
        mean, best = (sum(found) / len(found), max(found)) if found else (None, None)
        buckets.append(Bucket(window.low, window.high, mean, best, len(found)))
    return tuple(buckets)


def scores_of(
    archs: Sequence[Arch],
    loader: Iterable[Any],
    reader: BatchReader,
    runner: BranchRunner,
    metric: Metric | None = None,
    start: int = 0,
) -> tuple[list[float], int]:
    """Score subnets on labelled batches, from the values that a reader gives.

    Args:
        archs: The subnets.
        loader: The batches.
        reader: Reads them, and computes the values before a block.
        runner: Runs the branches.
        metric: Scores a batch, as a mean over its samples; accuracy where None.
        start: The number of that block.

    Returns:
        The sum of the scores over all samples for each subnet, and the number of samples.

    Raises:
        UsageError: A batch has no target.
    """
    tree = Prefix.tree(archs, {branch.id for branch in runner.before(start)})
    totals, n_samples = dict.fromkeys(archs, 0.0), 0
    with torch.no_grad():
        for number, raw in numbered(loader, "validate"):
            batch = reader.read(raw, number)
            if batch.target is None:
                raise no_labels(batch, "validate")
            if metric is None and not counts(batch.target):
                continue
            for arch, result in results_of(tree, runner, reader.bind(batch)):
                score = runner.layout.compare(metric or accuracy, result, batch.target)
                totals[arch] += float(score) * batch.size
            n_samples += batch.size
    return list(totals.values()), n_samples


def subnet_scores(
    supernet: Supernet,
    archs: Iterable[Arch],
    loader: Iterable[Any],
    *,
    costs: Mapping[str, float] | None = None,
    metric: Metric | None = None,
    split: Split | None = None,
) -> tuple[Bucket, ...]:
    """The score of each subnet, as a range of costs of its own.

    Args:
        supernet: The supernet.
        archs: The subnets.
        loader: Batches to score on, with or without targets; see `evaluate`.
        costs: Cost of each branch by id, such as a latency in ms; FLOPs where None.
        metric: Scores a batch, see `evaluate`.
        split: Takes a batch apart.

    Returns:
        The ranges, in the order of the subnets.

    Raises:
        UsageError: As `evaluate`.
    """
    known = flops_of(supernet.space) if costs is None else costs
    scores = evaluate(supernet, archs, loader, metric=metric, split=split)
    # Branches that only a training copy has have no measured cost.
    found = [(sum(known.get(name, 0.0) for name in arch), scores[arch]) for arch in archs]
    return tuple(Bucket(cost, cost, score, score, 1) for cost, score in found)


def results_of(
    node: Prefix, runner: BranchRunner, values: dict[str, Any]
) -> Iterator[tuple[Arch, Any]]:
    """Each subnet below a prefix and its result.

    Args:
        node: The prefix.
        runner: Runs the branches.
        values: The named values after the prefix; not changed.
    """
    if node.arch is not None:
        yield node.arch, runner.supernet.result(values, caches=False)
    for name, longer in node.following.items():
        current = dict(values)
        runner.run(runner.branch(name), current)
        yield from results_of(longer, runner, current)
