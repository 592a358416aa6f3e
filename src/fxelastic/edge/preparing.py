"""Prepare what serving a pool needs ahead of time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fxelastic.edge.arguments import check_loaded
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
from fxelastic.edge.cascades.joined import CascadeForm
from fxelastic.edge.pool import SubnetPool
from fxelastic.edge.prepared import Item, PreparedFiles
from fxelastic.errors import UsageError
from fxelastic.spec.cascade import Cascade, Servable
from fxelastic.spec.costs_by_size import Sizes
from fxelastic.spec.latency_table import LatencyTable
from fxelastic.spec.limits import Bound
from fxelastic.spec.pareto import ParetoTable


@dataclass(frozen=True)
class Preparation:
    """The result of `prepare`.

    Attributes:
        folder: The folder of the files.
        mode: ``assembled`` or ``paged``.
        n_subnets: The number of subnets in the Pareto table.
        n_made: The number of subnets, or branches in paged mode, that this call prepared.
        n_ready: The number of subnets or branches that had been prepared before.
        size_bytes: The total size of all files in the folder, in bytes.
        seconds: The duration of the call.
    """

    folder: Path
    mode: str
    n_subnets: int
    n_made: int
    n_ready: int
    size_bytes: int
    seconds: float


def prepare(
    bundle: Bundle,
    pool: PoolLike,
    table: LatencyTable | None = None,
    *,
    mode: str = "auto",
    prepared: str | os.PathLike[str] | None = None,
    limits: Mapping[str, Bound] | None = None,
    memory_bytes: int | None = None,
    sizes: Sizes | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Preparation:
    """Prepare the files for serving a pool: the subnets of its Pareto table, or their branches.

    In ``assembled`` mode each subnet becomes one optimised model, in ``paged`` mode each branch
    does. Existing files are kept, so an interrupted run can be resumed. Several processes may
    prepare the same pool at once.

    Args:
        bundle: The bundle, from `edge.load`.
        pool: The subnets, as for `edge.serve`.
        table: The device's latency table. If given, its latencies replace those of the pool, as
            in serving.
        mode: As for `edge.serve`.
        prepared: The folder to write to; by default ``BUNDLE.prepared`` next to the bundle.
        limits: As for `edge.serve`: subnets that exceed them are not served, so not prepared.
        memory_bytes: As for `edge.serve`: larger subnets are not served, so not prepared.
        sizes: As for `edge.serve`: the sizes that the budget will be for.
        progress: Called before each item and at the end with the number of items done, the total
            number, and the name of the next item.

    Returns:
        The numbers of prepared items, and the folder.

    Raises:
        UsageError: The pool or the table belongs to another bundle, an argument is out of range, or
            no subnet keeps the limits.
        BundleError: A file of the bundle is damaged, or onnxruntime can't optimise it.
        ServingError: The files can't be written.
    """
    check_loaded(bundle=bundle, pool=pool, **({} if table is None else {"table": table}))
    pool = pool if isinstance(pool, SubnetPool) else tuple(pool)
    begin_s = time.monotonic()
    mode = choose_mode(bundle, pool, mode, memory_bytes)
    own = sizes_of_pool(bundle, pool, table, sizes)
    if table is not None:
        table = table_at(table, own)
    candidates = candidates_of(bundle, pool, table, mode, memory_bytes)
    bounds = absolute_limits(limits, bundle, table, candidates, mode)
    best = ParetoTable(c for c in candidates if bounds is None or bounds.keeps(c.costs))
    if not len(best) and bounds is not None:
        raise UsageError(
            "no subnet of the pool keeps the limits",
            expected="a subnet to prepare",
            got=str(bounds),
            fix="raise the limits, or search within them",
        )
    files = PreparedFiles.of(bundle, prepared)
    items = needed(bundle, best, mode)
    n_made = 0
    for done, item in enumerate(items):
        if progress is not None:
            progress(done, len(items), item.name)
        if files.find(item) is None:
            files.make(item)
            n_made += 1
    if progress is not None:
        progress(len(items), len(items), "")
    return Preparation(
        folder=files.folder,
        mode=mode,
        n_subnets=len(best),
        n_made=n_made,
        n_ready=len(items) - n_made,
        size_bytes=files.size_bytes(),
        seconds=time.monotonic() - begin_s,
    )


def needed(bundle: Bundle, table: ParetoTable[Candidate], mode: str) -> tuple[Item, ...]:
    """The items that a mode needs to serve a Pareto table, those of the quickest subnet first."""
    found = (item for candidate in table for item in items_of(bundle, candidate.arch, mode))
    return tuple(dict.fromkeys(found))


def items_of(bundle: Bundle, served: Servable, mode: str) -> tuple[Item, ...]:
    """The items that a mode needs to run a subnet or a cascade."""
    if mode != "assembled":
        return tuple(map(Item.branch, served))
    if not isinstance(served, Cascade):
        return (Item.subnet(served),)
    form = CascadeForm.of(served)
    if form.is_joinable(bundle):
        return (Item.cascade(form),)
    return tuple(map(Item.segment, form.segments))
