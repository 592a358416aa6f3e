"""One measurement of a bundle on a device: branches, then whole subnets, then the table."""

from __future__ import annotations

import hashlib
import logging
import os
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import onnxruntime as ort

from fxelastic.edge.branch_energy import (
    access_energy,
    energies_by_size,
    energy_by_counter,
    energy_by_power,
)
from fxelastic.edge.branch_timing import BranchTiming
from fxelastic.edge.bundle import Bundle
from fxelastic.edge.bundle_costs import bundle_costs
from fxelastic.edge.cache_hits import measure_hit_rates
from fxelastic.edge.cascades.decision_time import with_decisions
from fxelastic.edge.executor import Array, Executor
from fxelastic.edge.fingerprint import fingerprint
from fxelastic.edge.int8_branches import unsuited, unused_everywhere
from fxelastic.edge.latency_model import Measured, fit_mode
from fxelastic.edge.measured_sizes import SizePlan
from fxelastic.edge.memory import GrowthLimit, resident_bytes
from fxelastic.edge.monitoring.energy_meter import EnergyMeter
from fxelastic.edge.sample_file import SampleFile
from fxelastic.edge.sessions import SessionMaker
from fxelastic.edge.size_fit import SizeFit
from fxelastic.edge.stopwatch import Stopwatch, processor_time_is_exact
from fxelastic.edge.subnet_timing import SubnetTimer
from fxelastic.edge.synthetic_inputs import sound_inputs
from fxelastic.edge.timed_subnets import distinct_subnets, n_to_hold_out, split
from fxelastic.errors import BundleError
from fxelastic.spec import Arch
from fxelastic.spec.branch_latency import BranchLatency
from fxelastic.spec.costs import BranchCosts, Costs
from fxelastic.spec.latency_table import (
    CLOCKS,
    MODES,
    SHORT_MS,
    LatencyTable,
    original_cost,
)
from fxelastic.spec.resources import ACCESS_ENERGY, ENERGY, LATENCY

# Memory for choosing subnets by cost and for fitting the latency model.
_COMPUTING_BYTES = 2**24
# The planned share of the time budget, and the share after which timing of branches ends; and for
# each mode, the share of the then remaining time after which timing of whole subnets ends.
_PLANNED, _BRANCHES = 0.95, 0.4
_SUBNETS = {"assembled": 0.7, "paged": 1.0}
# Subnets whose energy is measured, the least length of a window, in ms, and its most runs.
_ENERGY_SUBNETS, _WINDOW_MS, _MOST_RUNS = 18, 60.0, 500
# If the median standard error of whole subnets exceeds this share, their times are too uncertain.
_MOST_NOISE = 0.06

#: The measurements of each branch, by id.
Rows = Mapping[str, BranchLatency]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProfileOptions:
    """Options of `edge.profile`, which describes them; ``time_budget_s`` may be infinite."""

    batch_size: int
    threads: int
    providers: tuple[str, ...]
    n_samples: int
    n_subnets: int
    n_held_out: int
    time_budget_s: float
    memory_bytes: int | None
    path: str | os.PathLike[str] | None
    seed: int
    progress: Callable[[str, float], None] | None
    cache_runs: int = 0
    meter: EnergyMeter | None = None


