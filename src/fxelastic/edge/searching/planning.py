"""`edge.plan`: the expected score at each latency, before anything is searched."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fxelastic.edge.arguments import check_loaded
from fxelastic.edge.bundle import Bundle
from fxelastic.edge.bundle_costs import with_bundle_costs
from fxelastic.edge.executor import Executor
from fxelastic.edge.searching.budget_sizes import table_for_limits
from fxelastic.edge.searching.evaluation import Evaluator
from fxelastic.edge.searching.options import SearchOptions
from fxelastic.edge.searching.pool_store import PoolStore
from fxelastic.edge.searching.prediction import ScorePrediction
from fxelastic.edge.searching.search import metric_and_data, warn_of_table
from fxelastic.edge.slow_branches import used
from fxelastic.spec import Arch, SearchSpace
from fxelastic.spec.costs import Costs
from fxelastic.spec.knapsack import most_valuable
from fxelastic.spec.latency_table import LatencyTable
from fxelastic.spec.limits import Bound, Limits, several_limits
from fxelastic.spec.options import check_count, options_of
from fxelastic.spec.resources import LATENCY

#: The budgets of a plan by default, as shares of the original's latency.
BUDGETS = ("40%", "50%", "60%", "70%", "80%", "90%", "95%")
#: Subnets to measure by default (DONNA: 30 suffice).
N_SUBNETS = 30
#: The standard deviation of the noise's logarithm in draws; AttentiveNAS-like draws in training use
#: the same.
_SPREAD = 0.7
_DRAWS = 20  # for each subnet that is missing, as draws repeat
_SUFFIXES = 100


@dataclass(frozen=True)
class PlanPoint:
    """What to expect within one budget.

    Attributes:
        budget_ms: The bound on the latency.
        predicted_ms: The predicted latency of the subnet; infinity if there is none.
        arch: The subnet that is expected to score the most; None if none keeps the budget.
        score: Its expected score; NaN if there is none.
        band: How far off this is with a probability of about 0.7.
    """

    budget_ms: float
    predicted_ms: float
    arch: Arch | None
    score: float
    band: float


@dataclass(frozen=True)
class ScorePlan:
    """The expected trade-off between score and latency on a device.

    Attributes:
        points: One for each budget, in the order of the budgets.
        score: The name of the score.
        original_ms: The original's predicted latency.
        original_score: The original's measured score.
        measured: The score of each subnet that the prediction was fitted to.
        prediction: Predicts further subnets: ``plan.prediction.predict(archs)``.
        standard_error: The standard error of the original's score as a mean over the samples;
            NaN where the score is not a share of the samples.
    """

    points: tuple[PlanPoint, ...]
    score: str
    original_ms: float
    original_score: float
    measured: dict[Arch, float] = field(repr=False)
    prediction: ScorePrediction = field(repr=False)
    standard_error: float = math.nan

    @property
    def median_error(self) -> float:
        """The median absolute error of measured subnets predicted from the others."""
        return self.prediction.median_error

    @property
    def rank_correlation(self) -> float:
        """Spearman's correlation between these predictions and the measured scores."""
        return self.prediction.rank_correlation


