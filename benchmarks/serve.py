"""Measure serving: switches, overhead, memory, and how it follows a changing load.

    python benchmarks/serve.py BUNDLE --pool pool.json --table table.json --out results/

Without a bundle, one is made: a residual network of convolutions with random weights, whose pool
is measured here and whose "accuracy" grows with latency. Prints, in one run, each as a ratio or
against its bar:

- the time of a query of a pool of 10,000 entries (bar: 43 µs at the 99th percentile; aim: 5 µs);
- what the runtime adds to a request, against calling the session (bar: 1 %);
- the time from a decision to the next request on the new subnet, where it is in memory (bar: 10 ms
  at the 99th percentile);
- how requests slow down while another subnet is prepared and loaded, where they use all cores but
  one and where they use all, in either mode (bar: 5 % up to the 99th percentile), and by how much
  the one that meets the making of a session does (`added_met`, no bar);
- peak memory in paged mode against the subnet as one ONNX model (bar: 1.10);
- a scenario of 0, 1, 2, 0 competing processes (bars: no failed request; over the budget for at
  most 1 s, or told so; at most 2 switches a step; the best subnet returns), some times over, with
  plots; where requests use all cores but one and where they use all. The latter meet what the
  machine does by itself, too, which is shown.

The machine should be otherwise idle: the scenario reads absolute latencies.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.competitors import steps_of
from benchmarks.own_speed import SLOW
from benchmarks.serve_scenario import run_scenario
from fxelastic import edge
from fxelastic.edge.serving.ladder import Ladder, Step
from fxelastic.edge.serving.paged import PagedLoader
from fxelastic.edge.serving.policy import Decision, Situation
from fxelastic.edge.serving.runtime import Runtime, ServingOptions
from fxelastic.edge.serving.serve import loader_of
from fxelastic.edge.serving.standby import Standby
from fxelastic.edge.serving.upkeep import Restated
from fxelastic.edge.synthetic_inputs import random_inputs
from fxelastic.spec import Arch

QUERY_BAR_US, OVERHEAD_BAR, SWITCH_BAR_MS, COLD_BAR, MEMORY_BAR = 43.0, 0.01, 10.0, 0.05, 1.10
EXCESS_BAR_S, SWITCHES_BAR = 1.0, 2
CORES = os.cpu_count() or 1
# Of the best subnet's latency. Shared machines change their speed for seconds at a time: without
# any load the median of half a second was seen to be 0.92 to 1.24 times what was measured before.
BUDGET = 1.3
# Where the bar is read, and one beyond it: of some thousand requests those above it are a few, and
# what the machine itself does counts for more there.
QUANTILES = {"added": 0.5, "added_p95": 0.95, "added_p99": 0.99, "added_p999": 0.999}
COLD_NAMES = ("added", "added_p95", "added_p99")
# Requests for which a cold switch goes on, and then is held. Short: what makes the machine slow by
# itself lasts for half a second to three, and is to meet both alike.
STRETCH = 20


class Told:
    """A policy that wants what it is told to."""

    def __init__(self) -> None:
        self.target: Step | None = None

    def decide(self, situation: Situation) -> Decision:
        target = self.target or situation.current
        return Decision(target, True, target.latency_ms, "told to")


def quantile(values: Sequence[float], q: float) -> float:
    return float(np.quantile(np.asarray(values), q))


def measure_queries(n_entries: int = 10_000, n_queries: int = 20_000) -> dict[str, Any]:
    """The time of `best_under` on a ladder on which no entry beats another."""
    rng = random.Random(0)
    entries = [Restated(Arch((f"a{i}",)), 1.0 + i, i / n_entries) for i in range(n_entries)]
    ladder = Ladder.of(entries)
    microseconds = []
    for _ in range(n_queries):
        limit_ms = rng.uniform(0, n_entries)
        begin = time.perf_counter_ns()
        ladder.best_under(limit_ms)
        microseconds.append((time.perf_counter_ns() - begin) / 1e3)
    p99 = quantile(microseconds, 0.99)
    return {"p50_us": quantile(microseconds, 0.5), "p99_us": p99, "met": p99 <= QUERY_BAR_US}


def measure_overhead(runtime: Runtime, inputs: dict[str, Any], n: int) -> dict[str, Any]:
    """What the runtime adds to a request, called alternately with its own session."""
    resident = runtime._residents.acquire()
    direct = resident.executable.run
    direct_ms, served_ms = [], []
    for i in range(2 * n):
        begin = time.perf_counter()
        if i % 2:
            direct(inputs)
            direct_ms.append(1e3 * (time.perf_counter() - begin))
        else:
            runtime.infer(**inputs)
            served_ms.append(1e3 * (time.perf_counter() - begin))
    runtime._residents.release(resident)
    # Low quantiles: the difference of medians is lost in what else the machine does.
    low = [quantile(values, 0.25) for values in (direct_ms, served_ms)]
    added = low[1] / low[0] - 1
    own_us = own_work_us(runtime, inputs)
    # What the difference of two latencies shows, the machine's noise may hide or feign.
    return {
        "direct_ms": low[0],
        "served_ms": low[1],
        "added": added,
        "own_us": own_us,
        "own_share": own_us / (1e3 * low[0]),
        "met": own_us / (1e3 * low[0]) <= OVERHEAD_BAR,
    }


def own_work_us(runtime: Runtime, inputs: dict[str, Any], n: int = 5_000) -> float:
    """The runtime's own work for a request: its time when the session takes none."""
    resident = runtime._residents.acquire()
    executable, outputs = resident.executable, resident.executable.run(inputs)

    class Instant:
        def run(self, inputs: Any) -> Any:
            return outputs

        def close(self) -> None:
            pass

    resident.executable = Instant()
    begin = time.perf_counter()
    for _ in range(n):
        runtime.infer(**inputs)
    microseconds = 1e6 * (time.perf_counter() - begin) / n
    resident.executable = executable
    runtime._residents.release(resident)
    return microseconds


