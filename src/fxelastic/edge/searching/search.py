"""`edge.search`: find the best subnets within limits on latency and other resources."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from fxelastic.edge.arguments import check_loaded
from fxelastic.edge.bundle import Bundle
from fxelastic.edge.bundle_costs import with_bundle_costs
from fxelastic.edge.cascades.costs import expected_costs
from fxelastic.edge.cascades.entry import CascadeEntry
from fxelastic.edge.cascades.finding import check_before, find_cascades
from fxelastic.edge.cascades.thresholds import checked_losses
from fxelastic.edge.executor import Executor
from fxelastic.edge.fingerprint import fingerprint
from fxelastic.edge.finished_search import FinishedSearch, key_of
from fxelastic.edge.memory import GrowthLimit
from fxelastic.edge.pool import PoolEntry, SubnetPool
from fxelastic.edge.searching.budget_sizes import table_for_limits
from fxelastic.edge.searching.choice import chosen_metric
from fxelastic.edge.searching.data import Dataset, batch_of, read_data
from fxelastic.edge.searching.evaluation import Evaluator
from fxelastic.edge.searching.options import SearchOptions
from fxelastic.edge.searching.pool_store import PoolStore
from fxelastic.edge.searching.result import SearchResult, mark_of, warn_of_marks
from fxelastic.edge.searching.schedule import Schedule, answer
from fxelastic.edge.searching.scores import Metric, Score
from fxelastic.edge.searching.study import (
    Improvement,
    SearchAbortedError,
    Strategy,
    Study,
    strategy,
)
from fxelastic.edge.searching.weighted import Weighted
from fxelastic.edge.slow_branches import used
from fxelastic.errors import UsageError
from fxelastic.spec import Arch
from fxelastic.spec.cost_weights import CostWeights
from fxelastic.spec.costs import Costs
from fxelastic.spec.latency_spread import at_latency_percentile
from fxelastic.spec.latency_table import LatencyTable
from fxelastic.spec.limits import Bound, Limits, several_limits
from fxelastic.spec.only_writer import only_writer
from fxelastic.spec.options import options_of
from fxelastic.spec.resources import LATENCY, PEAK, resource

logger = logging.getLogger(__name__)

# Of a limited time, if cascades are looked for in the rest.
_SUBNETS_SHARE = 0.5


def search(
    bundle: Bundle,
    table: LatencyTable,
    data: Any,
    *,
    limits: Mapping[str, Bound] | Sequence[Mapping[str, Bound]] | None = None,
    budget: Bound | Sequence[Bound] | None = None,
    budget_ms: float | Sequence[float] | None = None,
    weight_bytes: int | None = None,
    options: SearchOptions | None = None,
    **changes: Any,
) -> SearchResult:
    """Find the most accurate subnets within limits (AdaptiveNet §5).

    8-bit branches that are not faster on the device than their float branches are left out.
    Costs come from the table; accuracies are measured on this device with the data. Common prefixes
    of subnets are computed once, and no subnet is completely evaluated twice, even for several
    limits. Ctrl-C ends the search with the best subnets so far.

    For each of the limits, the search first evaluates the additive best: the subnet within the
    limits that loses the least quality, assuming that the losses of branches add up. So even a
    search that is short of time has a good answer. `SearchResult.marks` lists incomplete scores.

    Args:
        bundle: The bundle.
        table: Its latency table, from `edge.profile`.
        data: Samples, with or without targets; see `read_data`. Without targets, subnets are
            compared with the results of the original, computed once on this device.
        limits: Bounds by resource, such as ``{"weight_bytes": 2e6, "flops": "70%"}``, where a
            share is relative to the original's cost; or a sequence of such mappings.
        budget: Bounds on the latency: numbers in ms, or shares of the original's latency like
            ``"60%"``. Equivalent to limits on the latency.
        budget_ms: The same as ``budget``, in ms.
        weight_bytes: The maximum size of a subnet's weights, in bytes, added to all limits.
        options: The other options.
        changes: Any field of `SearchOptions`: ``strategy``, ``score``, ``max_subnets``, …

    Returns:
        The best subnet within each of the limits, the pool, and the history.

    Raises:
        UsageError: An argument is out of range, the data does not fit, the table belongs to
            another bundle or is marked unusable, or no subnet keeps the limits; the message names
            the lowest possible costs.
        BundleError: A branch is missing or damaged, can't be run, or returns NaN.
    """
    options = options_of(SearchOptions() if options is None else options, changes)
    clock, mode = options.clock, options.mode
    begin_s = clock()
    growth = None
    if options.memory_bytes is not None and options.cache_bytes is not None:
        growth = GrowthLimit(options.memory_bytes + options.cache_bytes)
    check_loaded(bundle=bundle, table=table)
    given = several_limits(limits, budget, budget_ms, weight_bytes)
    table.check_bundle(bundle.digest, lambda: bundle.structure_digest)
    metric, samples, rest = metric_and_data(bundle, data, options.score, options.held_out)
    if options.path is not None and metric.name == "<lambda>":
        raise UsageError(
            "a pool on disk needs a score with a name, which tells its scores from others",
            expected="a function made with def",
            got="a lambda",
        )
    table = table_for_limits(
        bundle, table, (samples, rest), mode, options.sizes, options.size_percentile
    )
    table.check_usable(mode, force=options.force)
    warn_of_table(table, mode)
    if options.max_loss is not None:
        check_before(bundle, rest, options.max_loss, options.delta)
    weights = None if options.weights is None else CostWeights(options.weights)
    bundle = used(bundle, table, mode, given, () if weights is None else weights)
    if options.latency_percentile is not None:
        table = at_latency_percentile(table, options.latency_percentile)
    table = with_bundle_costs(table, bundle)
    costs = table.costs_of(mode)
    original_costs = costs.predict(bundle.space.original)
    runner = _strategy(options.strategy)
    weighted = None
    if weights is not None:
        for name in weights:
            costs[name]  # an error names what the table lacks
        runner = weighted = Weighted(runner, weights, options.tolerance)
    interrupted = aborted = False
    digest = samples.digest(metric.name)
    n_together = batch_of(bundle, options.batch_size)
    exhaustive = options.time_budget_s is None and options.confidence == 1
    if exhaustive or not bundle.manifest.model.dynamic_batch:
        # Otherwise the first samples stand for all, so they stay in random order.
        samples = samples.by_size(n_together)
    if options.time_budget_s is None or options.max_loss is None:
        # Otherwise the first ones may be all that there is time to test cascades on.
        rest = rest.by_size(n_together)
    end_s = math.inf if options.time_budget_s is None else begin_s + options.time_budget_s
    with (
        only_writer(options.path),
        Executor(
            bundle, options.threads, options.memory_bytes, shared_arena=True, limit=growth
        ) as executor,
    ):
        evaluator = Evaluator(
            executor,
            samples,
            metric,
            batch_size=options.batch_size,
            cache_bytes=options.cache_bytes,
            costs=costs[LATENCY].costs,
            confidence=options.confidence,
            first=None if options.time_budget_s is None else 1,
            clock=clock,
        )
        if options.prior is not None:
            evaluator.begin_with(options.prior.learned)
        store = PoolStore(bundle, table, mode, digest, options.path, evaluator, samples.labelled)
        store.resume()
        studies: list[Study] = []
        for i, bounds in enumerate(given):
            study = Study(
                bundle.space,
                costs,
                bounds.absolute(original_costs),
                evaluator,
                options.max_subnets,
                random.Random(f"search {options.seed} {i}"),
                clock=clock,
                progress=_saving(store, options.progress),
            )
            _check_feasible(study)
            studies.append(study)
        # Looking for cascades takes about as long as evaluating subnets.
        share = 1.0 if options.max_loss is None else _SUBNETS_SHARE
        schedule = Schedule(studies, begin_s + share * (end_s - begin_s), len(rest))
        key = key_of(table.to_dict(), given, _decisive(options, metric))
        repeatable = exhaustive and options.prior is None
        finished = store.finished(key, len(studies)) if repeatable else None
        try:
            if finished is None:
                schedule.run(runner)
            else:
                logger.info("the pool has the answer of this search")
                for study, steps in zip(studies, finished.histories, strict=True):
                    study.history += [Improvement(n, 0.0, *figures) for n, *figures in steps]
        except SearchAbortedError:
            aborted = True
        except KeyboardInterrupt:
            interrupted = True
        if interrupted or aborted:
            # Leave out the limits that the search did not reach.
            studies = [study for study in studies if study.incumbent is not None] or studies
        bests = [_answer(study, weighted) for study in studies]
        if finished is not None:
            bests = list(finished.bests)
        wanted = list(dict.fromkeys(bests))
        outside = Evaluator(executor, rest, metric, batch_size=options.batch_size, clock=clock)
        if len(rest) and not aborted:
            if not interrupted:
                wanted = list(dict.fromkeys([*wanted, *(e.arch for e in store.pool().pareto)]))
            try:
                store.score_held_out(wanted, outside, end_s)
            except KeyboardInterrupt:
                interrupted = True
        if options.max_loss is not None and not (interrupted or aborted or finished is not None):
            # Serving ranks cascades among subnets, and returns to the original without load.
            evaluator.scores([bundle.space.original])
            store.cascades += find_cascades(
                executor,
                (samples, rest),
                (bundle.space.original, *bests),
                costs[LATENCY],
                max_loss=options.max_loss,
                delta=options.delta,
                by=options.exit_confidence,
                batch_size=n_together,
                end_s=end_s,
                clock=clock,
            )
        pool = store.pool()
        store.save()
        original, counts = None, replace(evaluator.counts)
        if exhaustive and not (interrupted or aborted):
            try:
                known = None if finished is None else finished.original
                original = _scored(bundle.space.original, evaluator, outside, store, known)
            except KeyboardInterrupt:
                interrupted = True
        if original is not None and finished is None and repeatable:
            histories = tuple(tuple(step.kept for step in study.history) for study in studies)
            scores = (original.accuracy, original.held_out_accuracy)
            store.searches[key] = FinishedSearch(key, tuple(bests), histories, scores)
            pool = store.pool()
            store.save()
    entries = {entry.arch: entry for entry in pool.entries}
    found = tuple(entries.get(best) or store.unmeasured(best) for best in bests)
    result = SearchResult(
        tuple(study.limits for study in studies),
        found,
        pool,
        tuple(tuple(study.history) for study in studies),
        counts,
        table,
        interrupted,
        tuple(mark_of(entry, len(samples)) for entry in found),
        original,
        _cascades(pool, [study.limits for study in studies], costs, options),
    )
    if not aborted:
        warn_of_marks(result, None if interrupted else schedule.needed_s)
    return result


def _cascades(
    pool: SubnetPool, limits: Sequence[Limits], costs: Costs, options: SearchOptions
) -> tuple[CascadeEntry, ...]:
    """The cascades of a pool that answer a search."""
    if options.max_loss is None:
        return ()
    max_loss = max(checked_losses(options.max_loss, options.delta))
    return tuple(
        found
        for found in pool.cascades
        if found.keeps(max_loss, options.delta)
        and any(
            bounds.keeps(expected_costs(costs, found.cascade, found.coverage)) for bounds in limits
        )
    )


def _saving(
    store: PoolStore, progress: Callable[[float, Study], None] | None
) -> Callable[[Study], None]:
    """A progress callback that saves the pool, and then calls the user's callback."""

    def save(study: Study) -> None:
        store.save()
        if progress is not None:
            progress(study.budget_ms, study)

    return save


