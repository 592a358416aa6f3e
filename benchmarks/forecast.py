"""Record the load index under named loads, and compare its forecast with the last value.

    python benchmarks/forecast.py --out results/ [--json FILE]

Traces are recorded first, ten minutes of each load at two readings a second, and kept in
`traces/` of the folder; a trace that is there already is not recorded again. Each is then
replayed: at each reading the forecast 1, 2 and 5 s ahead is compared with what came, and so is the
last value. Bars: the forecast's mean error is at most that of the last value on 80 % of the traces
and horizons, 0.9 times in the mean, and above 1.05 times on none.

The machine should be otherwise idle.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.changing_load import LOADS, pieces_of, running
from fxelastic import edge
from fxelastic.edge.monitoring.forecast import Forecast

INTERVAL_S, AHEAD_S = 0.5, (1, 2, 5)
SHARE_BAR, MEAN_BAR, WORST_BAR = 0.8, 0.9, 1.05


def record(name: str, seconds: float, seed: int) -> dict[str, Any]:
    """The load index under a load."""
    monitor = edge.ResourceMonitor()
    monitor.read()
    values = []
    with running(pieces_of(name, seconds, seed)):
        begin_s = time.monotonic()
        for i in range(1, int(seconds / INTERVAL_S) + 1):
            time.sleep(max(0.0, begin_s + i * INTERVAL_S - time.monotonic()))
            values.append(round(monitor.read().load_index, 4))
    return {"name": name, "seed": seed, "interval_s": INTERVAL_S, "load_index": values}


def errors(trace: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The mean absolute errors of a trace by seconds ahead, and their ratio."""
    values, interval_s = trace["load_index"], trace["interval_s"]
    steps = {ahead: round(ahead / interval_s) for ahead in AHEAD_S}
    forecast = Forecast(tuple(steps.values()), bounds=(0.0, 1.0))
    own: dict[int, list[float]] = {ahead: [] for ahead in AHEAD_S}
    last: dict[int, list[float]] = {ahead: [] for ahead in AHEAD_S}
    for i, value in enumerate(values):
        forecast.add(value)
        for ahead, n in steps.items():
            if i + n < len(values):
                own[ahead].append(abs(float(forecast.at(n) or 0.0) - values[i + n]))
                last[ahead].append(abs(value - values[i + n]))
    found = {}
    for ahead in AHEAD_S:
        ours, theirs = statistics.fmean(own[ahead]), statistics.fmean(last[ahead])
        ratio = ours / theirs if theirs else 1.0
        found[f"{ahead} s"] = {"forecast": ours, "last_value": theirs, "ratio": ratio}
    return found


def judged(traces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The errors of all traces, and whether the bars are met."""
    by_name = {trace["name"]: errors(trace) for trace in traces}
    ratios = [row["ratio"] for found in by_name.values() for row in found.values()]
    share = sum(ratio <= 1.0 for ratio in ratios) / len(ratios)
    mean, worst = statistics.fmean(ratios), max(ratios)
    met = share >= SHARE_BAR and mean <= MEAN_BAR and worst <= WORST_BAR
    return {"traces": by_name, "not_worse": share, "mean": mean, "worst": worst, "met": met}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS))
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/forecast"))
    parser.add_argument("--json", type=Path, help="file of the figures (default: in --out)")
    args = parser.parse_args(argv)
    folder = args.out / "traces"
    folder.mkdir(parents=True, exist_ok=True)
    traces = []
    for name in args.loads:
        path = folder / f"{name}.json"
        if not path.exists():
            print(f"recording {name} for {args.seconds:g} s", file=sys.stderr, flush=True)
            path.write_text(json.dumps(record(name, args.seconds, args.seed)) + "\n")
        traces.append(json.loads(path.read_text()))
    found = judged(traces)
    (args.json or args.out / "forecast.json").write_text(json.dumps(found, indent=1) + "\n")
    print("load      ahead  forecast  last value  ratio")
    for name, rows in found["traces"].items():
        for ahead, row in rows.items():
            print(
                f"{name:8}  {ahead:>5}  {row['forecast']:8.4f}  {row['last_value']:10.4f}  "
                f"{row['ratio']:5.2f}"
            )
    print(
        f"not worse on {found['not_worse']:.0%}, mean {found['mean']:.3f}, worst "
        f"{found['worst']:.3f}: {'met' if found['met'] else 'missed'}"
    )
    return int(not found["met"])


if __name__ == "__main__":
    sys.exit(main())