def measure_switches(bundle: Any, steps: Sequence[Step], inputs: Any, args: Any) -> dict[str, Any]:
    """From a decision to the next request, between two subnets that are in memory."""
    policy = Told()
    pair = [steps[0], steps[-1]]
    options = ServingOptions(policy=policy, standby=Standby(ratios=(), limit=9), tick_s=1e6)
    milliseconds = []
    with serve(bundle, pair, args, options) as runtime:
        while runtime.status().resident < 2:
            time.sleep(0.01)
        for i in range(args.switches):
            policy.target = pair[i % 2]
            begin = time.perf_counter()
            runtime._controller.tick()
            resident = runtime._residents.acquire()
            milliseconds.append(1e3 * (time.perf_counter() - begin))
            assert resident.step.arch == policy.target.arch
            runtime._residents.release(resident)
            runtime.infer(**inputs)
    p99 = quantile(milliseconds, 0.99)
    return {"p50_ms": quantile(milliseconds, 0.5), "p99_ms": p99, "met": p99 <= SWITCH_BAR_MS}


class Quickest:
    """Holds the quickest subnet ready, and no other one."""

    limit = 1

    def steps(
        self, ladder: Ladder, current: Step, budget_ms: float, limit_ms: float, here: Any = ()
    ) -> tuple[Step, ...]:
        return ladder.steps[:1]


def measure_cold(
    bundle: Any, steps: Sequence[Step], inputs: Any, args: Any, threads: int, mode: str
) -> dict[str, Any]:
    """How requests slow down while another subnet is prepared and loaded.

    Each round goes from the quickest subnet to a better one that is not in memory. While that one
    is prepared, the work goes on for some requests and is held for as many, by turns: the machine
    changes its speed within seconds, and its slowest percent of requests more than that. The first
    and the last requests, while the subnet is asked for and loaded, are among those it goes on in.

    The bar is read from requests that took no more than 1.25 times the usual processor time, which
    excludes those in which the machine itself was slow (see `own_speed.py`) and none that waited
    for something. Such seconds are few, and by chance more on one side: where they are 5 % of the
    requests, the 95th percentile is either of two levels. Those of all requests are shown, too.
    """
    policy = Told()
    options = ServingOptions(policy=policy, standby=Quickest(), tick_s=0.01)
    home, others = steps[0], steps[1:]
    going: list[Request] = []
    held: list[Request] = []
    opened: list[tuple[float, float]] = []

    def ask() -> Any:
        return runtime.infer(**inputs)

    def want(step: Step) -> None:
        policy.target = step
        runtime._hurry()

    with serve(bundle, steps, args, options, threads, mode) as runtime:
        courtesy = runtime._courtesy
        loader = runtime._residents._loader
        note_openings(loader, opened)
        if isinstance(loader, PagedLoader) and loader.pages is not None:
            # As a runtime has it that has served for a minute.
            loader.pages.wait()
        for i in range(args.cold):
            want(home)
            while ask().arch != home.arch:
                pass
            for _ in range(STRETCH):
                ask()
            target = others[i % len(others)]
            want(target)
            n = 0
            while True:
                holds = n // STRETCH % 2 == 1 and (courtesy.waits or mode == "paged")
                if n % STRETCH == 0:
                    courtesy.hold(holds)
                n += 1
                begin_s, taken_s = time.perf_counter(), time.thread_time()
                reply = ask()
                if reply.arch == target.arch:
                    break
                taken_s = time.thread_time() - taken_s
                end_s = time.perf_counter()
                request = Request(reply.latency_ms, taken_s, begin_s, end_s)
                (held if holds else going).append(request)
            # It may have been there just before the work was held again; the way back is to go on.
            courtesy.hold(False)
    return {"threads": threads} | slower(going, held, opened)


