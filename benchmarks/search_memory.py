"""Measure the memory that profiling and searching take, against what they were allowed.

    python benchmarks/trained_bundle.py build/glyphs     (once)
    python benchmarks/search_memory.py build/glyphs [--out FILE]

Each in a process of its own: first the original is run on one batch, then the resident memory is
read, then it profiles or searches. Bar: at its peak the process has grown by no more than
`memory_bytes` and `cache_bytes` together. What one batch takes is in the memory that was read.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

MIB = 2**20
BATCH = 50
#: What is done, and the MiB allowed to sessions' weights and to features.
RUNS = (("profile", 128, 0), ("search", 64, 64), ("search", 32, 32))


def main() -> int:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        what, memory, cache = args.run
        print(json.dumps(grown(args.folder, what, int(memory) * MIB, int(cache) * MIB)))
        return 0
    make_table(args.folder)
    rows = []
    for what, memory, cache in RUNS:
        command = [sys.executable, __file__, str(args.folder), "--run", what, str(memory)]
        done = subprocess.run([*command, str(cache)], capture_output=True, text=True, check=True)
        row = {"what": what, "memory_mib": memory, "cache_mib": cache, **json.loads(done.stdout)}
        row["met"] = row["grown_mib"] <= memory + cache
        rows.append(row)
        print(
            f"{what}: allowed {memory} MiB for weights and {cache} MiB for features; grew by "
            f"{row['grown_mib']:.0f} MiB from {row['before_mib']:.0f} MiB "
            f"({'met' if row['met'] else 'MISSED'})",
            flush=True,
        )
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    return 0 if all(row["met"] for row in rows) else 1


def make_table(folder: Path) -> None:
    """Measure the device where that was not done."""
    from fxelastic import edge

    if not (folder / "latency.json").exists():
        edge.profile(edge.load(folder / "bundle"), threads=1).save(folder / "latency.json")


def grown(folder: Path, what: str, memory_bytes: int, cache_bytes: int) -> dict[str, Any]:
    """By how much this process grows at its peak."""
    import numpy as np

    from fxelastic import edge

    bundle = edge.load(folder / "bundle")
    with np.load(folder / "search.npz") as file:
        x, targets = file["x"], file["targets"]
    with edge.Executor(bundle, 1, shared_arena=True) as executor:
        executor.run(bundle.space.original, {bundle.inputs[0].name: x[:BATCH]})
    table = edge.LatencyTable.load(folder / "latency.json")
    before = status("VmRSS")
    # The peak so far is forgotten: what was read may be less than it.
    Path("/proc/self/clear_refs").write_text("5")
    if what == "profile":
        edge.profile(bundle, threads=1, time_budget_s=30, memory_bytes=memory_bytes)
    else:
        edge.search(
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
    return {"before_mib": before, "grown_mib": status("VmHWM") - before}


def status(field: str) -> float:
    """A figure of this process's memory, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{field}:")]
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    raise SystemExit(main())
