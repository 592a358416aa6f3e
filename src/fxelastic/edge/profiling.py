"""`edge.profile`: measure a bundle's branches on this device."""

from __future__ import annotations

import hashlib
import logging
import os
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import onnxruntime as ort

from fxelastic.edge.arguments import refuse_paths
from fxelastic.edge.branch_timing import BranchTiming
from fxelastic.edge.bundle import Bundle
from fxelastic.edge.bundle_costs import bundle_costs
from fxelastic.edge.executor import Array, Executor, sizes_of_inputs
from fxelastic.edge.fingerprint import fingerprint
from fxelastic.edge.int8_branches import in_runs, unsuited, unused_everywhere
from fxelastic.edge.latency_model import Measured, fit_mode
from fxelastic.edge.measured_sizes import SizePlan, SizesToMeasure
from fxelastic.edge.memory import GrowthLimit, resident_bytes
from fxelastic.edge.sample_file import SampleFile
from fxelastic.edge.searching.data import batch_of
from fxelastic.edge.sessions import SessionMaker
from fxelastic.edge.size_fit import SizeFit
from fxelastic.edge.stopwatch import Stopwatch, processor_time_is_exact
from fxelastic.edge.subnet_timing import SubnetTimer
from fxelastic.edge.synthetic_inputs import sound_inputs
from fxelastic.errors import BundleError, UsageError
from fxelastic.spec import Arch
from fxelastic.spec.costs import BranchCosts, Costs
from fxelastic.spec.latency_table import (
    CLOCKS,
    MODES,
    SHORT_MS,
    BranchLatency,
    LatencyTable,
    original_cost,
)
from fxelastic.spec.resources import LATENCY

# Memory for choosing subnets by cost and for fitting the latency model.
_COMPUTING_BYTES = 2**24
# The planned share of the time budget, and the share after which timing of branches ends; and for
# each mode, the share of the then remaining time after which timing of whole subnets ends.
_PLANNED, _BRANCHES = 0.95, 0.4
_SUBNETS = {"assembled": 0.7, "paged": 1.0}
# If the median standard error of whole subnets exceeds this share, their times are too uncertain.
_MOST_NOISE = 0.06

T = TypeVar("T")

logger = logging.getLogger(__name__)