class Request(NamedTuple):
    """A request: its latency, its thread's processor time, and when it ran."""

    latency_ms: float
    taken_s: float
    begin_s: float = 0.0
    end_s: float = 0.0


def note_openings(loader: Any, opened: list[tuple[float, float]]) -> None:
    """Have a loader write down from when to when it makes sessions."""

    def noted(open_session: Callable[[Path], Any], path: Path) -> Any:
        begin_s = time.perf_counter()
        session = open_session(path)
        opened.append((begin_s, time.perf_counter()))
        return session

    for name in ("open_session", "open_prepared"):
        if getattr(loader, name, None) is not None:
            setattr(loader, name, partial(noted, getattr(loader, name)))


def slower(
    going: Sequence[Request], held: Sequence[Request], opened: Sequence[tuple[float, float]] = ()
) -> dict[str, Any]:
    """How much slower requests were for what went on, and those that met an opening."""
    most_s = SLOW * statistics.median(request.taken_s for request in [*going, *held])

    def latencies(rows: Sequence[Request], most_s: float = math.inf) -> list[float]:
        return [row.latency_ms for row in rows if row.taken_s <= most_s]

    def added(going_ms: Sequence[float], held_ms: Sequence[float]) -> dict[str, float]:
        return {
            name: quantile(going_ms, q) / quantile(held_ms, q) - 1 for name, q in QUANTILES.items()
        }

    usual = added(latencies(going, most_s), latencies(held, most_s))
    everything = added(latencies(going), latencies(held))
    return {
        "quiet_ms": statistics.median(latencies(held)),
        "n_loading": len(going),
        "n_held": len(held),
        "n_loading_slow": len(going) - len(latencies(going, most_s)),
        "n_held_slow": len(held) - len(latencies(held, most_s)),
        "worst_ms": max(latencies(going, most_s)),
        "worst_held_ms": max(latencies(held, most_s)),
        "openings": len(opened),
        "opening_ms": 1e3 * statistics.median(end_s - begin_s for begin_s, end_s in opened)
        if opened
        else None,
        **worst_met(going, held, opened),
        **usual,
        **{f"all_{name}": value for name, value in everything.items()},
        "met": max(usual[name] for name in COLD_NAMES) <= COLD_BAR,
    }


