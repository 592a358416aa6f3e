"""Measure serving: switches, overhead, memory, and how it follows a changing load.

    python benchmarks/serve.py BUNDLE --pool pool.json --table table.json --out results/

Without a bundle, one is made: a residual network of convolutions with random weights, whose pool
is measured here and whose "accuracy" grows with latency. Prints, in one run, as
ratios or with bars:

- the time of a query of a pool of 10,000 entries (bar: 43 µs at the 99th percentile; aim: 5 µs);
- the time that the runtime adds to a call of the session (bar: 1 %);
- the time from a decision to the next request on the new subnet, if it is in memory (bar: 10 ms
  at the 99th percentile);
- how much a cold switch, to a prepared subnet that is not in memory, slows requests down, in both
  modes, if requests use all cores but one and if they use all (bar: 5 % at the 99th percentile,
  with one cold switch in 600 requests); and how much slower the request is that runs while a
  session is made (`added_met`, no bar);
- the same while another process prepares a subnet that was not prepared ahead (no bar);
- peak memory in paged mode against the subnet as one ONNX model (bar: 1.10);
- a scenario of 0, 1, 2, 0 competing processes (bars: no failed request; over the budget for at most
  1 s, or reported; at most 2 switches a step; the best subnet returns), several times, with plots,
  if requests use all cores but one and if they use all. In the second case, other work of the
  machine slows requests, too; the results show this time.

The machine should be otherwise idle: the scenario reads absolute latencies.
"""

from __future__ import annotations

import argparse
import json
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
from benchmarks.serve_scenario import run_scenario
from fxelastic import edge
from fxelastic.edge.candidates import Candidate
from fxelastic.edge.serving.options import Serving
from fxelastic.edge.serving.policy import Decision, Situation
from fxelastic.edge.serving.preload import Preload
from fxelastic.edge.serving.runtime import Runtime
from fxelastic.edge.serving.serve import loader_of
from fxelastic.edge.synthetic_inputs import random_inputs
from fxelastic.spec import Arch
from fxelastic.spec.pareto import ParetoTable

QUERY_BAR_US, OVERHEAD_BAR, SWITCH_BAR_MS, COLD_BAR, MEMORY_BAR = 43.0, 0.01, 10.0, 0.05, 1.10
EXCESS_BAR_S, SWITCHES_BAR = 1.0, 2
CORES = os.cpu_count() or 1
# Of the best subnet's latency. Shared machines change their speed for seconds at a time: without a
# load, medians of half a second were 0.92 to 1.24 times the earlier measurement.
BUDGET = 1.3
# The bar applies to the 99th percentile; the last one is only shown.
QUANTILES = {"added": 0.5, "added_p95": 0.95, "added_p99": 0.99, "added_p999": 0.999}
COLD_NAMES = ("added", "added_p95", "added_p99")


class Chosen:
    """A policy that always chooses its target."""

    def __init__(self) -> None:
        self.target: Candidate | None = None

    def decide(self, situation: Situation) -> Decision:
        target = self.target or situation.current
        return Decision(target, True, target.latency_ms, "chosen")


def quantile(values: Sequence[float], q: float) -> float:
    return float(np.quantile(np.asarray(values), q))


def measure_queries(n_entries: int = 10_000, n_queries: int = 20_000) -> dict[str, Any]:
    """The time of `best` in a table in which no entry beats another."""
    rng = random.Random(0)
    table = ParetoTable(
        Candidate(Arch((f"a{i}",)), 1.0 + i, i / n_entries) for i in range(n_entries)
    )
    table.best(1.0)
    microseconds = []
    for _ in range(n_queries):
        limit_ms = rng.uniform(0, n_entries)
        begin = time.perf_counter_ns()
        table.best(limit_ms)
        microseconds.append((time.perf_counter_ns() - begin) / 1e3)
    p99 = quantile(microseconds, 0.99)
    return {"p50_us": quantile(microseconds, 0.5), "p99_us": p99, "met": p99 <= QUERY_BAR_US}