class ProfileRun:
    """Measures a bundle; a context manager, which holds the sessions.

    Attributes:
        bundle: The bundle, without the branches that the device turned out not to use.
        refused: These branches, and why.
        became_busy: Whether other processes came while several threads were timed.
    """

    def __init__(
        self,
        bundle: Bundle,
        options: ProfileOptions,
        plan: SizePlan,
        inputs: Mapping[str, Array] | None,
        watch: Stopwatch,
        *,
        busy: bool = False,
    ) -> None:
        """Open the branches, choose the inputs, the number of threads and the clock.

        Args:
            bundle: The bundle.
            options: The options.
            plan: The sizes to measure at.
            inputs: The inputs; None for synthetic ones.
            watch: Times everything.
            busy: Whether other processes are known to keep the cores busy.

        Raises:
            BundleError: A branch is missing or damaged, or can't be run.
            UsageError: Inputs can't be made up.
        """
        self.bundle = bundle
        self._options = options
        self._plan = plan
        self.became_busy = False
        self._begin_s = watch.wall_s()
        self._budget_s = _PLANNED * options.time_budget_s
        self._settings: dict[str, Any] = {
            "bundle": bundle.digest,
            "device": fingerprint(),
            "batch_size": options.batch_size,
            "providers": list(options.providers),
            "inputs": "" if inputs is None else _digest(inputs),
        }
        if bundle.manifest.model.sizes:
            self._settings["sizes"] = list(plan.points)
            logger.info("measuring at %s", plan)
        # This reads all files, so it comes before the measurement.
        self._structure = bundle.structure_digest
        memory_bytes = options.memory_bytes
        self._limit = None if memory_bytes is None else GrowthLimit(memory_bytes)
        self._stack = ExitStack()
        try:
            self._executor = self._opened(options.threads)
            self.refused = dict(unsuited(bundle, self._settings["device"]))
            self._leave_out(self.refused | _unloadable(self._executor, set(self.refused)))
            self._inputs, self._sound = self._chosen_inputs(inputs)
            self._choose_clock(watch, busy)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> ProfileRun:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def table(self) -> LatencyTable:
        """Measure, and fit the costs.

        Raises:
            BundleError: A branch can't be run, or returns values that are not finite.
            UsageError: The file of measurements can't be used.
        """
        options, plan = self._options, self._plan
        samples, rows_at = self._branches()
        rows = rows_at[plan.example]
        several = len(plan.points) > 1
        fit = SizeFit(self.bundle, options.batch_size, plan, rows_at) if several else None
        latencies = self._subnets(rows, fit)
        known = bundle_costs(self.bundle, options.batch_size, rows, plan.points[plan.example])
        known[ACCESS_ENERGY] = access_energy(known["flops"], known["traffic_bytes"], rows)
        energies = self._energies(rows, latencies)
        by_size = None if fit is None else fit.by_size
        if by_size is not None:
            original = self.bundle.space.original
            modes = {}
            for mode, own in by_size.modes.items():
                whole = Costs({LATENCY: latencies[mode], ENERGY: energies[mode]}).predict(original)
                watts = whole[ENERGY] / max(whole[LATENCY], 1e-9)
                modes[mode] = energies_by_size(own, watts, rows)
            by_size = replace(by_size, modes=modes)
        has_sizes = bool(self.bundle.manifest.model.sizes)
        table = LatencyTable(
            self.bundle.digest,
            fingerprint(),
            options.batch_size,
            self._threads,
            options.providers[0],
            rows,
            {
                mode: Costs({LATENCY: found, ENERGY: energies[mode], **known})
                for mode, found in latencies.items()
            },
            self._structure,
            CLOCKS[self._watch.processor],
            plan.points[plan.example : plan.example + 1] if has_sizes else (),
            by_size=by_size,
            refused=self.refused,
        )
        samples.remove()
        return table

    def _opened(self, threads: int) -> Executor:
        options = self._options
        executor = Executor(
            *(self.bundle, threads, options.memory_bytes, options.providers),
            shared_arena=False,
            limit=self._limit,
        )
        return self._stack.enter_context(executor)

    def _leave_out(self, refused: Mapping[str, str]) -> None:
        """Go on without branches."""
        self.refused = dict(refused)
        self.bundle = self.bundle.without(self.refused)
        self._executor.bundle = self.bundle

    def _chosen_inputs(
        self, inputs: Mapping[str, Array] | None
    ) -> tuple[list[Mapping[str, Array]], bool]:
        """The inputs at each of the plan's sizes, and whether all results are finite for them."""
        if inputs is not None:
            return [inputs], True
        options = self._options
        drawn = [
            sound_inputs(self._executor, options.batch_size, options.seed, own)
            for own in self._plan.all
        ]
        sound = all(fine for _, fine in drawn)
        if not sound:
            logger.warning(
                "the model returns NaN or infinity for synthetic inputs, which may distort times: "
                "pass inputs, or --data on the command line"
            )
        return [found for found, _ in drawn], sound

    def _choose_clock(self, watch: Stopwatch, busy: bool) -> None:
        """Take the processor time of one thread if one is wanted, or the machine is busy."""
        one = self._options.threads == 1
        self._exact = processor_time_is_exact(self._options.providers)
        self._watch = watch
        if self._exact and not one and (busy or self._is_busy()):
            one = True
            self._executor.close()
            self._executor = self._opened(1)
            logger.warning(
                "other processes keep the cores busy: measuring the processor time of one thread"
            )
        self._one = one
        self._threads = 1 if one else self._options.threads
        self._watch = replace(watch, processor=one and self._exact)
        self._settings |= {"threads": self._threads, "clock": CLOCKS[self._watch.processor]}

    def _is_busy(self) -> bool:
        return _is_busy(self._executor, self._inputs[self._plan.example], self._watch)

    def _branches(self) -> tuple[SampleFile, list[dict[str, BranchLatency]]]:
        """Time the branches at each of the plan's sizes, and leave out 8-bit ones that are slow.

        Returns:
            The file of measurements, and the measurements at each of the sizes.
        """
        options = self._options
        timings = [
            BranchTiming(self._executor, own, options.seed, finite=self._sound, watch=self._watch)
            for own in self._inputs[: len(self._plan.points)]
        ]
        samples = SampleFile(options.path, self._settings, timings)
        samples.resume()
        resident = _session_bytes(self._executor) if options.memory_bytes is None else {}

        def report(share: float, n_before: int) -> None:
            samples.save_now_and_then()
            self._report("branches", (n_before + share) / len(timings))

        try:
            for i, timing in enumerate(timings):
                until_s = self._begin_s + _BRANCHES * (i + 1) / len(timings) * self._budget_s
                timing.run(options.n_samples, 0.02, until_s, partial(report, n_before=i))
        finally:
            samples.save()
        rows_at = [
            {
                spec.id: replace(timing.row(spec.id), resident_bytes=resident.get(spec.id))
                for spec in self.bundle.space.branches
            }
            for timing in timings
        ]
        if options.cache_runs:
            until_s = self._begin_s + _BRANCHES * self._budget_s
            i = self._plan.example
            rows_at[i] = measure_hit_rates(timings[i], rows_at[i], options.cache_runs, until_s)
        costs_at = [{name: row.ms for name, row in own.items()} for own in rows_at]
        self._leave_out(
            unused_everywhere(self.bundle, costs_at, self._settings["device"], self.refused)
        )
        self._executor.make_room(_COMPUTING_BYTES)
        ids = [spec.id for spec in self.bundle.space.branches]
        return samples, [{name: own[name] for name in ids} for own in rows_at]

    def _subnets(self, rows: Rows, fit: SizeFit | None) -> dict[str, BranchCosts]:
        """Time whole subnets in each mode, and fit the latencies of branches to them.

        Args:
            rows: The measurements of the branches at the example's sizes.
            fit: Fits to several sizes; None for one.
        """
        options, plan, watch = self._options, self._plan, self._watch
        archs = distinct_subnets(self.bundle, options.n_subnets + options.n_held_out, options.seed)
        n_held = n_to_hold_out(len(archs), options.n_subnets, options.n_held_out)
        held_out: list[Arch] = [] if fit is None else split(archs, n_held)[0]
        # In random order, since time may be too short for all of them.
        random.Random(f"subnets {options.seed}").shuffle(archs)
        timer = SubnetTimer(self._executor, self._inputs, self._limit, watch)
        sizes_vary = bool(self.bundle.manifest.model.sizes)
        maker = SessionMaker(self._threads, options.providers, sizes_vary=sizes_vary)
        latencies: dict[str, BranchCosts] = {}
        timed = False
        for mode in MODES:

            def report(done: int, mode: str = mode) -> None:
                self._report(f"{mode} subnets", done / len(archs))

            now_s = watch.wall_s()
            until_s = now_s + _SUBNETS[mode] * (self._begin_s + self._budget_s - now_s)
            times = timer.time_at_sizes(archs, mode, maker, progress=report, until_s=until_s)
            timed = any(times)
            self._executor.make_room(_COMPUTING_BYTES)
            if fit is None:
                found = _fitted(self.bundle, rows, times[0], options.n_subnets, options.n_held_out)
            else:
                found = fit.fitted(mode, times, held_out)
            latencies[mode] = _doubted_if_noisy(found, times)
            if archs and not timed and self._limit is None:
                doubt = "there was no time to measure whole subnets"
                latencies[mode] = replace(latencies[mode], doubt=doubt)
        self.became_busy = not self._one and self._exact and timed and self._is_busy()
        if self.became_busy:
            doubt = "other processes kept the cores busy while several threads were timed"
            latencies = {mode: replace(found, doubt=doubt) for mode, found in latencies.items()}
        # For such short runs, the variation between calls alone is as large as the latency.
        latencies = {
            mode: replace(found, doubt="") if original_cost(found) < SHORT_MS else found
            for mode, found in latencies.items()
        }
        loop = partial(timer.in_loop, index=plan.example, maker=maker)
        return with_decisions(self.bundle, latencies, maker, watch, loop)

    def _energies(self, rows: Rows, latencies: Mapping[str, BranchCosts]) -> dict[str, BranchCosts]:
        """The energy of the branches in each mode: by a counter if there is one, else by a model.

        A counter counts the work of other processes, too, so it is used on a quiet machine alone.
        """
        meter = self._options.meter or EnergyMeter()
        n_threads = min(self._threads or meter.threads, meter.threads)
        watts = meter.power.watts(n_threads / meter.threads)
        source = (
            f"model: {watts:.3g} W, within a factor {1 + meter.power.error:g}; {meter.power.source}"
        )
        found = {
            mode: energy_by_power(latency, watts, source) for mode, latency in latencies.items()
        }
        if meter.counter is None or self._one or self._limit is not None:
            return found
        archs = distinct_subnets(self.bundle, _ENERGY_SUBNETS, self._options.seed)
        inputs = self._inputs[self._plan.example]

        def measure(arch: Arch) -> float:
            paged = latencies["paged"]
            run_ms = paged.overhead + sum(paged.costs[branch] for branch in arch)
            n_runs = min(_MOST_RUNS, max(3, round(_WINDOW_MS / max(run_ms, 1e-3))))
            self._executor.run(arch, inputs)
            meter.begin()
            for _ in range(n_runs):
                self._executor.run(arch, inputs)
            return 1e3 * meter.end().joules / n_runs

        paged = energy_by_counter(
            *(self.bundle.space, rows, latencies["paged"], archs, measure),
            n_held_out=_ENERGY_SUBNETS // 3,
            source=meter.counter.source,
        )
        original = self.bundle.space.original
        costs = Costs({LATENCY: latencies["paged"], ENERGY: paged}).predict(original)
        watts = costs[ENERGY] / max(costs[LATENCY], 1e-9)
        found["assembled"] = energy_by_power(latencies["assembled"], watts, meter.counter.source)
        return found | {"paged": paged}

    def _report(self, step: str, share: float) -> None:
        if self._options.progress is not None:
            self._options.progress(step, share)


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
    held_out, fitted = split(measured, n_to_hold_out(len(measured), n_subnets, n_held_out))
    return fit_mode(bundle.space, rows, fitted if n_subnets else [], held_out, original)


def _doubted_if_noisy(model: BranchCosts, times: Sequence[Mapping[Arch, Measured]]) -> BranchCosts:
    """The costs, marked as unreliable if the measurements vary too much."""
    noises = [m.noise for found in times for m in list(found.values())[1:]]
    noise = float(np.median(noises)) if noises else 0.0
    if noise <= _MOST_NOISE:
        return model
    return replace(model, doubt=f"times of whole subnets were disturbed: they vary by {noise:.0%}")


def _digest(inputs: Mapping[str, Array]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(inputs.items()):
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


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
