"""Sections of benchmarks/RESULTS.md about what branches, subnets and cascades keep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from statistics import fmean
from typing import Any

from benchmarks.results_row import Row


def decoders(result: Any) -> Iterable[Row]:
    """Greedy generation through subnets."""
    for family, group in groupby(result, lambda row: row["family"]):
        rows = list(group)
        own = rows[0]
        yield Row(
            f"{family}: tokens of the assembled original that equal those of transformers",
            f"{own['transformers_equal']} of {own['n_tokens']}",
            "all, up to the first near-tie",
            met=own["transformers"],
        )
        for mode in ("assembled", "paged"):
            equal = ", ".join(str(row[f"{mode}_equal"]) for row in rows)
            yield Row(
                f"{family}, {mode}: the same for the original and {len(rows) - 1} subnets in torch",
                f"{equal} of {own['n_tokens']}",
                "all, up to the first near-tie",
                met=all(row[mode] for row in rows),
            )


def operators(result: Any) -> Iterable[Row]:
    """Errors of branches at equal FLOPs."""
    for model, found in result["models"].items():
        for share, group in groupby(found["rows"], lambda row: row["share"]):
            rows = {row["kind"]: row for row in group}
            kinds = [kind for kind in rows if f"{kind}, weights alone" in rows or kind == "lowres"]
            for kind in kinds:
                row, plain = rows[kind], rows.get(f"{kind}, weights alone")
                told = f"{row['error']:.4f}; pruned {row['pruned']:.4f}"
                if plain is not None:
                    told += f"; by the weights alone {plain['error']:.4f}"
                yield Row(
                    f"{model}, {share:.0%} of a block's FLOPs: {kind}, mean over "
                    f"{row['blocks']} blocks",
                    told,
                    "below the weights alone" if kind == "lowrank" and plain else "",
                    met=row["error"] < plain["error"] if kind == "lowrank" and plain else None,
                )
            best = min(kinds, key=lambda kind: rows[kind]["error"] / rows[kind]["pruned"])
            yield Row(
                f"{model}, {share:.0%} of a block's FLOPs: the best operator's error, of pruned's",
                f"{rows[best]['error'] / rows[best]['pruned']:.2f} ({best})",
                "< 1",
                met=rows[best]["error"] < rows[best]["pruned"],
            )


def ensemble(result: Any) -> Iterable[Row]:
    """Subnets of the default kinds of branches against those of merged, pruned and skip."""
    n = len(result["seeds"])
    yield Row(f"the original's test accuracy, {n} seeds", f"{result['original']:.2f} %")
    for row in result["rows"]:
        yield Row(
            f"test accuracy at {row['budget']} of the latency: merged, pruned, skip; "
            + ", ".join(result["kinds"]),
            f"{row['plain']:.2f} %; {row['ensemble']:.2f} % ({row['difference']:+.2f} points)",
            "not lower by more than 0.3 point",
            met=result["met"][row["budget"]],
        )
    loss = result["int8_loss"]
    (bits,) = (name for name in result["met"] if name.startswith("8 bits"))
    yield Row(
        f"{bits}: points that the best subnet loses",
        "no subnet" if loss is None else f"{loss:.2f}",
        "≤ 1",
        met=result["met"][bits],
    )


def exits(result: Any) -> Iterable[Row]:
    """Cascades: time that they save, and what it costs."""
    seeds = result["seeds"]
    yield Row(
        f"the original's test accuracy, {len(seeds)} seeds",
        ", ".join(f"{100 * seed['test_accuracy']:.2f} %" for seed in seeds),
    )
    yield Row(
        "parameters of the exits, of the model's",
        _range(seed["params_of_exits"] for seed in seeds),
        "≤ 2 %",
        met=all(seed["params_of_exits"] <= 0.02 for seed in seeds),
    )
    for loss, bar in result["bars"].items():
        for by in result["confidences"]:
            found = [seed["cascades"].get(f"{by} {loss}") for seed in seeds]
            yield from _cascades(found, float(loss), by, bar if by == "max_softmax" else None)
        over = [seed["splits"][loss]["violations"] for seed in seeds]
        yield Row(
            f"at a loss of {100 * float(loss):g} points: splits that violate it, of "
            f"{result['n_splits']} a seed",
            ", ".join(map(str, over)),
            f"≤ {result['most_violations']}",
            met=max(over) <= result["most_violations"],
        )
    batches = [seed["neighbours"] for seed in seeds if "neighbours" in seed]
    for size in (7, 64) if batches else ():
        other = sum(seed[f"other_exit_at_{size}"] for seed in batches)
        worst = max(seed[f"difference_at_{size}"] for seed in batches)
        allowed = max(seed["tolerance"] for seed in batches)
        yield Row(
            f"1,000 samples a seed in batches of {size}, against alone: other exits; difference "
            "of the results; that of the cascade's subnets by themselves between batch sizes",
            f"{other}; {worst:.1e}; {allowed:.1e}",
            "0; not larger",
            met=other == 0 and worst <= allowed,
        )


def _cascades(
    found: Sequence[Mapping[str, Any] | None], loss: float, by: str, bar: float | None
) -> Iterable[Row]:
    kept = [row for row in found if row is not None]
    what = f"at a loss of at most {100 * loss:g} points, {by}"
    if not kept:
        yield Row(f"{what}: latency saved at batch size 1", "no cascade")
        return
    savings = [row["saving"] for row in kept]
    yield Row(
        f"{what}: latency saved at batch size 1, by seed",
        ", ".join("no cascade" if row is None else f"{row['saving']:.1%}" for row in found),
        "" if bar is None else f"≥ {bar:.0%}",
        met=None if bar is None else len(kept) == len(found) and min(savings) >= bar,
    )
    at_32 = [row["saving_at_32"] for row in kept]
    yield Row(
        f"{what}: time saved at batch size 32; points of accuracy lost on test samples; AUROC of "
        "the first exit's confidence",
        f"{_range(at_32)}; {fmean(100 * row['loss'] for row in kept):.2f}; "
        f"{fmean(row['auroc'][0] for row in kept):.2f}",
        "≥ 0 saved",
        met=min(at_32) >= 0,
    )


def _range(values: Iterable[float]) -> str:
    found = list(values)
    low, high = min(found), max(found)
    return f"{low:.1%}" if f"{low:.1%}" == f"{high:.1%}" else f"{low:.1%} to {high:.1%}"


def plan(result: Any) -> Iterable[Row]:
    """Scores that a plan predicts."""
    yield Row(
        f"median error of predicted accuracies, {result['held_out']} held-out subnets",
        f"{100 * result['median']:.2f} points",
        f"≤ {100 * result['bar']:.2f}",
        met=result["median"] <= result["bar"],
    )
    yield Row(
        "rank correlation",
        *(f"{result['rank']:.3f}", f"≥ {result['rank_bar']}"),
        met=result["rank"] >= result["rank_bar"],
    )
    yield Row("share within the stated band", f"{result['within']:.0%}")
    yield Row(
        "the same as the plan states them: median error, rank correlation",
        f"{100 * result['stated_median']:.2f} points, {result['stated_rank']:.3f}",
    )


def pretrained_baselines(result: Any) -> Iterable[Row]:
    """Smaller networks, fine-tuned towards a pretrained model's results."""
    for model, found in result["models"].items():
        for way, row in found["ways"].items():
            (share, *_), (score, low, high) = row["latency"], row["score"]
            yield Row(
                f"{model}, {way}: share of the original's latency; {found['score']}",
                f"{share:.3f}; {score:.4f} ({low:.4f} to {high:.4f})",
            )
        for way, done in found["trained"].items():
            yield Row(
                f"{model}, {way}: steps of training in {result['minutes']:g} minutes of one core",
                f"{done['steps']:,}",
            )