def measure_overhead(runtime: Runtime, inputs: dict[str, Any], n: int) -> dict[str, Any]:
    """Time that the runtime adds to a request; it and its own session are called alternately."""
    subnet = runtime._cache.acquire()
    direct = subnet.loaded.run
    direct_ms, served_ms = [], []
    for i in range(2 * n):
        begin = time.perf_counter()
        if i % 2:
            direct(inputs)
            direct_ms.append(1e3 * (time.perf_counter() - begin))
        else:
            runtime.infer(**inputs)
            served_ms.append(1e3 * (time.perf_counter() - begin))
    runtime._cache.release(subnet)
    # Low quantiles: the machine's other work hides a difference of medians.
    low = [quantile(values, 0.25) for values in (direct_ms, served_ms)]
    added = low[1] / low[0] - 1
    own_us = own_work_us(runtime, inputs)
    # The machine's noise may hide or feign a difference of two latencies.
    return {
        "direct_ms": low[0],
        "served_ms": low[1],
        "added": added,
        "own_us": own_us,
        "own_share": own_us / (1e3 * low[0]),
        "met": own_us / (1e3 * low[0]) <= OVERHEAD_BAR,
    }


def own_work_us(runtime: Runtime, inputs: dict[str, Any], n: int = 5_000) -> float:
    """The runtime's own work for a request: its time with a session that takes no time."""
    subnet = runtime._cache.acquire()
    loaded, outputs = subnet.loaded, subnet.loaded.run(inputs)

    class Instant:
        def run(self, inputs: Any) -> Any:
            return outputs

        def close(self) -> None:
            pass

    subnet.loaded = Instant()
    begin = time.perf_counter()
    for _ in range(n):
        runtime.infer(**inputs)
    microseconds = 1e6 * (time.perf_counter() - begin) / n
    subnet.loaded = loaded
    runtime._cache.release(subnet)
    return microseconds


def measure_switches(
    bundle: Any, steps: Sequence[Candidate], inputs: Any, args: Any
) -> dict[str, Any]:
    """Time from a decision to the next request, for two subnets that are in memory."""
    policy = Chosen()
    pair = [steps[0], steps[-1]]
    options = Serving(policy=policy, preload=Preload(ratios=(), limit=9), tick_s=1e6)
    milliseconds = []
    with serve(bundle, pair, args, options) as runtime:
        while runtime.status().resident < 2:
            time.sleep(0.01)
        for i in range(args.switches):
            policy.target = pair[i % 2]
            begin = time.perf_counter()
            runtime._controller.tick()
            subnet = runtime._cache.acquire()
            milliseconds.append(1e3 * (time.perf_counter() - begin))
            assert subnet.candidate.arch == policy.target.arch
            runtime._cache.release(subnet)
            runtime.infer(**inputs)
    p99 = quantile(milliseconds, 0.99)
    return {"p50_ms": quantile(milliseconds, 0.5), "p99_ms": p99, "met": p99 <= SWITCH_BAR_MS}


class Named:
    """Keeps the subnets of a list in memory, and no others."""

    def __init__(self, *names: Candidate) -> None:
        self.names = names

    def candidates(
        self,
        table: ParetoTable[Candidate],
        current: Candidate,
        budget_ms: float,
        limit_ms: float,
        here: Any = (),
    ) -> tuple[Candidate, ...]:
        return tuple(name for name in self.names if name.arch != current.arch)


class Request(NamedTuple):
    """A request: its subnet, its latency, and when it ran."""

    arch: Any
    latency_ms: float
    begin_s: float = 0.0
    end_s: float = 0.0