def profile(
    bundle: Bundle,
    batch_size: int | None = None,
    threads: int = 0,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    *,
    inputs: Mapping[str, Array] | None = None,
    sizes: SizesToMeasure | None = None,
    n_samples: int = 20,
    n_subnets: int = 24,
    n_held_out: int = 12,
    time_budget_s: float | None = None,
    memory_bytes: int | None = None,
    path: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Callable[[str, float], None] | None = None,
    watch: Stopwatch | None = None,
) -> LatencyTable:
    """Measure the latency of each branch on this device, and fit a model of whole subnets.

    Branches are timed inside random subnets, as often as necessary. A few whole subnets then
    correct the sum of the branches, and other subnets measure the remaining error. If that error
    is large, or the samples vary too much, the table is marked unusable, and searches raise an
    error.

    If other processes keep the cores busy, one thread is used regardless of ``threads``, and its
    processor time is measured: this gives correct latencies relative to the original, but not the
    speed of several idle cores. The table records ``threads`` and ``clock``.

    8-bit branches are measured in each format that suits the processor. Of these the table keeps
    those that are faster than their float branch, and of several formats the fastest, besides
    slower ones with less than a quarter of its error. ``refused`` of the table has the others, with
    the reason, and those that onnxruntime can't load.

    If other sizes than the batch may vary, everything is measured at several sizes, and the
    table's costs are functions of the sizes; see `LatencyTable.at`. The error is then measured at
    sizes in between.

    Call it in a process that has not imported torch, as ``fxelastic profile`` does.

    Args:
        bundle: The bundle.
        batch_size: The number of samples in a run; by default 1, or the model's fixed batch size.
        threads: The number of threads; 0 means one for each core.
        providers: The execution providers of onnxruntime, in order of preference.
        inputs: The inputs to run on: ``batch_size`` samples for each of the bundle's inputs, by
            name. None for synthetic inputs, which may be unsuitable if times depend on values.
            The table is then for the sizes of these inputs alone.
        sizes: The sizes to measure at: some values of each name, such as
            ``{"seq": (16, 64, 256)}``, or combinations, such as
            ``[{"H": 32, "W": 64}, {"H": 64, "W": 32}]``. See `SizePlan.of` for the
            values of several names, and for None. The example's sizes are measured, too. With a
            single combination, the table is for these sizes alone.
        n_samples: The minimum number of runs of each branch.
        n_subnets: The number of subnets that correct the sum, for each mode; may be 0.
        n_held_out: The number of subnets that the error is measured on, for each mode.
        time_budget_s: The time to spend, exceeded by at most a tenth, in seconds. If it is short,
            branches run less often, then fewer whole subnets are measured; if none can be
            measured, the table is marked unusable. Each branch is always loaded and run five
            times, whatever the budget.
        memory_bytes: The maximum growth of the process, besides one batch, in bytes. If two
            subnets do not fit into it, whole subnets are not measured.
        path: A file for the measurements so far. If it exists and belongs to the same bundle and
            settings, the measurement resumes from it; it is removed at the end.
        seed: Seed of the choice of subnets and their order.
        progress: Called with the name of the step and the share of it that is done.
        watch: Replaces the clocks in tests.

    Returns:
        The table.

    Raises:
        UsageError: An argument is out of range, inputs do not fit the model, both inputs and sizes
            are given, or no inputs were given and a size can't be computed from the batch size.
        BundleError: A branch is missing or damaged, can't be run, or returns values that are not
            finite.
    """
    refuse_paths(bundle=bundle)
    batch_size = _batch_size(bundle, batch_size)
    _check(batch_size, n_samples, n_subnets, n_held_out, time_budget_s)
    watch = watch or Stopwatch()
    begin_s = watch.wall_s()
    budget_s = float("inf") if time_budget_s is None else _PLANNED * time_budget_s
    own = None if inputs is None else [_sizes_of(bundle, inputs, batch_size, sizes)]
    plan = SizePlan.of(bundle.manifest.model, sizes if own is None else own)
    settings: dict[str, Any] = {
        "bundle": bundle.digest,
        "device": fingerprint(),
        "batch_size": batch_size,
        "providers": list(providers),
        "inputs": "" if inputs is None else _digest(inputs),
    }
    if bundle.manifest.model.sizes:
        settings["sizes"] = list(plan.points)
        logger.info("measuring at %s", plan)
    # This reads all files, so it comes before the measurement.
    structure = bundle.structure_digest
    limit = None if memory_bytes is None else GrowthLimit(memory_bytes)
    with ExitStack() as stack:

        def executor_of(threads: int) -> Executor:
            how = (bundle, threads, memory_bytes, providers)
            return stack.enter_context(Executor(*how, shared_arena=False, limit=limit))

        refused = dict(unsuited(bundle, settings["device"]))
        executor, sound = executor_of(threads), True
        refused |= _unloadable(executor, set(refused))
        bundle = bundle.without(refused)
        executor.bundle = bundle
        each = [] if inputs is None else [inputs]
        if inputs is None:
            drawn = [sound_inputs(executor, batch_size, seed, own) for own in plan.all]
            each, sound = [found for found, _ in drawn], all(fine for _, fine in drawn)
        if not sound:
            logger.warning(
                "the model returns NaN or infinity for synthetic inputs, which may distort times: "
                "pass inputs, or --data on the command line"
            )
        one, exact = threads == 1, processor_time_is_exact(providers)
        if exact and not one and _is_busy(executor, each[plan.example], watch):
            one = True
            executor.close()
            executor = executor_of(1)
            logger.warning(
                "other processes keep the cores busy: measuring the processor time of one thread"
            )
        threads = 1 if one else threads
        watch = replace(watch, processor=one and exact)
        settings |= {"threads": threads, "clock": CLOCKS[watch.processor]}
        timings = [
            BranchTiming(executor, own, seed, finite=sound, watch=watch)
            for own in each[: len(plan.points)]
        ]
        samples = SampleFile(path, settings, timings)
        samples.resume()
        resident = _session_bytes(executor) if memory_bytes is None else {}

        def report(share: float, n_before: int = 0) -> None:
            samples.save_now_and_then()
            if progress is not None:
                progress("branches", (n_before + share) / len(timings))

        try:
            for i, timing in enumerate(timings):
                share = _BRANCHES * (i + 1) / len(timings)
                timing.run(n_samples, 0.02, begin_s + share * budget_s, partial(report, n_before=i))
        finally:
            samples.save()
        rows_at = [
            {
                spec.id: _with_resident(timing.row(spec.id), resident.get(spec.id))
                for spec in bundle.space.branches
            }
            for timing in timings
        ]
        costs_at = [{name: row.ms for name, row in own.items()} for own in rows_at]
        refused = unused_everywhere(bundle, costs_at, settings["device"], refused)
        bundle = bundle.without(refused)
        executor.bundle = bundle
        rows_at = [{spec.id: own[spec.id] for spec in bundle.space.branches} for own in rows_at]
        executor.make_room(_COMPUTING_BYTES)
        rows = rows_at[plan.example]
        archs = distinct_subnets(bundle, n_subnets + n_held_out, seed)
        fit = None if len(plan.points) < 2 else SizeFit(bundle, batch_size, plan, rows_at)
        held_out: list[Arch] = [] if fit is None else split(archs, n_held_out)[0]
        # In random order, since time may be too short for all of them.
        random.Random(f"subnets {seed}").shuffle(archs)
        wanted = {arch: plan.indices(held_out=arch in held_out) for arch in archs}
        timer = SubnetTimer(executor, each, limit, watch)
        sizes_vary = bool(bundle.manifest.model.sizes)
        maker = SessionMaker(threads, tuple(providers), sizes_vary=sizes_vary)
        latencies: dict[str, BranchCosts] = {}
        for mode in MODES:

            def report_subnets(done: int, mode: str = mode) -> None:
                if progress is not None:
                    progress(f"{mode} subnets", done / len(archs))

            now_s = watch.wall_s()
            until_s = now_s + _SUBNETS[mode] * (begin_s + budget_s - now_s)
            times = timer.time_at_sizes(
                wanted, mode, maker, progress=report_subnets, until_s=until_s
            )
            executor.make_room(_COMPUTING_BYTES)
            if fit is None:
                found = _fitted(bundle, rows, times[0], n_subnets, n_held_out)
            else:
                found = fit.fitted(mode, times, held_out)
            latencies[mode] = _doubted_if_noisy(found, times)
            if archs and not any(times) and limit is None:
                doubt = "there was no time to measure whole subnets"
                latencies[mode] = replace(latencies[mode], doubt=doubt)
        if not one and exact and any(times) and _is_busy(executor, each[plan.example], watch):
            doubt = "other processes kept the cores busy while several threads were timed"
            latencies = {mode: replace(found, doubt=doubt) for mode, found in latencies.items()}
    # For such short runs, the variation between calls alone is as large as the latency.
    latencies = {
        mode: replace(found, doubt="") if original_cost(found) < SHORT_MS else found
        for mode, found in latencies.items()
    }
    known = bundle_costs(bundle, batch_size, rows, plan.points[plan.example])
    modes = {mode: Costs({LATENCY: found, **known}) for mode, found in latencies.items()}
    table = LatencyTable(
        bundle.digest,
        fingerprint(),
        batch_size,
        threads,
        providers[0],
        rows,
        modes,
        structure,
        CLOCKS[watch.processor],
        plan.points[plan.example : plan.example + 1] if bundle.manifest.model.sizes else (),
        by_size=None if fit is None else fit.by_size,
        refused=refused,
    )
    samples.remove()
    for mode in MODES:
        if not table.trusted(mode):
            logger.warning(
                "latencies of %s subnets are not predicted well: %s; measure again, for longer or "
                "while other programs use the machine less",
                mode,
                table.weakness(mode),
            )
    return table


