"""`edge.search`: the best subnets under one or several latency budgets."""

from __future__ import annotations

import logging
import math
import os
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fxelastic.edge.arguments import refuse_paths
from fxelastic.edge.bundle import Bundle
from fxelastic.edge.execution import Executor
from fxelastic.edge.fingerprint import fingerprint
from fxelastic.edge.memory import GrowthLimit
from fxelastic.edge.pool import PoolEntry, SubnetPool
from fxelastic.edge.searching.choice import chosen_metric
from fxelastic.edge.searching.data import Dataset, batch_of, read_data
from fxelastic.edge.searching.evaluation import Counts, Evaluator
from fxelastic.edge.searching.pool_store import PoolStore
from fxelastic.edge.searching.registry import Strategy, strategy
from fxelastic.edge.searching.schedule import Schedule, answer
from fxelastic.edge.searching.scores import Metric, Score
from fxelastic.edge.searching.study import SearchAbortedError, Step, Study
from fxelastic.errors import UsageError
from fxelastic.spec import Arch
from fxelastic.spec.latency_table import LatencyTable

logger = logging.getLogger(__name__)

#: A latency in ms, or a share of the original's like "60%".
Budget = float | str


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        budgets_ms: The budgets, in ms.
        bests: The best subnet of each; of several equal ones the quickest.
        pool: Everything that was evaluated.
        histories: For each budget a step for each improvement.
        counts: What the evaluations took.
        interrupted: Whether it was ended by Ctrl-C: the subnets are the best so far.
        marks: For each budget what its best subnet lacks: empty where it was scored on all samples;
            otherwise ``"not evaluated"`` or ``"scored on 7 of 205 samples"``, as there was no time.

    A subnet that was not evaluated is expected to be the best under its budget: it has the least
    total error of branches, as far as it is known. Its ``n_samples`` is 0, its ``accuracy`` NaN.

    The pool names the score, and whether it compares with targets of the data or with the
    original's own results.
    """

    budgets_ms: tuple[float, ...]
    bests: tuple[PoolEntry, ...]
    pool: SubnetPool
    histories: tuple[tuple[Step, ...], ...]
    counts: Counts
    interrupted: bool = False
    marks: tuple[str, ...] = ()

    @property
    def best(self) -> PoolEntry:
        """The best subnet of the first budget."""
        return self.bests[0]

    @property
    def history(self) -> tuple[Step, ...]:
        """The first budget's history."""
        return self.histories[0]


