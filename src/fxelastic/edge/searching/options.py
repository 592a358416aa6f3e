"""The options of a search."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fxelastic.edge.cascades.confidence import confidence
from fxelastic.edge.cascades.thresholds import checked_losses
from fxelastic.edge.monitoring.recent_latencies import check_percentile
from fxelastic.edge.searching.prediction import ScorePrediction
from fxelastic.edge.searching.scores import Score
from fxelastic.edge.searching.study import Strategy, Study
from fxelastic.errors import UsageError
from fxelastic.spec.cost_weights import CostWeights
from fxelastic.spec.options import check_count, check_positive, is_number


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Options of `edge.search`, which also takes each as a keyword argument.

    Attributes:
        strategy: A name of `strategy_names`, or a strategy.
        mode: How subnets will be run, ``assembled`` or ``paged``.
        score: ``top1``, ``agreement``, ``cosine``, ``spearman``, ``miou``, ``negative_loss``, or a
            function of the flat results and the targets of a batch that returns a sum and a count.
            ``cosine:NAME`` looks at the result of that name, or of that number from 0. None for
            ``top1`` with targets; without, ``agreement`` for class scores, the share of samples
            whose top class is the original's, and ``cosine`` for other results.
        max_subnets: Subnets to try within each of the limits.
        time_budget_s: End earlier after this time, for all limits. Everything counts, from reading
            the data to the scores on samples held out; only the first evaluation, of one subnet on
            one batch, may exceed it. Where the additive bests can't be evaluated on all samples in
            a part of this time, all scores are on the first samples.
        batch_size: Samples of a batch. A model of a fixed batch size has that; samples that fill
            no batch are left out then.
        held_out: Share of the samples that no choice depends on. The search's own scores, being
            the best of many, are biased upwards; the best subnets' scores on these samples are not.
        cache_bytes: The most bytes of kept features; None for no bound.
        memory_bytes: The most bytes of sessions, and of models in between; None for no bound.
            Where both are bounded, the process does not grow by more than both together and what
            one batch takes.
        confidence: A candidate ends early when it can't be the best any more: for certain
            with 1, so that no winner is lost; otherwise with this probability, of 0.5 at least, by
            the Hoeffding-Serfling inequality. It applies to bounded scores: ``top1``,
            ``agreement``, ``cosine`` and ``spearman``.
        threads: Threads to compute with; 0 for one for each core that the process may use.
        seed: Seed of the search; the same seed leads to the same subnets.
        path: A file for the pool, written as the search goes on. If it exists, of the same bundle,
            data and score, its subnets are not evaluated again.
        progress: Called with the budget in ms (infinity without one) and the study, after each
            group and about once a second in between.
        sizes: The sizes of inputs that limits are for, such as ``{"seq": 128}``, if other sizes
            than the batch may vary. Without it, limits on the latency are for the mean over the
            samples of the data.
        size_percentile: Limits are for the sample whose original latency is this percentile of the
            data, from 0 to 100, instead of the mean.
        latency_percentile: Limits on the latency are for this percentile of the runs, from 50 to
            99.9, by the spread of each branch's measurements, and the pool's latencies, too. By
            default latencies are those of the table.
        max_loss: Also find cascades, in which a sample leaves at the first exit that is confident:
            at most this share of samples gets a wrong answer where the original is right (without
            targets, another answer than the original's). Several limits, such as
            ``(0.01, 0.03)``, give several cascades, among which serving chooses under load. None
            for no cascades.
        delta: The probability that a cascade loses more than ``max_loss`` in spite of its test on
            the held-out samples.
        exit_confidence: What says how sure an exit is: ``max_softmax``, ``margin`` or ``entropy``.
        weights: How much each resource counts, by its name, see `CostWeights`: among the subnets
            within the limits whose score is at most ``tolerance`` below the best, the one with
            the least weighted mean of its costs, as shares of the original's, is returned. None
            for the one with the highest score.
        tolerance: See ``weights``; in units of the score.
        prior: A prediction of scores, ``plan.prediction`` of `edge.plan`, whose costs of branches
            the search begins with instead of measuring distortions.
        force: Search although the table is marked unusable: see `LatencyTable.problem`.
        clock: Returns the time, in s.
    """

    strategy: str | Strategy = "evolutionary"
    mode: str = "assembled"
    score: str | Score | None = None
    max_subnets: int = 400
    time_budget_s: float | None = None
    batch_size: int = 50
    held_out: float = 0.2
    cache_bytes: int | None = 2**28
    memory_bytes: int | None = None
    confidence: float = 1.0
    threads: int = 0
    seed: int = 0
    path: str | os.PathLike[str] | None = None
    progress: Callable[[float, Study], None] | None = None
    sizes: Mapping[str, int] | None = None
    size_percentile: float | None = None
    latency_percentile: float | None = None
    max_loss: float | Sequence[float] | None = None
    delta: float = 0.05
    exit_confidence: str = "max_softmax"
    weights: Mapping[str, float] | None = None
    tolerance: float = 0.01
    prior: ScorePrediction | None = None
    force: bool = False
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            UsageError: One is out of range.
        """
        check_count("batch_size", self.batch_size)
        check_count("max_subnets", self.max_subnets)
        check_count("threads", self.threads, 0)
        check_percentile(self.latency_percentile)
        if self.time_budget_s is not None:
            check_positive("time_budget_s", self.time_budget_s)
        if self.memory_bytes is not None:
            check_positive("memory_bytes", self.memory_bytes)
        if self.cache_bytes is not None and not (
            is_number(self.cache_bytes) and self.cache_bytes >= 0
        ):
            raise UsageError(
                "cache_bytes must be at least 0, or None",
                expected="a number of bytes; None for no bound",
                got=repr(self.cache_bytes),
            )
        checked_losses(0.5 if self.max_loss is None else self.max_loss, self.delta)
        if self.max_loss is not None:
            confidence(self.exit_confidence)  # an error names those that there are
        if self.weights is not None:
            CostWeights(self.weights)
        if not (is_number(self.tolerance) and 0 <= self.tolerance < math.inf):
            raise UsageError(
                "tolerance is out of range",
                expected="a number of at least 0, in units of the score",
                got=repr(self.tolerance),
            )
        if not (is_number(self.held_out) and 0 <= self.held_out < 1):
            raise UsageError(
                "held_out is out of range",
                expected="a share of at least 0 and below 1",
                got=repr(self.held_out),
            )
