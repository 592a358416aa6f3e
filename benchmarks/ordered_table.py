"""Measure a query with three limits in a table of entries that none dominates.

    python benchmarks/ordered_table.py [--entries 10000] [--out FILE]

The entries lie on a sphere: each is better than any other in the accuracy or in one of three
costs. The time of a query is compared with a bisection among as many numbers in the same run.
Queries are timed in groups of ten; the least of seven repetitions of each group counts, so that
other processes matter little. Bar: 20 times a bisection.
"""

from __future__ import annotations

import argparse
import json
import sys
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from fxelastic.spec import Arch
from fxelastic.spec.pareto import ParetoTable

NAMES = ("latency_ms", "energy_mj", "weight_bytes")
BAR = 20.0


@dataclass(frozen=True)
class Known:
    """An entry."""

    arch: Arch
    accuracy: float
    costs: Mapping[str, float]


def mean_us(call: Callable[[Any], object], items: Sequence[Any], group: int = 10) -> float:
    """The mean time of a call, in µs."""
    total = 0
    for start in range(0, len(items), group):
        times = []
        for _ in range(7):
            begin = perf_counter_ns()
            for item in items[start : start + group]:
                call(item)
            times.append(perf_counter_ns() - begin)
        total += min(times)
    return total / len(items) / 1e3


def main() -> int:
    """Print the times; 1 if the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--entries", type=int, default=10_000, metavar="N")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    points = rng.random((args.entries, 4)) + 0.01
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    table = ParetoTable(
        Known(Arch((f"b{i}@0",)), accuracy, dict(zip(NAMES, [1.5 - x for x in costs], strict=True)))
        for i, (accuracy, *costs) in enumerate(points.tolist())
    )
    queries = [{name: float(rng.uniform(0.5, 1.5)) for name in NAMES} for _ in range(500)]
    column = sorted(entry.costs[NAMES[0]] for entry in table.entries)
    table.best(queries[0])
    bisection = mean_us(lambda query: bisect_right(column, query[NAMES[0]]), queries)
    query = mean_us(table.best, queries)
    ratio = query / bisection
    if args.out is not None:
        figures = {"entries": args.entries, "query_us": query, "ratio": ratio, "bar": BAR}
        args.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"bisection {bisection:.2f} µs, query {query:.2f} µs, {ratio:.1f} times a bisection")
    print("the bar is met" if ratio <= BAR else f"missed: at most {BAR:g} times")
    return int(ratio > BAR)


if __name__ == "__main__":
    sys.exit(main())
