"""Sections of benchmarks/RESULTS.md about a device: its tables, searches and changing loads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.results_row import Row


def busy_profile(result: Any) -> Iterable[Row]:
    """Errors of tables made beside other processes."""
    unusable = 0
    for found in result:
        for kind in ("loop", "matmul"):
            table = found[kind]
            unusable += bool(table["problem"])
            told = f"{table['median']:.1%}, {table['p90']:.1%}"
            yield Row(
                f"{found['bundle']}, beside a process of the kind '{kind}' for each core: median "
                "and 90th-percentile error of a subnet's share of the original's latency",
                f"marked unusable ({told})" if table["problem"] else told,
                "≤ 5 %, ≤ 15 %, or marked unusable",
                met=bool(table["problem"]) or (table["median"] <= 0.05 and table["p90"] <= 0.15),
            )
    n = 2 * len(result)
    yield Row(
        "tables marked unusable", f"{unusable} of {n}", "≤ one in six", met=unusable <= -(-n // 6)
    )


def search_time(result: Any) -> Iterable[Row]:
    """Searches in limited time."""
    least = result["unmeasured"]["scores"]
    for run in result["runs"]:
        late_s = max(0.1 * run["time_budget_s"], result["one_evaluation_s"])
        yield Row(
            f"{run['time_budget_s']:g} s: time that the search took ({run['subnets']} subnets)",
            f"{run['took_s']:.2f} s",
            f"≤ {run['time_budget_s'] + late_s:.1f} s",
            met=run["took_s"] <= run["time_budget_s"] + late_s,
        )
        for budget, score, low in zip(result["budgets"], run["scores"], least, strict=True):
            yield Row(
                f"{run['time_budget_s']:g} s: {result['score']} of the subnet found at {budget} %; "
                "of the additive best",
                f"{score:.4f}; {low:.4f}",
                "not below",
                met=score >= low - 0.002,
            )


def ordered_table(result: Any) -> Iterable[Row]:
    """Time of a query with three limits."""
    yield Row(
        f"three limits, {result['entries']:,} entries of which none dominates another: time of a "
        "query, of a bisection",
        f"{result['ratio']:.1f} times ({result['query_us']:.2f} µs)",
        f"≤ {result['bar']:g}",
        paper="43 µs at 480 entries (AdaScale)",
        met=result["ratio"] <= result["bar"],
    )


def forecast(result: Any) -> Iterable[Row]:
    """Errors of the forecast of the load."""
    yield Row(
        "traces and horizons on which the forecast's error is at most the last value's",
        *(f"{result['not_worse']:.0%}", "≥ 80 %"),
        met=result["not_worse"] >= 0.8,
    )
    yield Row(
        "error of the forecast, of the last value's: mean; worst",
        *(f"{result['mean']:.2f}; {result['worst']:.2f}", "≤ 0.9; ≤ 1.05"),
        met=result["mean"] <= 0.9 and result["worst"] <= 1.05,
    )
    for name, rows in result["traces"].items():
        ratios = ", ".join(f"{row['ratio']:.2f}" for row in rows.values())
        yield Row(f"{name}: the same {', '.join(rows)} ahead", ratios)


def contexts_simulated(result: Any) -> Iterable[Row]:
    """Looking ahead against reacting, on a simulated device."""
    for context, found in result["contexts"].items():
        bar = 0.7 if context in ("ramps", "bursts") else 1.0
        yield Row(
            f"{context}: requests over the budget with the forecast, of those of the reactive "
            "policy; accuracy gained; switches a change of load",
            f"{found['over_ratio']:.2f}; {100 * found['accuracy_gained']:+.2f} points; "
            f"{found['forecast']['switches_a_change']:.2f}",
            f"≤ {bar:g}; ≥ -0.5; ≤ 2",
            met=found["met"],
        )


def contexts(result: Any) -> Iterable[Row]:
    """Adaptive serving against the original alone, under the same load."""
    for context, found in result["contexts"].items():
        over = ", ".join(
            f"{way} {found[way]['over']:.1%}" for way in ("fixed", "reactive", "forecast")
        )
        yield Row(
            f"{context}: mean latency, of the original's; points of accuracy lost",
            f"{found['latency']:.2f}; {100 * found['accuracy_lost']:.2f}",
            "≤ 0.4; ≤ 3",
            paper="0.40; 5.2 (AdaScale)",
            met=found["met"],
        )
        yield Row(f"{context}: requests over the budget", over)
