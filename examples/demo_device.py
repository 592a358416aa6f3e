"""The demo's device: runs the subnets that a search found, and serves. Imports no torch.

python examples/demo_device.py build/demo measure
python examples/demo_device.py build/demo serve

Slow imports are inside functions, so that Ctrl-C during them is handled.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

THREADS = 1
BATCH = 64  # images in a request: longer than the turns that a system gives to programs
# The number of other programs for each core, and the budget as a share of the most accurate
# subnet's latency.
STEPS = ((0.0, 1.3), (1.0, 1.3), (0.0, 1.3), (0.0, 0.7))
MOST_LOST = 0.1  # of the best accuracy, by a subnet that may serve
_BUSY = """
import signal
signal.signal(signal.SIGINT, signal.SIG_DFL)
import numpy, os
a = numpy.random.default_rng(0).standard_normal((384, 384), dtype=numpy.float32)
parent = os.getppid()
while os.getppid() == parent:
    a @ a
"""


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("what", choices=("measure", "serve"))
    parser.add_argument("--note", action="append", default=[], help="what the report is to say")
    parser.add_argument("--seconds", type=float, default=6.0, help="seconds of each load step")
    args = parser.parse_args()
    try:
        if args.what == "measure":
            measure(args.folder, args.note)
        else:
            serve(args.folder, args.seconds)
    except KeyboardInterrupt:
        return 130
    return 0


def measure(folder: Path, notes: list[str]) -> None:
    """Assemble the winners, time them in turns, and score them on images never used before."""
    import numpy as np

    from fxelastic import edge
    from fxelastic.edge.cascades.costs import expected_costs
    from fxelastic.edge.cascades.entry import CascadeEntry
    from fxelastic.edge.sessions import SessionMaker
    from fxelastic.edge.stopwatch import Stopwatch
    from fxelastic.edge.subnet_timing import SubnetTimer
    from fxelastic.spec import Arch

    bundle = edge.load(folder / "bundle")
    table = edge.LatencyTable.load(folder / "bundle.latency.json")
    search = json.loads((folder / "search.json").read_text())
    found = search["budgets"]
    original = bundle.space.original
    archs = [Arch.parse(row["arch"]) for row in found]
    for row, arch in zip(found, archs, strict=True):
        edge.assemble(bundle, arch, folder / f"subnet-{row['budget_ms']:.3f}ms.onnx")
    with np.load(folder / "test.npz") as file:
        x, targets = file["x"], file["targets"]
    with edge.Executor(bundle, THREADS) as executor:
        # Processor time, if the table was measured with it beside other programs.
        watch = Stopwatch(processor=table.clock == "processor")
        timer = SubnetTimer(executor, {bundle.inputs[0].name: x[:BATCH]}, watch=watch)
        distinct = list(dict.fromkeys([original, *archs]))
        # Rounds are some seconds apart, so that the median ignores brief disturbances.
        rounds = [timer.time(distinct, "assembled", SessionMaker(THREADS)) for _ in range(5)]
        times = {arch: float(np.median([times[arch].ms for times in rounds])) for arch in distinct}
        accuracy = {
            arch: float(
                (executor.run(arch, {bundle.inputs[0].name: x})[0].argmax(1) == targets).mean()
            )
            for arch in distinct
        }
        cascades = []
        for entry in map(CascadeEntry.from_json, search["cascades"]):
            answers = edge.run_cascade(executor, entry.cascade, {bundle.inputs[0].name: x})
            left_at = np.bincount(answers.left_at, minlength=len(entry.cascade.archs)) / len(x)
            expected = expected_costs(table.costs_of("assembled"), entry.cascade, left_at)
            cascades.append(
                {
                    "cascade": entry.cascade.to_json(),
                    "max_loss": entry.max_loss,
                    "bound": entry.bound,
                    "predicted_ms": expected["latency_ms"],
                    "energy_mj": expected["energy_mj"],
                    "accuracy": float((answers[0].argmax(1) == targets).mean()),
                    "coverage": left_at.tolist(),
                }
            )
    whole_ms = table.predict_ms(original)
    costs = table.costs_of("assembled")

    def figures(arch: Arch) -> dict[str, object]:
        return {
            "arch": str(arch),
            "predicted_ms": table.predict_ms(arch),
            "measured_ms": times[arch],
            "energy_mj": costs.predict(arch)["energy_mj"],
            "accuracy": accuracy[arch],
        }

    rows = []
    for row, arch in zip(found, archs, strict=True):
        new = [s for s in bundle.space.specs(arch) if s.kind != "original"]
        rows.append(
            {
                "budget": f"{row['budget_ms'] / whole_ms:.0%}",
                "budget_ms": row["budget_ms"],
                **figures(arch),
                "n_replaced": sum(spec.stop - spec.start for spec in new),
                "n_int8": sum(spec.stop - spec.start for spec in new if spec.kind == "int8"),
            }
        )
    result = {
        "schema": "fxelastic.measured/1",
        "notes": notes,
        "n_blocks": bundle.space.n_blocks,
        "original": figures(original),
        "subnets": rows,
        "cascades": cascades,
    }
    write(folder / "measured.json", json.dumps(result, indent=1).encode())


def serve(folder: Path, seconds: float) -> None:
    """Answer requests one after another, beside other programs and with a smaller budget."""
    import numpy as np

    from fxelastic import edge
    from fxelastic.edge.serving.forecast_policy import ForecastPolicy
    from fxelastic.report.trace import Trace

    bundle = edge.load(folder / "bundle")
    table = edge.LatencyTable.load(folder / "bundle.latency.json")
    pool = edge.SubnetPool.load(folder / "bundle.pool.json")
    with np.load(folder / "test.npz") as file:
        x = file["x"]
    best = pool.pareto[-1]
    # Under load, a slow answer is better than one that is likely to be wrong.
    useful = tuple(entry for entry in pool if entry.accuracy > best.accuracy - MOST_LOST)
    pool = replace(pool, entries=useful)
    best_ms = best.ms
    budget_ms = STEPS[0][1] * best_ms
    edge.prepare(bundle, pool, table)
    temporary = folder / "trace.tmp"
    temporary.unlink(missing_ok=True)
    busy: list[subprocess.Popen[bytes]] = []
    try:
        with Trace(temporary, budget_ms, time.perf_counter()) as trace:
            options = edge.Serving(
                threads=THREADS,
                # Steps of the load are short here, so that it climbs back after a second.
                policy=ForecastPolicy(calm_s=1.0),
                listener=trace.on_event,
                on_tick=trace.on_tick,
            )
            with edge.serve(bundle, table, pool, budget_ms=budget_ms, options=options) as runtime:
                for load, share in STEPS:
                    n_busy = round(load * (os.cpu_count() or 1))
                    _set(busy, n_busy)
                    runtime.budget_ms = share * best_ms
                    smaller = share < STEPS[0][1]
                    name = "a smaller budget" if smaller else f"{n_busy} other programs"
                    trace.phase(name, time.perf_counter())
                    end_s, i = time.perf_counter() + seconds, 0
                    while time.perf_counter() < end_s:
                        runtime(x[i : i + BATCH])
                        i = (i + BATCH) % (len(x) - BATCH)
                    print(f"  {name}: {runtime.status()}", file=sys.stderr)
    finally:
        _set(busy, 0)
    temporary.replace(folder / "trace.jsonl")


def _set(busy: list[subprocess.Popen[bytes]], n: int) -> None:
    """Start or end processes until there are n."""
    while len(busy) < n:
        busy.append(subprocess.Popen([sys.executable, "-c", _BUSY]))
    while len(busy) > n:
        process = busy.pop()
        process.kill()
        process.wait()


def write(path: Path, data: bytes) -> None:
    """Write a file in one step."""
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


if __name__ == "__main__":
    raise SystemExit(main())
