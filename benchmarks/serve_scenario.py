"""The scripted scenario of `benchmarks/serve.py`: competing processes come and go in steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.competitors import competitors
from benchmarks.own_speed import OwnSpeed
from fxelastic import edge
from fxelastic.edge.serving.options import Serving
from fxelastic.report.trace import Trace, TraceData, read_trace
from fxelastic.report.trace_figure import write_plot


@dataclass(frozen=True)
class StepResult:
    """The results of one step of the load.

    Attributes:
        n_processes: Number of competing processes.
        n_requests: Number of requests.
        median_ms: Median latency over the step's second half.
        over_s: Longest time for which the median latency exceeded the budget.
        told: Whether the runtime reported that it can't keep the budget, and served the quickest
            subnet.
        n_switches: Number of switches.
        estimated_ms: Estimate of the subnet in use at the end.
        own_slow_s: Time for which the processor itself was slow without competing processes:
            requests took over 1.25 times their usual processor time, as on a virtual machine whose
            two processors are threads of one core for a while.
    """

    n_processes: int
    n_requests: int
    median_ms: float
    over_s: float
    told: bool
    n_switches: int
    estimated_ms: float
    own_slow_s: float | None


def run_scenario(
    bundle: Any,
    table: Any,
    pool: Any,
    inputs: dict[str, Any],
    *,
    budget_ms: float,
    mode: str,
    steps: Sequence[int],
    seconds: float,
    threads: int,
    out: Path,
    name: str = "trace",
) -> dict[str, Any]:
    """Serve in a closed loop while the load changes; write the trace and its plot.

    Returns:
        Results by step, and of the whole run.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.jsonl"
    path.unlink(missing_ok=True)
    start_s = time.perf_counter()
    errors: list[str] = []
    bounds: list[tuple[float, float, int]] = []
    speed = OwnSpeed()
    with Trace(path, budget_ms, start_s) as trace:
        options = Serving(listener=trace.on_event, on_tick=trace.on_tick)
        with edge.serve(
            bundle, table, pool, budget_ms=budget_ms, mode=mode, threads=threads, options=options
        ) as runtime:
            stop = threading.Event()

            def ask() -> None:
                estimates_ms = {step.arch: step.latency_ms for step in runtime.entries}
                while not stop.is_set():
                    begin_s = time.process_time()
                    try:
                        reply = runtime.infer(**inputs)
                    except Exception as e:  # noqa: BLE001 - any failed request is a result
                        errors.append(repr(e))
                        continue
                    taken_ms = 1e3 * (time.process_time() - begin_s)
                    end_s = time.perf_counter() - start_s
                    # A subnet that a search has added is not among them.
                    if reply.arch in estimates_ms:
                        speed.rows.append((end_s, taken_ms / estimates_ms[reply.arch]))

            thread = threading.Thread(target=ask)
            thread.start()
            first = runtime.status().step
            with competitors() as load:
                for n in steps:
                    load.set(n)
                    begin_s = time.perf_counter() - start_s
                    time.sleep(seconds)
                    bounds.append((begin_s, time.perf_counter() - start_s, n))
            stop.set()
            thread.join()
            status = runtime.status()
    data = read_trace(path)
    write_plot(data, out / f"{name}.png", f"{', '.join(map(str, steps))} competing processes")
    quiet = [(begin_s, end_s) for begin_s, end_s, n in bounds if not n]
    usual = speed.usual(quiet) if quiet else 0.0
    results = [
        _step(
            data, begin_s, end_s, n, budget_ms, None if n else speed.slow_s(begin_s, end_s, usual)
        )
        for begin_s, end_s, n in bounds
    ]
    assert first is not None
    returned_s = _returned(data, first.latency_ms, *bounds[-1][:2])
    return {
        "steps": [vars(result) for result in results],
        "failed_requests": len(errors) + status.n_failed,
        "n_requests": status.n_requests,
        "best_ms": first.latency_ms,
        "best_returned": returned_s is not None,
        "returned_s": returned_s,
        "events": dict(status.events),
        "trace": path.name,
        "plot": f"{name}.png",
    }


def _step(
    data: TraceData,
    begin_s: float,
    end_s: float,
    n_processes: int,
    budget_ms: float,
    own_slow_s: float | None,
) -> StepResult:
    requests = [r for r in data.requests if begin_s <= r[0] < end_s]
    latencies = [ms for end, _, ms in requests if end >= (begin_s + end_s) / 2]
    events = [event for event in data.events if begin_s <= event[0] < end_s]
    switches = [event for event in events if event[1] in ("switched", "rolled_back")]
    last = data.subnets[requests[-1][1]].ms
    quickest = min(subnet.latency_ms for subnet in data.subnets.values())
    return StepResult(
        n_processes,
        len(requests),
        sorted(latencies)[len(latencies) // 2],
        _longest_excess(data, begin_s, end_s, budget_ms),
        _told(data, begin_s, end_s) and last <= quickest,
        len(switches),
        last,
        own_slow_s,
    )


def _returned(data: TraceData, latency_ms: float, begin_s: float, end_s: float) -> float | None:
    """Seconds until a subnet of this estimate began to serve; None if it did not.

    It must serve for at least a second, since it may be in use by chance when the load ends.
    """
    since_s = None
    for time_s, subnet, _ in data.requests:
        if not begin_s <= time_s < end_s:
            continue
        if abs(data.subnets[subnet].ms - latency_ms) > 1e-9:
            since_s = None
            continue
        since_s = time_s if since_s is None else since_s
        if time_s - since_s >= 1.0:
            return since_s - begin_s
    return None


def _told(data: TraceData, begin_s: float, end_s: float) -> bool:
    """Whether the runtime reported, before or in this time, that it can't keep the budget."""
    kinds = ("budget_unmet", "budget_met")
    said = [(time_s, kind) for time_s, kind, _ in data.events if kind in kinds and time_s < end_s]
    before = [kind for time_s, kind in said if time_s < begin_s]
    within = [kind for time_s, kind in said if time_s >= begin_s]
    return "budget_unmet" in before[-1:] + within


def _longest_excess(data: TraceData, begin_s: float, end_s: float, budget_ms: float) -> float:
    """The longest time for which the running median was above the budget, in seconds."""
    longest, since = 0.0, None
    for time_s, latency_ms in data.medians():
        if not begin_s <= time_s < end_s:
            continue
        if latency_ms <= budget_ms:
            since = None
            continue
        since = time_s if since is None else since
        longest = max(longest, time_s - since)
    return longest