def worst_met(
    going: Sequence[Request], held: Sequence[Request], opened: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """How much slower the slowest request was of those that met a session being made.

    Of each opening the slowest is compared with the slowest of as many that follow each other while
    the work is held.
    """
    met = [
        [row.latency_ms for row in going if begin_s < row.end_s and end_s > row.begin_s]
        for begin_s, end_s in opened
    ]
    met = [values for values in met if values]
    if not met:
        return {"n_met": 0, "added_met": None}
    n = round(statistics.median(map(len, met)))
    others = [[row.latency_ms for row in held[i : i + n]] for i in range(0, len(held) - n, n)]
    worst, usual = (statistics.median(map(max, groups)) for groups in (met, others))
    return {"n_met": n, "worst_met_ms": worst, "added_met": worst / usual - 1}


def measure_memory(bundle: Any, step: Step, args: Any) -> dict[str, Any]:
    """Peak resident memory of a process that serves a subnet, either way."""
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "subnet.onnx"
        edge.assemble(bundle, step.arch, model)
        for way, what in (("model", str(model)), ("paged", str(step.arch))):
            done = subprocess.run(
                [sys.executable, __file__, str(bundle.path), "--memory-of", way, what],
                capture_output=True,
                text=True,
                check=True,
            )
            peaks[way] = json.loads(done.stdout)
    ratio = peaks["paged"] / peaks["model"]
    return {**{f"{way}_bytes": n for way, n in peaks.items()}, "ratio": ratio} | {
        "met": ratio <= MEMORY_BAR
    }


def memory_of(bundle: Any, way: str, what: str, n: int = 20) -> int:
    """Peak resident bytes of this process, serving in one way."""
    inputs = random_inputs(bundle, 1)
    if way == "paged":
        entry = Restated(Arch.parse(what), 1.0, 1.0)
        with edge.serve(bundle, None, [entry], budget_ms=1e6, mode="paged", threads=2) as runtime:
            for _ in range(n):
                runtime(**inputs)
    else:
        import onnxruntime as ort

        # Everything is imported that the runtime imports.
        options = ort.SessionOptions()
        options.intra_op_num_threads = 2
        session = ort.InferenceSession(what, options, providers=["CPUExecutionProvider"])
        for _ in range(n):
            session.run(None, inputs)
    return peak_bytes()


def peak_bytes() -> int:
    """Peak resident bytes of this process; not getrusage's, which begins with the parent's."""
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def serve(
    bundle: Any,
    steps: Sequence[Step],
    args: Any,
    options: ServingOptions,
    threads: int = 0,
    mode: str = "",
) -> Runtime:
    return edge.serve(
        bundle,
        args.latencies,
        steps,
        budget_ms=1e6,
        mode=mode or args.mode,
        threads=threads or args.threads,
        options=options,
    )


def measured_pool(
    bundle: Any, mode: str, threads: int, n: int = 12, rounds: int = 40
) -> list[Restated]:
    """A stand-in for a pool: sampled subnets, timed here; the slower, the more "accurate"."""
    inputs = random_inputs(bundle, 1)
    archs = list(dict.fromkeys([bundle.space.original, *bundle.space.sample(n, seed=0)]))[:n]
    loader = loader_of(bundle, mode, threads)
    executables = [loader.load(arch) for arch in archs]
    milliseconds: list[list[float]] = [[] for _ in archs]
    # Round by round: what else the machine does slows all of them.
    for _ in range(rounds):
        for times, executable in zip(milliseconds, executables, strict=True):
            begin = time.perf_counter()
            executable.run(inputs)
            times.append(1e3 * (time.perf_counter() - begin))
    for executable in executables:
        executable.close()
    loader.close()
    medians = [statistics.median(times) for times in milliseconds]
    most_ms = max(medians)
    return [Restated(arch, ms, ms / most_ms) for arch, ms in zip(archs, medians, strict=True)]


def load_inputs(args: Any) -> tuple[Any, Any]:
    """The bundle, and its table if there is one."""
    bundle = edge.load(args.bundle)
    table = None
    if args.table:
        from fxelastic.spec.latency_table import LatencyTable

        table = LatencyTable.load(args.table)
    args.latencies = table
    return bundle, table


def pool_of(bundle: Any, args: Any, threads: int) -> Sequence[Step]:
    """The pool that was given; else one that is measured with so many threads."""
    if args.pool:
        from fxelastic.edge.pool import SubnetPool

        steps = Ladder.of(SubnetPool.load(args.pool).entries).steps
    else:
        steps = Ladder.of(measured_pool(bundle, args.mode, threads)).steps
    told = ", ".join(f"{step.latency_ms:.2f}" for step in steps)
    print(f"{bundle}, {threads} threads; pool: {told} ms")
    return steps


def report(name: str, figures: dict[str, Any]) -> None:
    told = ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in figures.items()
        if not isinstance(value, list)
    )
    print(f"{name}: {told}", flush=True)