def warn_of_table(table: LatencyTable, mode: str) -> None:
    """Log why predicted latencies may be wrong."""
    differences = table.different_device(fingerprint())
    if differences:
        logger.warning(
            "the latency table belongs to another device (%s): run fxelastic profile on this one",
            "; ".join(differences),
        )
    elif not table.trusted(mode):
        logger.warning(
            "the latency table may not predict %s subnets well: %s; measure longer",
            mode,
            table.weakness(mode),
        )


def metric_and_data(
    bundle: Bundle, data: Any, score: str | Score | None, held_out: float
) -> tuple[Metric, Dataset, Dataset]:
    """The metric, the samples to search with, and those held out.

    Raises:
        UsageError: The data or the score does not fit, or no samples are left.
    """
    given = read_data(bundle, data)
    measure = chosen_metric(bundle, score, labelled=given.labelled)
    if not given.labelled:
        logger.info("the data has no targets: %s with the original's own results", measure.name)
    size = batch_of(bundle, 1)
    samples, rest = (part.whole(size) for part in given.split(held_out, seed=0))
    if not len(samples):
        raise UsageError(
            "no samples are left to search with",
            expected=f"more samples, or a smaller held_out; batches have {size} at least",
            got=f"{len(given)} samples, {held_out} of them held out",
        )
    left_out = len(given) - len(samples) - len(rest)
    if left_out:
        logger.warning("%d samples are left out, since they fill no batch of %d", left_out, size)
    return measure, samples, rest


