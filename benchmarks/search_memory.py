"""Measure the memory that profiling and searching take, and compare it with their limits.

    python benchmarks/trained_bundle.py build/glyphs     (once)
    python benchmarks/make_bundle.py mobilenet_v2 build/mobilenet_v2     (once)
    python benchmarks/search_memory.py build/glyphs --larger build/mobilenet_v2 [--out FILE]

Each runs in a separate process, which first loads its inputs and returns freed memory to the
system. Bar: at its peak, the process has grown by no more than the sum of `memory_bytes`,
`cache_bytes` and the memory of one batch. The memory of a batch is the growth when existing
sessions of the original's branches run on it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from fxelastic.edge.memory import give_back
from fxelastic.edge.synthetic_inputs import random_inputs

MIB = 2**20
BATCH = 50
#: The task, and the MiB allowed for sessions and for features.
RUNS = (
    *(("profile", memory, 0) for memory in (32, 64, 128)),
    *(("search", memory, memory) for memory in (24, 32, 64)),
)
LARGER = tuple(("profile", memory, 0) for memory in (64, 128, 256))


def main() -> int:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--larger", type=Path, help="the bundle of a larger model")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        what, memory, cache = args.run
        figures = grown(args.folder, args.larger, what, int(memory) * MIB, int(cache) * MIB)
        print(json.dumps(figures))
        return 0
    make_table(args.folder)
    rows = []
    runs = [(run, None) for run in RUNS] + [(run, args.larger) for run in LARGER if args.larger]
    for (what, memory, cache), larger in runs:
        command = [sys.executable, __file__, str(args.folder), "--run", what, str(memory)]
        command += [str(cache), *(("--larger", str(larger)) if larger else ())]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        row = {"what": what, "memory_mib": memory, "cache_mib": cache, **json.loads(done.stdout)}
        row["model"] = "larger" if larger else "small"
        row["met"] = row["grown_mib"] <= memory + cache + row["batch_mib"]
        rows.append(row)
        print(
            f"{what}, {row['model']} model: allowed {memory} MiB for sessions and {cache} MiB for "
            f"features, one batch takes {row['batch_mib']:.1f} MiB; grew by "
            f"{row['grown_mib']:.1f} MiB from {row['before_mib']:.0f} MiB "
            f"({'met' if row['met'] else 'MISSED'})",
            flush=True,
        )
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    return 0 if all(row["met"] for row in rows) else 1


def make_table(folder: Path) -> None:
    """Make the latency table if it is missing."""
    from fxelastic import edge

    if not (folder / "latency.json").exists():
        edge.profile(edge.load(folder / "bundle"), threads=1).save(folder / "latency.json")


def grown(
    folder: Path, larger: Path | None, what: str, memory_bytes: int, cache_bytes: int
) -> dict[str, Any]:
    """The growth of this process at its peak."""
    import numpy as np

    from fxelastic import edge

    # Their modules are imported when they are first named.
    profile, search = edge.profile, edge.search
    bundle = edge.load(folder / "bundle")
    with np.load(folder / "search.npz") as file:
        x, targets = file["x"], file["targets"]
    table = edge.LatencyTable.load(folder / "latency.json")
    inputs = {bundle.inputs[0].name: x[: 1 if what == "profile" else BATCH]}
    if larger is not None:
        bundle = edge.load(larger)
        inputs = random_inputs(bundle, 1)
    batch_mib = of_one_batch(bundle, inputs)
    before = forget_peak()
    if what == "profile":
        profile(bundle, threads=1, time_budget_s=30, memory_bytes=memory_bytes)
    else:
        search(
            bundle,
            table,
            (x, targets),
            budget=["50%", "60%", "70%"],
            max_subnets=120,
            batch_size=BATCH,
            memory_bytes=memory_bytes,
            cache_bytes=cache_bytes,
            threads=1,
        )
    return {
        "before_mib": before,
        "grown_mib": status("VmHWM") - before,
        "batch_mib": batch_mib,
    }


def of_one_batch(bundle: Any, inputs: dict[str, Any]) -> float:
    """The growth of this process when the original runs on a batch, in MiB."""
    from fxelastic import edge

    with edge.Executor(bundle, 1, shared_arena=True) as executor:
        for branch in bundle.space.original:
            if bundle.segment(branch).outputs:
                executor.session(branch)
        before = forget_peak()
        executor.run(bundle.space.original, inputs)
        return status("VmHWM") - before


def forget_peak() -> float:
    """Reset the peak, and return the memory in use, in MiB."""
    give_back()
    # Resets the peak: the memory in use may be below it.
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(field: str) -> float:
    """A figure of this process's memory, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{field}:")]
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    raise SystemExit(main())