def search(
    bundle: Bundle,
    table: LatencyTable,
    data: Any,
    *,
    budget: Budget | Sequence[Budget] | None = None,
    budget_ms: float | Sequence[float] | None = None,
    strategy: str | Strategy = "evolutionary",
    mode: str = "assembled",
    score: str | Score | None = None,
    max_subnets: int = 400,
    time_budget_s: float | None = None,
    batch_size: int = 50,
    held_out: float = 0.2,
    cache_bytes: int | None = 2**28,
    memory_bytes: int | None = None,
    weight_bytes: int | None = None,
    confidence: float = 1.0,
    threads: int = 0,
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
    progress: Callable[[float, Study], None] | None = None,
    force: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> SearchResult:
    """Find the most accurate subnets that keep latency budgets (AdaptiveNet §5).

    Latencies come from the table, accuracies from the data, measured on this device. What subnets
    have in common is computed once, and none is evaluated to its end twice, for several budgets
    neither. Ctrl-C ends the search with the best so far.

    Every budget's additive best is evaluated before anything else: the subnet that costs the least
    quality under the budget, if what branches cost adds up. So a search that is short of time has
    an answer near each budget. See `SearchResult.marks` for what it lacks.

    Args:
        bundle: The bundle.
        table: Its latencies, from `edge.profile`.
        data: Samples, with targets or without: see `read_data`. Without, the original's own
            results are the targets, computed once on this device.
        budget: Latency budgets: numbers in ms, or shares of the original's latency like ``"60%"``.
        budget_ms: The same in ms.
        strategy: A name of `strategy_names`, or a strategy.
        mode: How subnets will be run, ``assembled`` or ``paged``.
        score: ``top1``, ``agreement``, ``cosine``, ``spearman``, ``miou``, ``negative_loss``, or a
            function of the flat results and the targets of a batch that gives a sum and a count.
            ``cosine:NAME`` looks at the result of that name, or of that number from 0. By default
            ``top1`` with targets; without, ``agreement`` for class scores, the share of samples
            whose top class is the original's, and ``cosine`` for other results.
        max_subnets: Subnets to try for each budget.
        time_budget_s: End earlier after this time, for all budgets. Everything counts, from reading
            the data to the scores on samples held out; what one subnet takes on one batch may
            exceed it. Where the additive bests can't be evaluated on all samples in a part of this
            time, all scores are on the first samples.
        batch_size: Samples of a batch. A model of a fixed batch size has that; what fills no batch
            is left out then.
        held_out: Share of the samples that no choice is made by; the best subnets' scores on it
            tell what the search's own scores, being the best of many, overstate.
        cache_bytes: What kept features may take; without a bound where None.
        memory_bytes: What sessions may take, and what is learned in between; without a bound where
            None. Where both are bounded, the process does not grow by more than both together, and
            what one batch takes.
        weight_bytes: The most that a subnet's weights may take.
        confidence: A candidate ends early when it can't be the best any more: for certain
            with 1, so that no winner is lost; otherwise with this probability, of 0.5 at least, by
            the Hoeffding-Serfling inequality. Only for scores with limits: ``top1``,
            ``agreement``, ``cosine`` and ``spearman``.
        threads: Threads to compute with; 0 for one for each core.
        seed: Of the search; the same seed gives the same subnets.
        path: A file for the pool, written as the search goes on. Where it is there, of the same
            bundle, data and score, its subnets are not evaluated again.
        progress: Told the budget in ms and the study after each group.
        force: Search although the table is marked unusable: see `LatencyTable.problem`.
        clock: Tells the time, in s.

    Returns:
        The best subnet of each budget, the pool, the history.

    Raises:
        UsageError: An argument is out of range, the data does not fit, the table is of another
            bundle or marked unusable, or no subnet keeps a budget; the message names the nearest.
        BundleError: A branch is missing or damaged, can't be run, or gives NaN.
    """
    begin_s = clock()
    limit = None
    if memory_bytes is not None and cache_bytes is not None:
        limit = GrowthLimit(memory_bytes + cache_bytes)
    refuse_paths(bundle=bundle, table=table)
    if batch_size < 1:
        raise UsageError("batch_size is none", expected="at least 1", got=repr(batch_size))
    if max_subnets < 1:
        raise UsageError("max_subnets is none", expected="at least 1", got=repr(max_subnets))
    if time_budget_s is not None and not time_budget_s > 0:
        raise UsageError(
            "time_budget_s is out of range",
            expected="seconds above 0, or None",
            got=repr(time_budget_s),
        )
    table.check_bundle(bundle.digest, lambda: bundle.structure_digest)
    table.check_usable(mode, force=force)
    _warn(table, mode)
    measure, samples, rest = _metric_and_data(bundle, data, score, held_out)
    costs, overhead_ms = table.costs(mode), table.overhead_ms(mode)
    budgets_ms = _budgets(table, bundle, mode, budget, budget_ms)
    allowed, anchors = _weight_limit(bundle, weight_bytes)
    runner = _strategy(strategy)
    interrupted = aborted = False
    digest = samples.digest(measure.name)
    end_s = math.inf if time_budget_s is None else begin_s + time_budget_s
    with Executor(bundle, threads, memory_bytes, shared_arena=True, limit=limit) as executor:
        evaluator = Evaluator(
            executor,
            samples,
            measure,
            batch_size=batch_size,
            cache_bytes=cache_bytes,
            costs=costs,
            confidence=confidence,
            first=None if time_budget_s is None else 1,
            clock=clock,
        )
        store = PoolStore(bundle, table, mode, digest, path, evaluator, samples.labelled)
        store.resume()
        studies: list[Study] = []
        for i, limit_ms in enumerate(budgets_ms):
            rng = random.Random(f"search {seed} {i}")
            study = Study(
                bundle.space, costs, overhead_ms, limit_ms, evaluator, max_subnets, rng, allowed
            )
            study.anchors, study.clock = anchors, clock
            study.progress = _told(store, progress)
            _check_feasible(study)
            studies.append(study)
        schedule = Schedule(studies, end_s, len(rest))
        try:
            schedule.run(runner)
        except SearchAbortedError:
            aborted = True
        except KeyboardInterrupt:
            interrupted = True
        if interrupted or aborted:
            # Of the budgets that it had not come to yet nothing is said.
            studies = [study for study in studies if study.incumbent is not None] or studies
        bests = [_answer(study) for study in studies]
        wanted = list(dict.fromkeys(bests))
        if len(rest) and not aborted:
            if not interrupted:
                wanted = list(dict.fromkeys([*wanted, *(e.arch for e in store.pool().pareto)]))
            outside = Evaluator(executor, rest, measure, batch_size=batch_size, clock=clock)
            try:
                store.score_held_out(wanted, outside, end_s)
            except KeyboardInterrupt:
                interrupted = True
        pool = store.pool()
        store.save()
    entries = {entry.arch: entry for entry in pool.entries}
    found = tuple(entries.get(best) or store.unmeasured(best) for best in bests)
    n_samples = len(samples)
    result = SearchResult(
        tuple(study.budget_ms for study in studies),
        found,
        pool,
        tuple(tuple(study.history) for study in studies),
        evaluator.counts,
        interrupted,
        tuple(_mark(entry, n_samples) for entry in found),
    )
    if not aborted:
        _warn_of_marks(result, None if interrupted else schedule.needed_s)
    return result


def _told(
    store: PoolStore, progress: Callable[[float, Study], None] | None
) -> Callable[[Study], None]:
    def told(study: Study) -> None:
        store.save()
        if progress is not None:
            progress(study.budget_ms, study)

    return told


def _warn(table: LatencyTable, mode: str) -> None:
    """Say what makes predicted latencies doubtful."""
    differences = table.different_device(fingerprint())
    if differences:
        logger.warning(
            "the latency table is of another device (%s): measure this one with fxelastic profile",
            "; ".join(differences),
        )
    elif not table.trusted(mode):
        logger.warning(
            "the latency table is not known to predict %s subnets well: %s; measure longer",
            mode,
            table.problem(mode) or "no whole subnets were held out",
        )


def _metric_and_data(
    bundle: Bundle, data: Any, score: str | Score | None, held_out: float
) -> tuple[Metric, Dataset, Dataset]:
    if not 0 <= held_out < 1:
        raise UsageError("held_out is no share", expected="[0, 1)", got=repr(held_out))
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
        logger.warning("%d samples fill no batch of %d, and are left out", left_out, size)
    return measure, samples, rest


def _budgets(
    table: LatencyTable,
    bundle: Bundle,
    mode: str,
    budget: Budget | Sequence[Budget] | None,
    budget_ms: float | Sequence[float] | None,
) -> tuple[float, ...]:
    given = [value for value in (budget, budget_ms) if value is not None]
    if len(given) != 1:
        raise UsageError(
            "a search needs a budget",
            expected='one of budget="60%" and budget_ms=20, or a list of such',
            got="both" if given else "none",
        )
    single = isinstance(given[0], (str, int, float))
    values: Iterable[Any] = [given[0]] if single else given[0]  # type: ignore[assignment]
    original_ms = table.predict_ms(bundle.space.original, mode)
    budgets = tuple(_in_ms(value, original_ms) for value in values)
    if not budgets:
        raise UsageError("a search needs a budget", expected="at least one", got="an empty list")
    return budgets


def _in_ms(value: Any, original_ms: float) -> float:
    number = math.nan
    try:
        if isinstance(value, str):
            text = value.strip()
            number = original_ms * float(text[:-1]) / 100 if text.endswith("%") else float(text)
        elif not isinstance(value, bool):
            number = float(value)
    except (TypeError, ValueError):
        pass
    if not 0 < number < math.inf:
        raise UsageError(
            "a budget is none",
            expected='a latency above 0 ms, or a share of the original\'s like "60%"',
            got=repr(value),
        )
    return number


def _weight_limit(
    bundle: Bundle, weight_bytes: int | None
) -> tuple[Callable[[Arch], bool], tuple[Arch, ...]]:
    """Whether a subnet's weights are few enough; and the subnet with the fewest."""
    if weight_bytes is None:
        return lambda _: True, ()
    own = {spec.id: bundle.segment(spec.id).weight_bytes for spec in bundle.space.branches}
    lightest = bundle.space.min_cost_arch({branch: float(n) for branch, n in own.items()})
    return lambda arch: sum(own[branch] for branch in arch) <= weight_bytes, (lightest,)


def _answer(study: Study) -> Arch:
    """The subnet that a search gives for its budget.

    Raises:
        UsageError: None is known that keeps all limits.
    """
    found = answer(study)
    if found is not None:
        return found
    raise UsageError(
        f"no subnet was found that keeps {study.budget_ms:.4g} ms and the limit of weights",
        expected="limits that some subnet keeps together",
        got="none of those tried, the quickest and the one with the least weights among them",
        fix="raise the budget, or weight_bytes",
    )


def _mark(best: PoolEntry, n_samples: int) -> str:
    """What the best subnet of a budget lacks."""
    if best.n_samples is None:
        return ""
    if best.n_samples == 0:
        return "not evaluated"
    return f"scored on {best.n_samples} of {n_samples} samples"


def _warn_of_marks(result: SearchResult, needed_s: float | None) -> None:
    marked = [
        f"{budget_ms:.4g} ms: {mark}"
        for budget_ms, mark in zip(result.budgets_ms, result.marks, strict=True)
        if mark
    ]
    if not marked:
        return
    if needed_s is None or math.isinf(needed_s):
        logger.warning("the search was interrupted: the best subnet of %s", "; ".join(marked))
        return
    digit = 10.0 ** (math.floor(math.log10(needed_s)) - 1)
    logger.warning(
        "the search was short of time: the best subnet of %s; raise time_budget_s (--time-budget) "
        "to about %g s",
        "; ".join(marked),
        math.ceil(needed_s / digit) * digit,
    )


def _strategy(given: str | Strategy) -> Strategy:
    found = strategy(given)() if isinstance(given, str) else given
    if not callable(getattr(found, "run", None)):
        raise UsageError(
            "the strategy is none",
            expected="the name of one, or an object with its method run",
            got=repr(given),
        )
    return found


def _check_feasible(study: Study) -> None:
    """Refuse a budget that no subnet keeps."""
    quickest = study.space.min_cost_arch(study.costs)
    least_ms = study.overhead_ms + study.cost(quickest)
    if least_ms > study.budget_ms:
        original_ms = study.overhead_ms + study.cost(study.space.original)
        raise UsageError(
            f"no subnet keeps a budget of {study.budget_ms:.4g} ms",
            expected=f"at least {least_ms:.4g} ms ({100 * least_ms / original_ms:.0f}% of the "
            "original), which the quickest subnet takes",
            got=f"{study.budget_ms:.4g} ms",
        )