def _scored(
    arch: Arch,
    evaluator: Evaluator,
    outside: Evaluator,
    store: PoolStore,
    scores: tuple[float, float | None] | None,
) -> PoolEntry:
    """A subnet with its scores, which does not become a part of the pool.

    Args:
        arch: The subnet.
        evaluator: Evaluates on the data of the search.
        outside: Evaluates on the samples held out.
        store: Knows the subnet's costs.
        scores: Its scores, if they are known.
    """
    if scores is None:
        held_out = outside.scores([arch])[arch] if len(outside.data) else None
        is_new = arch not in evaluator.known
        scores = (evaluator.scores([arch])[arch], held_out)
        if is_new:
            del evaluator.known[arch]
    accuracy, held_out = scores
    found = store.unmeasured(arch)
    return replace(found, accuracy=accuracy, held_out_accuracy=held_out, n_samples=None)


def _decisive(options: SearchOptions, metric: Metric) -> SearchOptions:
    """The options that the answer of a search depends on; the others at their defaults."""
    changes: dict[str, Any] = {
        field.name: field.default
        for field in fields(SearchOptions)
        if field.name in ("path", "progress", "clock", "cache_bytes", "memory_bytes", "threads")
    }
    return replace(options, **changes, force=False, score=metric.name)


def _answer(study: Study, weighted: Weighted | None) -> Arch:
    """The subnet that a search returns for its limits."""
    found = answer(study) if weighted is None else weighted.best(study)
    return found or study.anchors[0]


