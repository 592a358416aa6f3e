"""Latency-range accuracy: how well a supernet is trained, over the whole range of costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fxelastic.errors import UsageError
from fxelastic.ir.supernet import Supernet
from fxelastic.spec import Arch
from fxelastic.train.batches import Split
from fxelastic.train.evaluation import Metric, evaluate
from fxelastic.train.reports import Bucket
from fxelastic.train.sampling import cost_windows


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
    """Mean score of random subnets in each range of costs.

    Args:
        supernet: The supernet.
        loader: Batches to score on, see `evaluate`.
        costs: Cost of each branch by id, such as a latency in ms; FLOPs where None.
        n_buckets: Ranges of equal width from the cheapest to the dearest subnet.
        n_subnets: Random subnets of each range; fewer where one is drawn twice.
        metric: Scores a batch, see `evaluate`.
        split: Takes a batch apart.
        seed: Of the subnets: the same subnets in every epoch.

    Returns:
        The ranges, the cheapest first.

    Raises:
        UsageError: As `evaluate`, or the costs are none.

    Source: AdaptiveNet, section 4.2 (further tuning).
    """
    windows = cost_windows(supernet.space, n_buckets, costs)
    drawn: list[tuple[Arch, ...]] = []
    for i, window in enumerate(windows):
        try:
            drawn.append(tuple(dict.fromkeys(window.sample(n_subnets, seed + i))))
        except UsageError:  # No subnet costs this.
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
