"""Estimate the cache hit rate of branches from the times of their accesses."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from fxelastic.edge.branch_timing import BranchTiming
from fxelastic.edge.monitoring.system_files import SystemFiles
from fxelastic.spec.branch_latency import BranchLatency

# Without the size of the caches from the system; and the most that is written to flush them.
_USUAL_BYTES, _MOST_BYTES = 2**25, 2**26


def measure_hit_rates(
    timing: BranchTiming,
    rows: Mapping[str, BranchLatency],
    n_runs: int,
    until_s: float,
    root: Path = Path("/"),
) -> dict[str, BranchLatency]:
    """The rows with the cache hit rate of each branch.

    A branch runs after the caches were flushed. It then takes longer by the bytes that it otherwise
    finds there, divided by the memory's bandwidth: their share of its traffic is the hit rate. The
    time that this takes is about ``n_runs`` times that of writing 64 MiB for each branch.

    Args:
        timing: Times the branches.
        rows: Their measurements.
        n_runs: The number of runs of each after a flush.
        until_s: When to end, by the stopwatch; later branches have no hit rate.
        root: The root of the file system.

    Source: AdaScale, Eq. 5.
    """
    buffer = np.zeros(flush_bytes(SystemFiles(root)) // 8)
    begin_s = time.perf_counter()
    buffer += 1.0
    buffer.max()
    bytes_per_ms = 3 * buffer.nbytes / max(1e-3, 1e3 * (time.perf_counter() - begin_s))
    found = dict(rows)
    for branch, row in rows.items():
        if timing.watch.wall_s() >= until_s:
            break
        colds = [timing.time_cold(branch, lambda: np.add(buffer, 1.0, out=buffer))]
        colds += [
            timing.time_cold(branch, lambda: np.add(buffer, 1.0, out=buffer))
            for _ in range(n_runs - 1)
        ]
        found[branch] = with_hit_rate(row, sorted(colds), bytes_per_ms)
    return found


def with_hit_rate(row: BranchLatency, colds_ms: list[float], bytes_per_ms: float) -> BranchLatency:
    """A branch's measurements with its hit rate.

    Args:
        row: The measurements.
        colds_ms: The times after a flush, in ascending order.
        bytes_per_ms: The memory's bandwidth.
    """
    traffic = row.weight_bytes + row.activation_bytes
    if not traffic or not colds_ms:
        return row
    cold_ms = colds_ms[len(colds_ms) // 2]
    spread_ms = max(row.high_ms - row.ms, colds_ms[-1] - colds_ms[0])
    share = bytes_per_ms / traffic
    rate = min(1.0, max(0.0, (cold_ms - row.median_ms) * share))
    return replace(row, hit_rate=rate, hit_rate_error=min(1.0, spread_ms * share))


def flush_bytes(files: SystemFiles) -> int:
    """The bytes to write so that nothing else is left in the caches; at most 64 MiB."""
    text = (files.text("sys/devices/system/cpu/cpu0/cache/index3/size") or "").strip()
    units = {"K": 2**10, "M": 2**20}
    known = text[:-1].isdecimal() and text[-1:] in units
    size = 2 * int(text[:-1]) * units[text[-1]] if known else _USUAL_BYTES
    return min(_MOST_BYTES, max(2**20, size))
