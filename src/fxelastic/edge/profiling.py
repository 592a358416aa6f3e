"""`edge.profile`: measure a bundle's branches on this device."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from fxelastic.edge.arguments import refuse_paths
from fxelastic.edge.branch_timing import BranchTiming
from fxelastic.edge.bundle import Bundle
from fxelastic.edge.bundle_costs import bundle_costs
from fxelastic.edge.executor import Array, Executor, check_inputs
from fxelastic.edge.fingerprint import fingerprint
from fxelastic.edge.int8_branches import unsuited, unused
from fxelastic.edge.latency_model import Measured, fit_mode
from fxelastic.edge.memory import GrowthLimit, resident_bytes
from fxelastic.edge.searching.data import batch_of
from fxelastic.edge.sessions import SessionMaker
from fxelastic.edge.stopwatch import Stopwatch, processor_time_is_exact
from fxelastic.edge.subnet_timing import SubnetTimer
from fxelastic.edge.synthetic_inputs import sound_inputs
from fxelastic.errors import BundleError, UsageError
from fxelastic.spec import Arch
from fxelastic.spec.costs import BranchCosts, Costs
from fxelastic.spec.json_document import write
from fxelastic.spec.latency_table import (
    CLOCKS,
    MODES,
    SHORT_MS,
    BranchLatency,
    LatencyTable,
    original_cost,
)
from fxelastic.spec.resources import LATENCY

PARTIAL = "fxelastic.latency-samples/1"
# Memory for choosing subnets by cost and for fitting the latency model.
_COMPUTING_BYTES = 2**24
# The planned share of the time budget, and the share after which timing of branches ends; and for
# each mode, the share of the then remaining time after which timing of whole subnets ends.
_PLANNED, _BRANCHES = 0.95, 0.4
_SUBNETS = {"assembled": 0.7, "paged": 1.0}
# If the median standard error of whole subnets exceeds this share, their times are too uncertain.
_MOST_NOISE = 0.06

logger = logging.getLogger(__name__)


def profile(
    bundle: Bundle,
    batch_size: int | None = None,
    threads: int = 0,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    *,
    inputs: Mapping[str, Array] | None = None,
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

    Call it in a process that has not imported torch, as ``fxelastic profile`` does.

    Args:
        bundle: The bundle.
        batch_size: The number of samples in a run; by default 1, or the model's fixed batch size.
        threads: The number of threads; 0 means one for each core.
        providers: The execution providers of onnxruntime, in order of preference.
        inputs: The inputs to run on: ``batch_size`` samples for each of the bundle's inputs, by
            name. None for synthetic inputs, which may be unsuitable if times depend on values.
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
        UsageError: An argument is out of range, inputs do not fit the model, or no inputs were
            given and a size can't be computed from the batch size.
        BundleError: A branch is missing or damaged, can't be run, or returns values that are not
            finite.
    """
    refuse_paths(bundle=bundle)
    batch_size = _batch_size(bundle, batch_size)
    _check(batch_size, n_samples, n_subnets, n_held_out, time_budget_s)
    watch = watch or Stopwatch()
    begin_s = watch.wall_s()
    budget_s = float("inf") if time_budget_s is None else _PLANNED * time_budget_s
    if inputs is not None:
        found = check_inputs(bundle, inputs)
        if found != batch_size and bundle.manifest.model.dynamic_batch:
            raise UsageError(
                "the inputs must have batch_size samples",
                expected=f"batch_size={batch_size}",
                got=str(found),
            )
    settings: dict[str, Any] = {
        "schema": PARTIAL,
        "bundle": bundle.digest,
        "device": fingerprint(),
        "batch_size": batch_size,
        "providers": list(providers),
        "inputs": "" if inputs is None else _digest(inputs),
    }
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
        if inputs is None:
            inputs, sound = sound_inputs(executor, batch_size, seed)
        if not sound:
            logger.warning(
                "the model returns NaN or infinity for synthetic inputs, which may distort times: "
                "pass inputs, or --data on the command line"
            )
        one, exact = threads == 1, processor_time_is_exact(providers)
        if exact and not one and _is_busy(executor, inputs, watch):
            one = True
            executor.close()
            executor = executor_of(1)
            logger.warning(
                "other processes keep the cores busy: measuring the processor time of one thread"
            )
        threads = 1 if one else threads
        watch = replace(watch, processor=one and exact)
        settings |= {"threads": threads, "clock": CLOCKS[watch.processor]}
        timing = BranchTiming(executor, inputs, seed, finite=sound, watch=watch)
        partial = _Partial(None if path is None else Path(path), settings, timing)
        partial.resume()
        resident = _session_bytes(executor) if memory_bytes is None else {}

        def report(share: float) -> None:
            partial.save_now_and_then()
            if progress is not None:
                progress("branches", share)

        try:
            timing.run(n_samples, 0.02, begin_s + _BRANCHES * budget_s, report)
        finally:
            partial.save()
        measured = {spec.id: timing.row(spec.id) for spec in bundle.space.branches}
        costs_ms = {branch: row.ms for branch, row in measured.items()}
        refused = unused(bundle, costs_ms, settings["device"], refused)
        bundle = bundle.without(refused)
        executor.bundle = bundle
        rows = {spec.id: measured[spec.id] for spec in bundle.space.branches}
        rows = {k: _with_resident(row, resident.get(k)) for k, row in rows.items()}
        executor.make_room(_COMPUTING_BYTES)
        archs = distinct_subnets(bundle, n_subnets + n_held_out, seed)
        # In random order, since time may be too short for all of them.
        random.Random(f"subnets {seed}").shuffle(archs)
        timer = SubnetTimer(executor, inputs, limit, watch)
        sizes_vary = bool(bundle.manifest.model.sizes)
        maker = SessionMaker(threads, tuple(providers), sizes_vary=sizes_vary)
        latencies: dict[str, BranchCosts] = {}
        for mode in MODES:

            def report_subnets(done: int, mode: str = mode) -> None:
                if progress is not None:
                    progress(f"{mode} subnets", done / len(archs))

            now_s = watch.wall_s()
            until_s = now_s + _SUBNETS[mode] * (begin_s + budget_s - now_s)
            times = timer.time(archs, mode, maker, progress=report_subnets, until_s=until_s)
            executor.make_room(_COMPUTING_BYTES)
            latencies[mode] = _fitted(bundle, rows, times, n_subnets, n_held_out)
            if archs and len(times) < 2 and limit is None:
                doubt = "there was no time to measure whole subnets"
                latencies[mode] = replace(latencies[mode], doubt=doubt)
        if not one and exact and times and _is_busy(executor, inputs, watch):
            doubt = "other processes kept the cores busy while several threads were timed"
            latencies = {mode: replace(found, doubt=doubt) for mode, found in latencies.items()}
    # For such short runs, the variation between calls alone is as large as the latency.
    latencies = {
        mode: replace(found, doubt="") if original_cost(found) < SHORT_MS else found
        for mode, found in latencies.items()
    }
    known = bundle_costs(bundle, batch_size, rows)
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
        refused=refused,
    )
    partial.remove()
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
    model = fit_mode(bundle.space, rows, fitted if n_subnets else [], held_out, original)
    noise = float(np.median([m.noise for m in measured])) if measured else 0.0
    if noise <= _MOST_NOISE:
        return model
    return replace(model, doubt=f"times of whole subnets were disturbed: they vary by {noise:.0%}")