def measure_cold(
    bundle: Any, steps: Sequence[Candidate], inputs: Any, args: Any, threads: int, mode: str
) -> dict[str, Any]:
    """How much a cold switch slows requests down.

    In each round the quickest subnet serves, then a better one, then the quickest again. In a cold
    round the better one is not in memory at its switch; in the paired warm round, it is.
    All requests of a round count, including the first ones on a new session. They are compared with
    the usual latency of their subnet.
    """
    policy, preload = Chosen(), Named()
    options = Serving(policy=policy, preload=preload, tick_s=0.01)  # type: ignore[arg-type]
    home, others = steps[0], steps[1:]
    opened: list[tuple[float, float]] = []

    def ask() -> Request:
        begin_s = time.perf_counter()
        reply = runtime.infer(**inputs)
        return Request(reply.arch, reply.latency_ms, begin_s, time.perf_counter())

    def want(step: Candidate) -> None:
        policy.target = step
        runtime._hurry()

    def one_round(target: Candidate, *, warm: bool) -> list[Request]:
        preload.names = (home, target) if warm else (home,)
        want(home)
        while ask().arch != home.arch or (target.arch in runtime._cache.archs) != warm:
            runtime._hurry()
        requests = []
        for i in range(args.round):
            if i in (args.round // 4, 3 * args.round // 4):
                want(target if i < args.round // 2 else home)
            requests.append(ask())
        return requests

    with serve(bundle, steps, args, options, threads, mode) as runtime:
        pairs = []
        for i in range(args.cold):
            target = others[i % len(others)]
            # Slow seconds of the machine then affect both kinds alike.
            first = bool(i % 2)
            if not i:
                one_round(target, warm=True)
                note_openings(runtime._loader, opened)
            found = {warm: one_round(target, warm=warm) for warm in (first, not first)}
            pairs.append((found[False], found[True]))
    return {"threads": threads} | slower(pairs, opened)


def measure_unprepared(
    bundle: Any, steps: Sequence[Candidate], inputs: Any, args: Any, threads: int
) -> dict[str, Any]:
    """How much slower requests are while another process prepares a subnet; there is no bar."""
    going: list[Request] = []
    quiet: list[Request] = []
    seconds = []
    for target in steps[1:5]:
        policy = Chosen()
        with tempfile.TemporaryDirectory() as folder:
            options = Serving(policy=policy, preload=Named(), prepared=folder)  # type: ignore[arg-type]
            pool = [steps[0], target]
            policy.target = pool[0]
            with serve(
                bundle, pool, args, options, threads, "assembled", budget_ms=1e-3
            ) as runtime:
                begin_s = time.perf_counter()
                policy.target = target
                runtime._hurry()
                while (reply := runtime.infer(**inputs)).arch != target.arch:
                    going.append(Request(reply.arch, reply.latency_ms))
                seconds.append(time.perf_counter() - begin_s)
                policy.target = pool[0]
                runtime._hurry()
                while runtime.infer(**inputs).arch != pool[0].arch:
                    pass
                n = max(100, len(going) // len(seconds))
                quiet += [Request(0, runtime.infer(**inputs).latency_ms) for _ in range(n)]
    beside, alone = ([request.latency_ms for request in rows] for rows in (going, quiet))
    return {
        "threads": threads,
        "until_switched_s": statistics.median(seconds),
        "n_preparing": len(going),
        **{k: quantile(beside, q) / quantile(alone, q) - 1 for k, q in QUANTILES.items()},
    }


def note_openings(loader: Any, opened: list[tuple[float, float]]) -> None:
    """Record the times at which a loader begins and ends making sessions."""

    def noted(open_session: Callable[[Path], Any], path: Path) -> Any:
        begin_s = time.perf_counter()
        session = open_session(path)
        opened.append((begin_s, time.perf_counter()))
        return session

    for name in ("open_branch", "open_prepared"):
        if hasattr(loader, name):
            setattr(loader, name, partial(noted, getattr(loader, name)))


Pair = tuple[Sequence[Request], Sequence[Request]]


def slower(pairs: Sequence[Pair], opened: Sequence[tuple[float, float]] = ()) -> dict[str, Any]:
    """How much slower the requests of cold rounds were than the requests of paired warm rounds.

    The bar applies to the median over the pairs of rounds, so that it does not depend on a few
    seconds in which the machine itself is slow. The figure of all rounds together is shown, too.
    """
    ratios = [(relative(cold, warm), relative(warm, warm)) for cold, warm in pairs]

    def added(cold: Sequence[float], warm: Sequence[float], q: float) -> float:
        return quantile(cold, q) / quantile(warm, q) - 1

    whole = [[ratio for pair in ratios for ratio in pair[i]] for i in (0, 1)]
    usual = {
        name: statistics.median(added(cold, warm, q) for cold, warm in ratios)
        for name, q in QUANTILES.items()
    }
    return {
        "usual_ms": statistics.median(row.latency_ms for _, warm in pairs for row in warm),
        "n_switches": len(pairs),
        "n_requests": sum(len(cold) for cold, _ in pairs),
        "openings": len(opened),
        "opening_ms": 1e3 * statistics.median(end_s - begin_s for begin_s, end_s in opened)
        if opened
        else None,
        **worst_met(pairs, opened),
        **usual,
        **{f"all_{name}": added(whole[0], whole[1], q) for name, q in QUANTILES.items()},
        "met": max(usual[name] for name in COLD_NAMES) <= COLD_BAR,
    }


def relative(requests: Sequence[Request], usual: Sequence[Request]) -> list[float]:
    """Latencies, each divided by the usual latency of its subnet."""
    medians = {
        arch: statistics.median(row.latency_ms for row in usual if row.arch == arch)
        for arch in {row.arch for row in usual}
    }
    return [row.latency_ms / medians[row.arch] for row in requests]


def worst_met(pairs: Sequence[Pair], opened: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """How much slower than usual the slowest request was during the making of each session."""
    worst = []
    for cold, warm in pairs:
        times = zip(cold, relative(cold, warm), strict=True)
        met = [
            ratio
            for row, ratio in times
            if any(begin_s < row.end_s and end_s > row.begin_s for begin_s, end_s in opened)
        ]
        worst += [max(met)] if met else []
    return {"added_met": statistics.median(worst) - 1 if worst else None}


def measure_memory(bundle: Any, step: Candidate, args: Any) -> dict[str, Any]:
    """Peak resident memory of a process that serves a subnet, in both modes."""
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
    """Peak resident bytes of this process, serving in one mode."""
    inputs = random_inputs(bundle, 1)
    if way == "paged":
        entry = Candidate(Arch.parse(what), 1.0, 1.0)
        with edge.serve(bundle, None, [entry], budget_ms=1e6, mode="paged", threads=2) as runtime:
            for _ in range(n):
                runtime(**inputs)
    else:
        import onnxruntime as ort

        # Imports all modules that the runtime imports.
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
    steps: Sequence[Candidate],
    args: Any,
    options: Serving,
    threads: int = 0,
    mode: str = "",
    budget_ms: float = 1e6,
) -> Runtime:
    return edge.serve(
        bundle,
        args.latencies,
        steps,
        budget_ms=budget_ms,
        mode=mode or args.mode,
        threads=threads or args.threads,
        options=options,
    )


def measured_pool(
    bundle: Any, mode: str, threads: int, n: int = 12, rounds: int = 40
) -> list[Candidate]:
    """A stand-in for a pool: sampled subnets, timed here; the slower, the more "accurate"."""
    inputs = random_inputs(bundle, 1)
    archs = list(dict.fromkeys([bundle.space.original, *bundle.space.sample(n, seed=0)]))[:n]
    loader = loader_of(bundle, mode, options=Serving(threads=threads))
    executables = [loader.load(arch, urgent=True) for arch in archs]
    milliseconds: list[list[float]] = [[] for _ in archs]
    # Round by round: the machine's other work then slows all of them.
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
    return [Candidate(arch, ms, ms / most_ms) for arch, ms in zip(archs, medians, strict=True)]


def load_inputs(args: Any) -> tuple[Any, Any]:
    """The bundle, and its table if there is one."""
    bundle = edge.load(args.bundle)
    table = None
    if args.table:
        from fxelastic.spec.latency_table import LatencyTable

        table = LatencyTable.load(args.table)
    args.latencies = table
    return bundle, table


def pool_of(bundle: Any, args: Any, threads: int) -> Sequence[Candidate]:
    """The given pool; without one, a pool that is measured with this number of threads."""
    if args.pool:
        from fxelastic.edge.pool import SubnetPool

        steps = ParetoTable(map(Candidate.of, SubnetPool.load(args.pool))).frontier
    else:
        steps = ParetoTable(measured_pool(bundle, args.mode, threads)).frontier
    told = ", ".join(f"{step.latency_ms:.2f}" for step in steps)
    print(f"{bundle}, {threads} threads; pool: {told} ms")
    for mode in ("assembled", "paged"):
        done = edge.prepare(bundle, steps, mode=mode)
        print(
            f"{done.n_made} prepared, {done.n_ready} ready in {done.seconds:.1f} s, {mode}; "
            f"{done.size_bytes / 2**20:.0f} MiB"
        )
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
    parser.add_argument("--seconds", type=float, default=15.0, help="seconds of each step")
    parser.add_argument("--requests", type=int, default=400, help="requests for the overhead")
    parser.add_argument("--switches", type=int, default=300)
    parser.add_argument("--cold", type=int, default=12, help="cold switches")
    parser.add_argument("--round", type=int, default=600, help="requests of each cold switch")
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
    missed = [name for name, figures in results.items() if not figures.get("met", True)]
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
        with serve(bundle, steps[-1:], args, Serving()) as runtime:
            return measure_overhead(runtime, inputs, args.requests)

    def scenario(threads: int) -> dict[str, Any]:
        pool = pool_of(bundle, args, threads)
        names = [f"trace-{threads}-threads-{i + 1}" for i in range(args.scenarios)]
        runs = [one_scenario(name, pool, threads) for name in names]
        return {"threads": threads, "runs": runs, "met": all(run["met"] for run in runs)}

    def one_scenario(name: str, pool: Sequence[Candidate], threads: int) -> dict[str, Any]:
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
    for name, threads in shares.items():
        part(
            f"unprepared, {name}",
            partial(measure_unprepared, bundle, steps, inputs, args, threads),
        )
    part("memory", lambda: measure_memory(bundle, steps[-1], args))
    for name, threads in shares.items():
        part(f"scenario, {name}", partial(scenario, threads))
    return results


if __name__ == "__main__":
    sys.exit(main())
