"""Scores of many subnets in one pass over the data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from fxelastic.errors import UsageError
from fxelastic.ir.supernet import Supernet
from fxelastic.spec import Arch
from fxelastic.threads import computing_with
from fxelastic.train.batches import BatchReader, Split, numbered
from fxelastic.train.execution import Execution
from fxelastic.train.metrics import accuracy, counts, likeness
from fxelastic.train.prefixes import Prefix

#: Scores a batch: a function of a subnet's result and the target, higher is better.
Metric = Callable[[Any, Any], float]


@computing_with()
def evaluate(
    supernet: Supernet,
    archs: Iterable[Arch],
    loader: Iterable[Any],
    *,
    metric: Metric | None = None,
    split: Split | None = None,
) -> dict[Arch, float]:
    """Score subnets; what they have in common is computed once for each batch.

    The subnets form a tree of their common beginnings. It is walked depth first with one batch
    after the other, so that at most one feature a level is kept.

    Args:
        supernet: Whose subnets they are.
        archs: The subnets; one that comes twice is scored once.
        loader: Any iterable of batches, in the forms that `BatchReader` reads.
        metric: Scores a batch, as a mean over its samples. Accuracy where None, or for a batch
            without a target `agreement` with the original, or `cosine` where its result holds no
            logits. A metric of your own then gets the original's result as the target:
            ``metric=fxelastic.train.spearman``.
        split: Takes a batch apart.

    Returns:
        The mean score of each subnet over all samples, in the order given. Without ``metric``,
        a batch in which no element counts is left out.

    Raises:
        UsageError: There is no subnet, the loader is empty, a batch is not understood, or no
            batch has an element to score.

    Source: AdaptiveNet, section 5.2.
    """
    wanted = tuple(dict.fromkeys(archs))
    if not wanted:
        raise UsageError("there is no subnet to evaluate", expected="archs", got="none")
    for arch in wanted:
        supernet.space.validate(arch)
    reader = BatchReader(supernet, split)
    execution = Execution(supernet)
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
                target = execution.result(supernet.space.original, values)
                score = metric or likeness
            if metric is None and not counts(target):
                continue
            for arch, result in _results(tree, execution, values):
                totals[arch] += float(score(result, target)) * batch.size
            n_samples += batch.size
    if not n_samples:
        raise UsageError(
            "no batch of the loader has an element to score",
            expected="at least one target that counts, or one result with elements",
            got="only empty or ignored ones",
            fix="check the targets, or pass metric= to score such batches",
        )
    return {arch: total / n_samples for arch, total in totals.items()}


def _results(node: Prefix, execution: Execution, values: dict[str, Any]) -> Any:
    """Each subnet below a prefix and its result.

    Args:
        node: The prefix.
        execution: Runs the branches.
        values: The named values after the prefix.
    """
    if node.arch is not None:
        yield node.arch, execution.supernet.result(values)
    for name, longer in node.following.items():
        current = dict(values)
        execution.run(execution.branch(name), current)
        yield from _results(longer, execution, current)