class _Partial:
    """Saves the samples so far to a file, and resumes from it."""

    def __init__(self, path: Path | None, settings: dict[str, Any], timing: BranchTiming) -> None:
        self._path = path
        self._settings = settings
        self._timing = timing
        self._saved_s = timing.watch.wall_s()

    def resume(self) -> None:
        """Read samples from the file, if they belong to the same measurement."""
        if self._path is None or not self._path.exists():
            return
        try:
            value = json.loads(self._path.read_bytes())
            same = {k: value.get(k) for k in self._settings} == self._settings
            samples = {k: [float(x) for x in v] for k, v in value["samples_ms"].items()}
            n_bytes = {k: int(v) for k, v in value["activation_bytes"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            same, samples, n_bytes = False, {}, {}
        if not same or set(samples) != set(self._timing.samples_ms):
            logger.warning(
                "%s belongs to another measurement: starting from the beginning", self._path
            )
            return
        self._timing.samples_ms.update(samples)
        self._timing.activation_bytes.update(n_bytes)

    def save_now_and_then(self) -> None:
        """Write the file if the last write was long enough ago."""
        if self._timing.watch.wall_s() - self._saved_s > 2.0:
            self.save()

    def save(self) -> None:
        """Write the file."""
        if self._path is None:
            return
        value = {
            **self._settings,
            "samples_ms": self._timing.samples_ms,
            "activation_bytes": self._timing.activation_bytes,
        }
        write(self._path, json.dumps(value).encode(), "the file of samples")
        self._saved_s = self._timing.watch.wall_s()

    def remove(self) -> None:
        """Remove the file: its samples are in the table."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


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


def split(measured: Sequence[Measured], n_held_out: int) -> tuple[list[Measured], list[Measured]]:
    """Split subnets into those to compute the error on and those to fit to, evenly by latency."""
    n_held_out = min(n_held_out, len(measured))
    held = {int(i * len(measured) / n_held_out) for i in range(n_held_out)}
    return (
        [m for i, m in enumerate(measured) if i in held],
        [m for i, m in enumerate(measured) if i not in held],
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
    return list(found)[:n]
