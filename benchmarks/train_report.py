"""The training benchmark's results as text, with its bars."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

TOLERANCE = 1e-9

#: The ways that distilling and tuning must beat; longer distillation is printed for comparison.
COMPARED = ("untrained", "distilled, stage only", "tuned")


def bars(result: dict[str, Any]) -> dict[str, bool]:
    """Whether one result meets each bar."""
    full = result["buckets"]["distilled, tuned"]
    others = [result["buckets"][way] for way in COMPARED if way in result["buckets"]]
    best_everywhere = all(
        mine["mean"] >= theirs[i]["mean"] - TOLERANCE
        for i, mine in enumerate(full)
        if mine["mean"] is not None
        for theirs in others
    )
    lost = lost_points(result)
    before, after = (statistics.mean(result["recalibration"][k]) for k in ("before", "after"))
    return {
        "distil + tune best in every range": best_everywhere,
        "best subnet at 70 %": lost["70%"] <= result["points"][0],
        "best subnet at 50 %": lost["50%"] <= result["points"][1],
        "teacher-forced reaches the chained loss first": time_ratio(result) < 1,
        "recalibration never worse on average": after >= before - TOLERANCE,
    }


def lost_points(result: dict[str, Any]) -> dict[str, float]:
    """Points of test accuracy that the best subnets lose against the original."""
    return {k: 100 * (result["teacher"] - v["test"]) for k, v in result["best"].items()}


def time_ratio(result: dict[str, Any], loss: str = "alone") -> float:
    """Time of teacher-forced distillation to the chained one's final loss, as a share of its time.

    Args:
        result: One result.
        loss: ``alone``, of each branch fed by the model, or ``chained``, of subnets' chains.

    Returns:
        Infinity if the loss is never reached.
    """
    chained, forced = result["curves"]["chained"], result["curves"]["teacher_forced"]
    goal = chained[-1][loss]
    reached = (p["seconds"] for p in forced if p[loss] <= goal)
    return float(next(reached, float("inf")) / chained[-1]["seconds"])


def report(result: dict[str, Any]) -> str:
    """One result as text."""
    epochs = ", ".join(f"{n} of {name}" for name, n in result["epochs"].items())
    lines = [
        "",
        f"{result['model']}, seed {result['seed']}: {result['space']}; epochs: {epochs}; "
        f"{sum(result['seconds'].values()):.0f} s",
        f"original: {result['teacher']:.1%} of the test images",
        "",
        "mean accuracy of random subnets by FLOPs, in % of the original's",
        f"{'':22}" + "".join(_range(b) for b in result["buckets"]["untrained"]),
    ]
    for way, buckets in result["buckets"].items():
        lines.append(f"{way:22}" + "".join(_cell(b["mean"]) for b in buckets))
    lines += ["", "best subnets"]
    for name, best in result["best"].items():
        lost = lost_points(result)[name]
        lines.append(
            f"  at most {name} of the FLOPs: {best['test']:.1%}, {lost:.1f} points lost "
            f"({best['flops']:.0%} of the FLOPs)"
        )
    lines += ["", "branch loss on held-out images, chained (and of branches alone)"]
    for mode, points in result["curves"].items():
        shown = points[:: max(1, len(points) // 7)]
        shown = shown if shown[-1] is points[-1] else [*shown, points[-1]]
        curve = "  ".join(
            f"{p['seconds']:.0f} s {p['chained']:.3f} ({p['alone']:.3f})" for p in shown
        )
        lines.append(f"  {mode:15} {curve}")
    ratios = [f"{time_ratio(result, loss):.2f}" for loss in ("alone", "chained")]
    lines.append(
        "  teacher-forced gets to the chained mode's final loss of branches alone in "
        f"{ratios[0]} of its time (of chains: {ratios[1]})"
    )
    before, after = (statistics.mean(result["recalibration"][k]) for k in ("before", "after"))
    n = result["recalibration"]["layers"]
    lines += [
        "",
        f"recalibration on 512 images: {before:.1%} -> {after:.1%} (up to {n} batch norms)",
        "",
        *(f"  {'met ' if met else 'MISSED'} {name}" for name, met in bars(result).items()),
    ]
    return "\n".join(lines)


def summary(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Mean and spread over the seeds, as ``text`` and ``data``."""
    data: dict[str, Any] = {}
    lines = []
    for name, results in found.items():
        ranges = results[0]["buckets"]
        rows = {
            way: [
                _spread([100 * r["buckets"][way][i]["mean"] for r in results])
                for i, bucket in enumerate(buckets)
                if bucket["mean"] is not None
            ]
            for way, buckets in ranges.items()
        }
        missed = [
            f"seed {r['seed']}: {bar}" for r in results for bar, met in bars(r).items() if not met
        ]
        data[name] = {
            "seeds": [r["seed"] for r in results],
            "teacher": _spread([100 * r["teacher"] for r in results]),
            "buckets": rows,
            "lost_points": {
                k: _spread([lost_points(r)[k] for r in results]) for k in results[0]["best"]
            },
            "time_ratio": {
                loss: _spread([time_ratio(r, loss) for r in results])
                for loss in ("alone", "chained")
            },
            "recalibration": {
                k: _spread([100 * statistics.mean(r["recalibration"][k]) for r in results])
                for k in ("before", "after")
            },
            "seconds": _spread([sum(r["seconds"].values()) for r in results]),
            "missed": missed,
            "met": not missed,
        }
        lines += ["", f"{name}, {len(results)} seeds: mean ± standard deviation"]
        for key in ("teacher", "lost_points", "time_ratio", "recalibration", "seconds"):
            lines.append(f"  {key}: {data[name][key]}")
        for way, cells in rows.items():
            lines.append(f"  {way:22}" + "".join(f"{cell:>16}" for cell in cells))
        lines.append(f"  bars: {'; '.join(missed) if missed else 'all met'}")
    return {"text": "\n".join(lines), "data": data}


def _spread(values: Sequence[float]) -> str:
    if not all(map(math.isfinite, values)):
        return "not reached"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {deviation:.2f}"


def _range(bucket: dict[str, Any]) -> str:
    return f"{100 * bucket['low']:.0f}-{100 * bucket['high']:.0f}".rjust(10)


def _cell(value: float | None) -> str:
    return ("-" if value is None else f"{100 * value:.1f}").rjust(10)