def plan(
    bundle: Bundle,
    table: LatencyTable,
    data: Any,
    *,
    budget: Bound | Sequence[Bound] = BUDGETS,
    n_subnets: int = N_SUBNETS,
    options: SearchOptions | None = None,
    **changes: Any,
) -> ScorePlan:
    """Predict the best score within each budget from a few measured subnets.

    Measures the distortion of each branch and the scores of the original and ``n_subnets`` others,
    from the cheapest to the original, fits `ScorePrediction`, and finds the subnets with the best
    expected score within the budgets. A plan costs about as much as evaluating twice
    ``n_subnets`` subnets; a search tries hundreds and finds better ones.

    Args:
        bundle: The bundle.
        table: Its latency table, from `edge.profile`.
        data: Samples, with or without targets, as for `edge.search`.
        budget: Bounds on the latency: numbers in ms, or shares of the original's latency.
        n_subnets: How many subnets to measure, at least 4.
        options: Options of a search, of which those that concern scores and costs count.
        changes: Fields of `SearchOptions`: ``mode``, ``score``, ``held_out``, ``batch_size``,
            ``path``, ``seed``, … With ``path``, the measured subnets go to the pool, from which a
            search with the same path begins.

    Returns:
        The plan. ``edge.search(..., prior=plan.prediction)`` begins with its costs of branches.

    Raises:
        UsageError: An argument is out of range, the data does not fit, or the table belongs to
            another bundle or is marked unusable.
        BundleError: A branch is missing or damaged, can't be run, or returns NaN.

    Source: DONNA (Moons and others, ICCV 2021), section 3.
    """
    check_count("n_subnets", n_subnets, 4)
    options = options_of(SearchOptions() if options is None else options, changes)
    check_loaded(bundle=bundle, table=table)
    given = several_limits(None, budget, None, None)
    mode = options.mode
    table.check_bundle(bundle.digest, lambda: bundle.structure_digest)
    metric, samples, rest = metric_and_data(bundle, data, options.score, options.held_out)
    table = table_for_limits(
        bundle, table, (samples, rest), mode, options.sizes, options.size_percentile
    )
    table.check_usable(mode, force=options.force)
    warn_of_table(table, mode)
    bundle = used(bundle, table, mode, given)
    table = with_bundle_costs(table, bundle)
    costs = table.costs_of(mode)
    original = bundle.space.original
    digest = samples.digest(metric.name)
    with Executor(bundle, options.threads, options.memory_bytes, shared_arena=True) as executor:
        evaluator = Evaluator(
            executor,
            samples,
            metric,
            batch_size=options.batch_size,
            cache_bytes=options.cache_bytes,
            costs=costs[LATENCY].costs,
        )
        store = PoolStore(bundle, table, mode, digest, options.path, evaluator, samples.labelled)
        store.resume()
        distortion = evaluator.distortion(lambda: False)
        errors = dict(zip(distortion.branches, distortion.errors.tolist(), strict=True))
        rng = random.Random(f"plan {options.seed}")
        bounds = [limits.absolute(costs.predict(original)) for limits in given]
        low = min(limits.bound(LATENCY) for limits in bounds)
        archs = drawn(bundle.space, costs, errors, n_subnets, low, rng)
        scores = evaluator.scores([original, *archs])
        store.save()
    share = scores[original]
    is_share = metric.most == 1 and metric.least == 0
    error = math.sqrt(max(0.0, share * (1 - share)) / len(samples)) if is_share else math.nan
    prediction = ScorePrediction(distortion, scores, error if is_share else 0.0)
    points = tuple(_point(bundle.space, costs, limits, prediction) for limits in bounds)
    return ScorePlan(
        points,
        metric.name,
        costs.total(LATENCY, original),
        share,
        dict(scores),
        prediction,
        error,
    )


def drawn(
    space: SearchSpace,
    costs: Costs,
    errors: dict[str, float],
    n: int,
    low: float,
    rng: random.Random,
) -> list[Arch]:
    """Different subnets like those that a search chooses, at all latencies.

    Each has the least total error within a latency, with every error multiplied by random
    noise; most subnets of a large space are poor and say little about good ones.

    Args:
        space: The search space.
        costs: The costs of its branches.
        errors: The distortion of each new branch.
        n: How many; fewer if the space has fewer.
        low: The lowest latency to draw for, in ms.
        rng: The random generator.
    """
    high = costs.total(LATENCY, space.original)
    # Cheaper subnets fit the prediction, too, where no budget is below the original's latency.
    low = low if low < high else 0.0
    n = min(n, space.count() - 1)
    low = min(max(low, costs.total(LATENCY, space.min_cost_arch(costs[LATENCY].costs))), high)
    found: dict[Arch, None] = {}
    for i in range(_DRAWS * n):
        # The golden ratio spreads any number of latencies evenly.
        part = (i * 0.6180339887498949) % 1.0
        limits = Limits({LATENCY: low + (high - low) * max(part, 1e-3)})
        values = {
            name: -error * math.exp(rng.gauss(0.0, _SPREAD)) for name, error in errors.items()
        }
        best = most_valuable(space, costs, limits, values, most=_SUFFIXES)
        found.update(dict.fromkeys(arch for arch in best if arch != space.original))
        if len(found) >= n:
            break
    return list(found)


def _point(
    space: SearchSpace, costs: Costs, limits: Limits, prediction: ScorePrediction
) -> PlanPoint:
    values = {branch: -cost for branch, cost in prediction.costs.items()}
    best = most_valuable(space, costs, limits, values)
    bound = limits.bound(LATENCY)
    if not best:
        return PlanPoint(bound, math.inf, None, math.nan, math.nan)
    scores, bands = prediction.predict(best[:1])
    ms = costs.total(LATENCY, best[0])
    return PlanPoint(bound, ms, best[0], float(scores[0]), float(bands[0]))