def _strategy(given: str | Strategy) -> Strategy:
    found = strategy(given)() if isinstance(given, str) else given
    if not callable(getattr(found, "run", None)):
        raise UsageError(
            "strategy must be a name or an object with a method run",
            expected="for example 'evolutionary'",
            got=repr(given),
        )
    return found


def _check_feasible(study: Study) -> None:
    """Raise an error if no subnet within the limits is known.

    Raises:
        UsageError: The limits are too tight; the message names the cheapest subnets.
    """
    if study.anchors:
        return
    needs = []
    for name in study.limits:
        least = _least(study, name)
        original = study.resources.total(name, study.space.original)
        found = resource(name)
        share = f" ({least / original:.0%} of the original)" if original > 0 else ""
        needs.append(f"{found.label} {found.text(least)}{share}")
    together = " together" if len(needs) > 1 else ""
    raise UsageError(
        f"no subnet keeps {study.limits}{together}",
        expected="limits that leave room for a subnet; the least of each resource is "
        + ", ".join(needs),
        got=str(study.limits),
        fix="raise the limits",
    )


def _least(study: Study, name: str) -> float:
    """The lowest cost of a subnet in a resource."""
    found, space = study.resources[name], study.space
    if resource(name).rule != PEAK:
        return study.resources.total(name, space.min_cost_arch(found.costs))
    best = [0.0] * (space.n_blocks + 1)
    for position in range(space.n_blocks - 1, -1, -1):
        best[position] = min(
            max(found.costs[spec.id], best[spec.stop]) for spec in space.starting_at[position]
        )
    return found.overhead + best[0]
