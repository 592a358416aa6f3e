"""`edge.serve`: a runtime from a bundle, a latency table and a pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from fxelastic.edge.arguments import check_loaded
from fxelastic.edge.background_preparation import BackgroundPreparation
from fxelastic.edge.bundle import Bundle
from fxelastic.edge.candidates import (
    Candidate,
    PoolLike,
    absolute_limits,
    candidates_of,
    choose_mode,
    sizes_of_pool,
    table_at,
)
from fxelastic.edge.monitoring.table_probe import BranchTimer, TableProbe
from fxelastic.edge.pool import SubnetPool
from fxelastic.edge.prepared import PreparedFiles
from fxelastic.edge.preparing import needed
from fxelastic.edge.serving.background_search import (
    LocalSearch,
    Searcher,
    check_data,
    local_score,
)
from fxelastic.edge.serving.loaders import AssembledLoader, Loader, PagedLoader
from fxelastic.edge.serving.options import Serving
from fxelastic.edge.serving.preload import Preload
from fxelastic.edge.serving.runtime import Runtime
from fxelastic.edge.sessions import SessionMaker
from fxelastic.edge.signature import BundleSignature
from fxelastic.edge.size_estimates import SizeEstimates
from fxelastic.errors import UsageError
from fxelastic.spec import Arch
from fxelastic.spec.cascade import Cascade, Servable
from fxelastic.spec.latency_table import LatencyTable
from fxelastic.spec.limits import Bound, Limits
from fxelastic.spec.pareto import ParetoTable
from fxelastic.spec.resources import LATENCY


def serve(
    bundle: Bundle,
    table: LatencyTable | None,
    pool: PoolLike,
    *,
    budget_ms: float | None = None,
    options: Serving | None = None,
    **changes: Any,
) -> Runtime:
    """Serve the best subnet that keeps a latency budget, while the device changes (§5.3).

    The cascades of a pool are served like subnets. The budget is for their mean latency over
    samples, so requests whose samples go on to the end take longer; with `latency_percentile`, it
    is for that percentile over samples.

    A request to a decoder holds the keys and values of earlier tokens, so only subnets that have
    them in the same form (`SearchSpace.same_cache`) are served: that of the best subnet at the
    start.

    Args:
        bundle: The bundle, from `edge.load`.
        table: The device's latencies, from `edge.profile`. The branches in use are measured
            from time to time; where some have become slower and others not, the table and the
            pool's latencies are corrected. Without a table this is not done.
        pool: Subnets with latency and accuracy: ``result.pool`` of `edge.search`, whose latencies
            are replaced by those of the table if there is one; or objects of your own with
            the arch, the latency and the accuracy of a `PoolEntry`, whose latencies are kept.
        budget_ms: What a request may take, in ms. It may be among ``limits`` instead. If other
            sizes than the batch vary, it is for requests of ``sizes``, see `Serving`.
        options: The other options; see `Serving`.
        **changes: Single options, such as ``mode="paged"``, which replace those of ``options``.

    Returns:
        The runtime: ``runtime(x)`` answers a request. Close it at the end.

    Raises:
        UsageError: The pool or the table belongs to another bundle, the pool is empty, an option is
            unknown or out of range, no subnet keeps the limits or fits into the memory, or a search
            on ``data`` is not possible: without a table, with one that is marked unusable, or with
            another score than the pool's.
        ServingError: No subnet of the pool can be loaded.

    Example:
        >>> with edge.serve(bundle, table, pool, budget_ms=20, threads=2) as runtime:
        ...     y = runtime(x)
    """
    check_loaded(bundle=bundle, pool=pool, **({} if table is None else {"table": table}))
    options = Serving.of(options, changes)
    budget_ms = _budget_ms(budget_ms, options.limits)
    pool = pool if isinstance(pool, SubnetPool) else tuple(pool)
    mode = choose_mode(bundle, pool, options.mode, options.memory_bytes)
    sizes = sizes_of_pool(bundle, pool, table, options.sizes)
    fixed = None if table is None else table_at(table, sizes)
    percentile = options.latency_percentile
    candidates = candidates_of(bundle, pool, fixed, mode, options.memory_bytes, percentile)

    def absolute(bounds: Mapping[str, Bound] | None) -> Limits | None:
        return absolute_limits(bounds, bundle, fixed, candidates, mode)

    limits = absolute(options.limits)
    if mode == "paged" and options.memory_bytes is None and options.preload == Preload():
        options = replace(options, preload=Preload(limit=0))
    probe = None
    if table is not None:
        open_branch = _session_maker(bundle, options).open_branch
        own = table.sizes[0] if len(table.sizes) == 1 else None
        timer = BranchTimer(bundle, open_branch, table.batch_size, sizes=own)
        probe = TableProbe(table, timer, mode, options.table_path, sizes)

    def ranked(entries: PoolLike) -> Sequence[Candidate]:
        found = entries if isinstance(entries, SubnetPool) else tuple(entries)
        now = fixed if probe is None else table_at(probe.table, sizes)
        return candidates_of(bundle, found, now, mode, options.memory_bytes, percentile)

    searcher = _searcher(bundle, probe, pool, mode, options)
    estimates = None
    if sizes:
        names = [symbol.name for symbol in bundle.manifest.model.sizes]

        def current() -> LatencyTable | None:
            return None if probe is None else probe.table

        estimates = SizeEstimates(current, mode, sizes, names)
    first = _first(candidates, budget_ms, limits) if bundle.manifest.caches else None
    serves: Callable[[Servable], bool] = lambda _: True  # noqa: E731
    if first is not None:
        serves = partial(_same_cache, bundle, first)
    candidates = tuple(c for c in candidates if serves(c.arch))
    return Runtime(
        loader_of(bundle, mode, candidates, options),
        BundleSignature(bundle, first),
        candidates,
        budget_ms,
        options,
        searcher,
        probe,
        limits,
        estimates,
        serves,
        absolute,
        ranked,
    )


def _first(candidates: Sequence[Candidate], budget_ms: Any, limits: Limits | None) -> Arch | None:
    """The subnet to begin with, whose caches all requests hold."""
    if not isinstance(budget_ms, (int, float)):
        return None  # which the runtime refuses
    kept = [c for c in candidates if limits is None or limits.keeps(c.costs)]
    table = ParetoTable(kept)
    best = table.best(budget_ms) or table.quickest
    return None if best is None or isinstance(best.arch, Cascade) else best.arch


def _same_cache(bundle: Bundle, first: Arch, arch: Servable) -> bool:
    return isinstance(arch, Arch) and bundle.space.same_cache(first, arch)


def loader_of(
    bundle: Bundle,
    mode: str,
    candidates: tuple[Candidate, ...] = (),
    options: Serving | None = None,
) -> Loader:
    """The loader of a mode.

    Args:
        bundle: The bundle.
        mode: ``assembled`` or ``paged``.
        candidates: The subnets that may be served.
        options: ``threads`` and ``prepared`` are used.
    """
    options = options or Serving()
    sessions = _session_maker(bundle, options)
    preparation = BackgroundPreparation(PreparedFiles.of(bundle, options.prepared))
    if mode == "assembled":
        return AssembledLoader(bundle, preparation, sessions.open_prepared)
    if preparation.keeps_files:
        # Temporary files may be held in memory, which this mode is to save.
        files = preparation.files
        wanted = needed(bundle, ParetoTable(candidates), mode)
        preparation.want(item for item in wanted if files.find(item) is None)
    return PagedLoader(bundle, preparation, sessions.open_prepared, sessions.open_branch)


def _session_maker(bundle: Bundle, options: Serving) -> SessionMaker:
    return SessionMaker(
        options.threads,
        sizes_vary=bool(bundle.manifest.model.sizes),
        run_s=options.run_timeout_s,
    )


def _budget_ms(budget_ms: float | None, limits: Mapping[str, Bound] | None) -> Any:
    """The latency budget, from either place."""
    latency = None if not limits else Limits(limits).get(LATENCY)
    if (budget_ms is None) == (latency is None) or isinstance(latency, str):
        raise UsageError(
            "serving needs one latency budget",
            expected=f"budget_ms=20, or limits={{{LATENCY!r}: 20}}",
            got=f"budget_ms={budget_ms!r}, limits={limits!r}",
        )
    return latency if budget_ms is None else budget_ms


def _searcher(
    bundle: Bundle, probe: TableProbe | None, pool: PoolLike, mode: str, options: Serving
) -> Searcher | None:
    if options.searcher is not None or options.data is None:
        return options.searcher
    if probe is None:
        raise UsageError(
            "a search while serving needs a latency table",
            expected="the table of edge.profile",
            got="table=None",
        )
    probe.table.check_usable(mode, force=options.force)
    score = local_score(bundle, options.data, pool, options.score)
    check_data(bundle, options.data, score, options.held_out, options.pool_path)
    how = {"mode": mode, "score": score, "held_out": options.held_out, "force": options.force}
    return LocalSearch(bundle, probe.fixed_table, options.data, options.pool_path, how)
