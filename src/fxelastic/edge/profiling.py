"""`edge.profile`: measure a bundle's branches on this device."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence

from fxelastic.edge.arguments import check_loaded
from fxelastic.edge.bundle import Bundle
from fxelastic.edge.executor import Array, sizes_of_inputs
from fxelastic.edge.measured_sizes import SizePlan, SizesToMeasure
from fxelastic.edge.monitoring.energy_meter import EnergyMeter
from fxelastic.edge.profile_run import ProfileOptions, ProfileRun
from fxelastic.edge.searching.data import batch_of
from fxelastic.edge.stopwatch import Stopwatch
from fxelastic.errors import UsageError
from fxelastic.spec.latency_table import MODES, LatencyTable
from fxelastic.spec.only_writer import only_writer
from fxelastic.spec.options import check_count, check_positive

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
    cache_runs: int = 0,
    meter: EnergyMeter | None = None,
) -> LatencyTable:
    """Measure the latency of each branch on this device, and fit a model of whole subnets.

    Branches are timed inside random subnets, as often as necessary. A few whole subnets then
    correct the sum of the branches, and other subnets measure the remaining error. If that error
    is large, or the samples vary too much, the table is marked unusable, and searches raise an
    error.

    If other processes keep the cores busy, one thread is used regardless of ``threads``, and its
    processor time is measured: this gives correct latencies relative to the original, but not the
    speed of several idle cores. If they come during the measurement, it is made again in this way;
    with a time budget, the table is marked unusable instead. It records ``threads`` and ``clock``.

    8-bit branches are measured in each format that suits the processor. Of these the table keeps
    those that are faster than their float branch, and of several formats the fastest, besides
    slower ones with less than a quarter of its error. ``refused`` of the table has the others, with
    the reason, and those that onnxruntime can't load.

    If other sizes than the batch may vary, everything is measured at several sizes, and the
    table's costs are functions of the sizes; see `LatencyTable.at`. The error is then measured at
    sizes in between.

    Besides latencies, the table has the branches' FLOPs, parameters, weights, memory traffic and
    peak memory, from the bundle, and two estimates of their energy: ``energy_mj`` by a counter if
    the device has one, else by the power of the processor, and ``access_energy_mj`` by operations
    and accesses. ``source`` and ``error`` of `BranchCosts` say how good they are.

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
        cache_runs: The runs of each branch after the caches were flushed, to estimate its cache hit
            rate: about 20 ms each. 0 for no estimate.
        meter: Measures energy; None for one of this device.

    Returns:
        The table.

    Raises:
        UsageError: An argument is out of range, inputs do not fit the model, both inputs and sizes
            are given, or no inputs were given and a size can't be computed from the batch size.
        BundleError: A branch is missing or damaged, can't be run, or returns values that are not
            finite.
    """
    check_loaded(bundle=bundle)
    if batch_size is not None:
        check_count("batch_size", batch_size)
    batch_size = _batch_size(bundle, batch_size)
    options = ProfileOptions(
        batch_size,
        threads,
        tuple(providers),
        n_samples,
        n_subnets,
        n_held_out,
        math.inf if time_budget_s is None else time_budget_s,
        memory_bytes,
        path,
        seed,
        progress,
        cache_runs,
        meter,
    )
    _check(options, time_budget_s)
    own = None if inputs is None else [_sizes_of(bundle, inputs, batch_size, sizes)]
    plan = SizePlan.of(bundle.manifest.model, sizes if own is None else own)
    watch = watch or Stopwatch()
    with only_writer(path):
        with ProfileRun(bundle, options, plan, inputs, watch) as run:
            table = run.table()
        if run.became_busy and time_budget_s is None:
            with ProfileRun(bundle, options, plan, inputs, watch, busy=True) as run:
                table = run.table()
    for mode in MODES:
        if not table.trusted(mode):
            logger.warning(
                "latencies of %s subnets are not predicted well: %s; measure again, for longer or "
                "while other programs use the machine less",
                mode,
                table.weakness(mode),
            )
    return table


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


def _check(options: ProfileOptions, budget_s: float | None) -> None:
    check_count("threads", options.threads, 0)
    check_count("n_samples", options.n_samples, 3)
    for name in ("n_subnets", "n_held_out", "cache_runs", "seed"):
        check_count(name, getattr(options, name), 0)
    if budget_s not in (None, math.inf):
        check_positive("time_budget_s", budget_s)
    if options.memory_bytes is not None:
        check_positive("memory_bytes", options.memory_bytes)