def report_scenario(scenario: dict[str, Any]) -> None:
    for run in scenario["runs"]:
        print(
            "processes  requests  median ms  over budget s  switches  subnet ms  slow by itself s  "
            "can't be kept"
        )
        for step in run["steps"]:
            slow_s = step["own_slow_s"]
            print(
                f"{step['n_processes']:9}  {step['n_requests']:8}  {step['median_ms']:9.2f}  "
                f"{step['over_s']:13.2f}  {step['n_switches']:8}  {step['estimated_ms']:9.2f}  "
                f"{'' if slow_s is None else format(slow_s, '.2f'):>16}  "
                f"{'told' if step['told'] else ''}"
            )
        for key in ("n_requests", "failed_requests", "returned_s", "met", "plot"):
            print(f"{key}: {run[key]}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", nargs="?", help="a bundle; without one, it is made")
    parser.add_argument("--pool", help="pool.json of fxelastic search; without it, it is measured")
    parser.add_argument("--table", help="table.json of fxelastic profile")
    parser.add_argument(
        "--budget-ms", type=float, help=f"default: {BUDGET} times the best subnet's"
    )
    parser.add_argument("--mode", default="assembled", choices=("assembled", "paged"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=steps_of, default=[0, 1, 2, 0])
    parser.add_argument("--seconds", type=float, default=15.0, help="of each step")
    parser.add_argument("--requests", type=int, default=400, help="for the overhead")
    parser.add_argument("--switches", type=int, default=300)
    parser.add_argument("--cold", type=int, default=20, help="cold switches")
    parser.add_argument("--scenarios", type=int, default=3, help="runs of the scenario")
    parser.add_argument("--only", help="names of the parts to run, with commas between them")
    parser.add_argument("--out", type=Path, default=Path("build/serve"))
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.memory_of:
        print(memory_of(edge.load(args.bundle), *args.memory_of))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        if args.bundle is None:
            from tests.edge.serving.tiny_bundle import write_bundle

            args.bundle = Path(folder) / "bundle"
            write_bundle(args.bundle, depth=8, width=192, size=14)
        results = measure(args)
    args.out.mkdir(parents=True, exist_ok=True)
    for path in filter(None, (args.out / "serve.json", args.json)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
    missed = [name for name, figures in results.items() if not figures["met"]]
    print(f"bars missed: {', '.join(missed) or 'none'}")
    return int(bool(missed))


def measure(args: Any) -> dict[str, dict[str, Any]]:
    bundle, table = load_inputs(args)
    inputs = random_inputs(bundle, 1)
    steps = pool_of(bundle, args, args.threads)
    results: dict[str, dict[str, Any]] = {}
    wanted = args.only.split(",") if args.only else None

    def part(name: str, function: Any) -> None:
        if wanted is None or name.split(",")[0] in wanted:
            results[name] = function()
            is_scenario = name.startswith("scenario")
            report_scenario(results[name]) if is_scenario else report(name, results[name])

    def overhead() -> dict[str, Any]:
        with serve(bundle, steps[-1:], args, ServingOptions()) as runtime:
            return measure_overhead(runtime, inputs, args.requests)

    def scenario(threads: int) -> dict[str, Any]:
        pool = pool_of(bundle, args, threads)
        names = [f"trace-{threads}-threads-{i + 1}" for i in range(args.scenarios)]
        runs = [one_scenario(name, pool, threads) for name in names]
        return {"threads": threads, "runs": runs, "met": all(run["met"] for run in runs)}

    def one_scenario(name: str, pool: Sequence[Step], threads: int) -> dict[str, Any]:
        found = run_scenario(
            *(bundle, table, pool, inputs),
            budget_ms=args.budget_ms or BUDGET * pool[-1].latency_ms,
            **{"mode": args.mode, "steps": args.steps, "seconds": args.seconds},
            **{"threads": threads, "out": args.out, "name": name},
        )
        return found | {
            "met": found["failed_requests"] == 0
            and found["best_returned"]
            and all(
                (step["over_s"] <= EXCESS_BAR_S or step["told"])
                and step["n_switches"] <= SWITCHES_BAR
                for step in found["steps"]
            )
        }

    part("queries", measure_queries)
    part("overhead", overhead)
    part("switches", lambda: measure_switches(bundle, steps, inputs, args))
    shares = {"a core left": max(1, CORES - 1), "no core left": CORES}
    for mode in ("assembled", "paged"):
        for name, threads in shares.items():
            cold = partial(measure_cold, bundle, steps, inputs, args, threads, mode)
            part(f"cold, {mode}, {name}", cold)
    part("memory", lambda: measure_memory(bundle, steps[-1], args))
    for name, threads in shares.items():
        part(f"scenario, {name}", partial(scenario, threads))
    return results


if __name__ == "__main__":
    sys.exit(main())
