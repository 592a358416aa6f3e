"""`edge.serve`: a runtime from a bundle, a latency table and a pool."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import psutil

from fxelastic.edge.arguments import refuse_paths
from fxelastic.edge.bundle import Bundle
from fxelastic.edge.pool import SubnetPool
from fxelastic.edge.searching.scores import Score
from fxelastic.edge.serving.assembled import AssembledLoader
from fxelastic.edge.serving.courtesy import Courtesy
from fxelastic.edge.serving.executable import Loader
from fxelastic.edge.serving.ladder import Ladder, Step
from fxelastic.edge.serving.local_search import LocalSearch, local_score
from fxelastic.edge.serving.paged import PagedLoader
from fxelastic.edge.serving.preparation import Preparation
from fxelastic.edge.serving.prepared_pages import PreparedPages
from fxelastic.edge.serving.probe import BranchTimer
from fxelastic.edge.serving.research import Researcher
from fxelastic.edge.serving.runtime import Runtime, ServingOptions
from fxelastic.edge.serving.scratch import on_disk
from fxelastic.edge.serving.signature import BundleSignature
from fxelastic.edge.serving.standby import Standby
from fxelastic.edge.serving.table_probe import TableProbe
from fxelastic.edge.serving.upkeep import Restated
from fxelastic.edge.sessions import SessionMaker
from fxelastic.errors import ServingError, UsageError
from fxelastic.spec.latency_table import LatencyTable

MODES = ("auto", "assembled", "paged")


def serve(
    bundle: Bundle,
    table: LatencyTable | None,
    pool: SubnetPool | Iterable[Step],
    *,
    budget_ms: float,
    mode: str = "auto",
    memory_bytes: int | None = None,
    threads: int = 0,
    data: Any = None,
    score: str | Score | None = None,
    held_out: float = 0.2,
    table_path: str | os.PathLike[str] | None = None,
    pool_path: str | os.PathLike[str] | None = None,
    researcher: Researcher | None = None,
    options: ServingOptions | None = None,
    force: bool = False,
) -> Runtime:
    """Serve the best subnet that keeps a latency budget, while the device changes (§5.3).

    Args:
        bundle: The bundle, from `edge.load`.
        table: The device's latencies, from `edge.profile`. The branches in use are measured
            from time to time; where some have become slower and others not, the table and the
            pool's latencies are corrected. Without a table this is not done.
        pool: Subnets with latency and accuracy: ``result.pool`` of `edge.search`, whose latencies
            are those of the table where there is one; or such steps of your own, as they are.
        budget_ms: What a request may take, in ms.
        mode: ``assembled`` runs each subnet as one model, which is quickest, and holds a few of
            them ready. ``paged`` runs branch after branch and holds only the branches of the
            subnet in use; a switch loads what differs. ``auto`` is assembled where there is
            memory for it.
        memory_bytes: Memory that weights may take. Without it: the subnets on standby in
            ``assembled`` mode, the subnet in use in ``paged`` mode; for the time of a switch,
            those and the next one.
        threads: Threads to compute with; 0 for one for each core.
        data: Samples, in any of the forms that `edge.search` takes, to search for quicker
            subnets in the background when none of the pool keeps the budget. Without targets,
            the original's own results are the targets.
        score: The score of the pool's accuracies, as `edge.search` takes it. By default the one
            that the pool names; a function has to be passed.
        held_out: The same for the share of the samples.
        table_path: Where the corrected table goes; None for nowhere.
        pool_path: Where a pool with what was found goes; None for nowhere.
        researcher: Searches in place of `edge.search` with ``data``.
        options: How to behave in detail; its ``memory_bytes`` is replaced by the argument.
        force: Search on ``data`` although the table is marked unusable: see
            `LatencyTable.problem`.

    Returns:
        The runtime: ``runtime(x)`` answers a request. Close it at the end.

    Raises:
        UsageError: The pool or the table is of another bundle, the pool is empty, an argument is
            out of range, the data would be scored otherwise than the pool, the table to search
            with is marked unusable, or the memory is too small for any subnet.
        ServingError: No subnet of the pool can be loaded.
    """
    refuse_paths(bundle=bundle, table=table, pool=pool)
    if mode not in MODES:
        raise UsageError("there is no such mode", expected=", ".join(MODES), got=repr(mode))
    if memory_bytes is not None and memory_bytes <= 0:
        raise UsageError("memory_bytes is too small", expected="above 0", got=str(memory_bytes))
    if isinstance(data, (str, os.PathLike)) and not os.path.isfile(data):
        # It is read when no subnet keeps the budget, which is a bad time to learn of it.
        raise UsageError(f"there is no file {os.fspath(data)}", expected="an .npz file of samples")
    if table is not None:
        table.check_bundle(bundle.digest, lambda: bundle.structure_digest)
    if isinstance(pool, SubnetPool):
        pool.check_bundle(bundle.digest)
    entries: tuple[Step, ...] = tuple(pool.entries if isinstance(pool, SubnetPool) else pool)
    for entry in entries:
        bundle.space.validate(entry.arch)
    if mode == "auto":
        mode = "assembled" if _room_for_assembled(bundle, entries, memory_bytes) else "paged"
    if table is not None and isinstance(pool, SubnetPool):
        # The table may have been corrected since, and the pool searched for another mode.
        entries = tuple(
            Restated(entry.arch, table.predict_ms(entry.arch, mode), entry.accuracy)
            for entry in entries
        )
    entries = _fitting(bundle, entries, memory_bytes)
    options = replace(options or ServingOptions(), memory_bytes=memory_bytes)
    if mode == "paged" and memory_bytes is None:
        options = replace(options, standby=Standby(limit=0))
    probe = None
    if table is not None:
        timer = BranchTimer(bundle, SessionMaker(threads).open_branch, table.batch_size)
        probe = TableProbe(table, timer, mode, table_path)
        if data is not None and researcher is None:
            table.check_usable(mode, force=force)
            score = local_score(bundle, data, pool, score)
            how = {"mode": mode, "score": score, "held_out": held_out, "force": force}
            known = probe
            researcher = LocalSearch(bundle, lambda: known.table, data, pool_path, how)
    elif data is not None and researcher is None:
        raise UsageError(
            "a search while serving needs a latency table",
            expected="the table of edge.profile",
            got="none",
        )
    courtesy = Courtesy()
    return Runtime(
        loader_of(bundle, mode, threads, courtesy, entries),
        BundleSignature(bundle),
        entries,
        budget_ms,
        options,
        researcher,
        probe,
        courtesy,
    )


def loader_of(
    bundle: Bundle,
    mode: str,
    threads: int,
    courtesy: Courtesy | None = None,
    entries: Iterable[Step] = (),
) -> Loader:
    """The loader of a mode.

    Args:
        bundle: The bundle.
        mode: ``assembled`` or ``paged``.
        threads: Threads to compute with; 0 for one for each core.
        courtesy: Lets requests go before what loads subnets; None not to.
        entries: The subnets that may be served.
    """
    sessions = SessionMaker(threads)
    courtesy = courtesy or Courtesy()
    if mode == "assembled":
        preparation = Preparation(bundle, courtesy=courtesy)
        return AssembledLoader(bundle, preparation, sessions.open_prepared, courtesy)
    loader = PagedLoader(bundle, sessions.open_branch, courtesy, sessions.open_prepared)
    # What is prepared must not take the memory that this mode is to save.
    scratch = on_disk()
    if scratch is not None:
        keep = len(bundle.manifest.segments)
        steps = Ladder.of(entries).steps
        loader.ahead = tuple(dict.fromkeys(branch for step in steps for branch in step.arch))
        # A folder that can't be had after all is no reason not to serve.
        with suppress(ServingError):
            loader.pages = PreparedPages(Preparation(bundle, keep, scratch, courtesy))
    return loader


def _weight_bytes(bundle: Bundle, entry: Step) -> int:
    return sum(bundle.segment(branch).weight_bytes for branch in entry.arch)


def _room_for_assembled(bundle: Bundle, entries: Iterable[Step], memory_bytes: int | None) -> bool:
    """Whether two subnets fit at once, which a switch takes when they share nothing."""
    sizes = sorted(_weight_bytes(bundle, step) for step in Ladder.of(entries).steps)
    room = psutil.virtual_memory().available // 2 if memory_bytes is None else memory_bytes
    return sum(sizes[-2:]) <= room


def _fitting(
    bundle: Bundle, entries: tuple[Step, ...], memory_bytes: int | None
) -> tuple[Step, ...]:
    """The subnets that the memory can hold."""
    if memory_bytes is None or not entries:
        return entries
    fitting = tuple(e for e in entries if _weight_bytes(bundle, e) <= memory_bytes)
    if not fitting:
        least = min(_weight_bytes(bundle, entry) for entry in entries)
        raise UsageError(
            "memory_bytes is too small for every subnet of the pool",
            expected=f"at least {least:,} bytes",
            got=f"{memory_bytes:,} bytes",
        )
    return fitting