def _unloadable(executor: Executor, others: Collection[str]) -> dict[str, str]:
    """The 8-bit branches that the installed onnxruntime can't load, and why.

    Raises:
        BundleError: A file is missing or damaged.
    """
    found: dict[str, str] = {}
    for segment in executor.bundle.manifest.segments:
        if segment.quantised is None or segment.id in others:
            continue
        executor.bundle.model_path(segment.id)  # a damaged file is an error
        try:
            executor.session(segment.id)
        except BundleError as e:
            found[segment.id] = f"onnxruntime {ort.__version__} can't load it: {e.got}"
            logger.warning("%s is not used: %s", segment.id, found[segment.id])
    return found


def _is_busy(executor: Executor, inputs: Mapping[str, Array], watch: Stopwatch) -> bool:
    """Whether competing processes slow down the original."""
    original = executor.bundle.space.original
    executor.run(original, inputs)
    return watch.is_disturbed(lambda: executor.run(original, inputs))


def _fitted(
    bundle: Bundle,
    rows: Mapping[str, BranchLatency],
    times: Mapping[Arch, Measured],
    n_subnets: int,
    n_held_out: int,
) -> BranchCosts:
    """The costs of a mode from measured subnets, the original among them."""
    original = times.get(bundle.space.original)
    measured = sorted((m for m in times.values() if m is not original), key=lambda m: m.ms)
    # If fewer were measured than requested, use at least half of them for the fit.
    fewer = len(measured) < n_subnets + n_held_out and n_subnets > 0
    n_held = min(n_held_out, len(measured) // 2) if fewer else n_held_out
    held_out, fitted = split(measured, n_held)
    return fit_mode(bundle.space, rows, fitted if n_subnets else [], held_out, original)


def _doubted_if_noisy(model: BranchCosts, times: Sequence[Mapping[Arch, Measured]]) -> BranchCosts:
    """The costs, marked as unreliable if the measurements vary too much."""
    noises = [m.noise for found in times for m in list(found.values())[1:]]
    noise = float(np.median(noises)) if noises else 0.0
    if noise <= _MOST_NOISE:
        return model
    return replace(model, doubt=f"times of whole subnets were disturbed: they vary by {noise:.0%}")


def _sizes_of(
    bundle: Bundle, inputs: Mapping[str, Array], batch_size: int, sizes: object
) -> dict[str, int]:
    """The sizes of the user's inputs besides the batch size.

    Raises:
        UsageError: The inputs do not fit the model or have another batch size, or sizes are given.
    """
    if sizes is not None:
        raise UsageError(
            "inputs have their own sizes",
            expected="inputs or sizes",
            got=f"inputs and sizes={sizes!r}",
            fix="leave one of them out",
        )
    found = sizes_of_inputs(bundle, inputs)
    model = bundle.manifest.model
    n_samples = found.pop(model.batch, 1)
    if n_samples != batch_size and model.dynamic_batch:
        raise UsageError(
            "the inputs must have batch_size samples",
            expected=f"batch_size={batch_size}",
            got=str(n_samples),
        )
    return found


def _digest(inputs: Mapping[str, Array]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(inputs.items()):
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _batch_size(bundle: Bundle, wanted: int | None) -> int:
    """The number of samples in a run; raises an error if the model's batch size is fixed."""
    size = batch_of(bundle, 1 if wanted is None else wanted)
    if wanted not in (None, size):
        raise UsageError(
            "the model can't be run at this batch size",
            expected=f"{size}, the fixed batch size that it was captured with",
            got=f"batch_size={wanted!r}",
            fix="leave it out, or export the model from example inputs of that size",
        )
    return size


def _check(
    batch_size: int, n_samples: int, n_subnets: int, n_held_out: int, budget_s: float | None
) -> None:
    problem = ""
    if batch_size < 1:
        problem = f"batch_size={batch_size!r}"
    elif n_samples < 3:
        problem = f"n_samples={n_samples!r}, which is below 3"
    elif n_subnets < 0 or n_held_out < 0:
        problem = f"n_subnets={n_subnets!r}, n_held_out={n_held_out!r}"
    elif budget_s is not None and not budget_s > 0:
        problem = f"time_budget_s={budget_s!r}"
    if problem:
        raise UsageError("an option is out of range", expected="numbers above 0", got=problem)


def _session_bytes(executor: Executor) -> dict[str, int]:
    """The memory that each session adds to the process, in bytes; loads all sessions."""
    found: dict[str, int] = {}
    before = resident_bytes()
    for spec in executor.bundle.space.branches:
        if executor.bundle.segment(spec.id).outputs and not executor.is_loaded(spec.id):
            executor.session(spec.id)
        after = resident_bytes()
        found[spec.id] = max(0, after - before)
        before = after
    return found


def _with_resident(row: BranchLatency, n_bytes: int | None) -> BranchLatency:
    return replace(row, resident_bytes=n_bytes)


def split(subnets: Sequence[T], n_held_out: int) -> tuple[list[T], list[T]]:
    """Split ordered subnets into those to compute the error on and those to fit to, evenly."""
    n_held_out = min(n_held_out, len(subnets))
    held = {int(i * len(subnets) / n_held_out) for i in range(n_held_out)}
    return (
        [m for i, m in enumerate(subnets) if i in held],
        [m for i, m in enumerate(subnets) if i not in held],
    )


def distinct_subnets(bundle: Bundle, n: int, seed: int) -> list[Arch]:
    """Different subnets, spread evenly over the range of latencies, without the original.

    Uniform draws have latencies near their mean. Subnets far from it are more informative, and
    searches with small budgets choose them.
    """
    space = bundle.space
    costs = {spec.id: float(spec.flops) for spec in space.branches}
    low = space.cost(space.min_cost_arch(costs), costs)
    high = space.cost(space.max_cost_arch(costs), costs)
    found: dict[Arch, None] = {}
    if n and high > low:
        for i in range(n):
            window = (low + i * (high - low) / n, low + (i + 1) * (high - low) / n)
            try:
                found[space.sample_within(1, costs, *window, seed=seed + i)[0]] = None
            except UsageError:
                continue  # no subnet has such a cost
    for arch in space.sample(20 * n, seed) if n else ():
        if len(found) >= n:
            break
        if arch != space.original:
            found[arch] = None
    return in_runs(bundle, list(found)[:n], seed)[:n]
