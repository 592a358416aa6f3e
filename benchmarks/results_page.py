"""The page benchmarks/RESULTS.md, from the raw results in benchmarks/results."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import fmean
from typing import Any

from benchmarks import pretrained_report
from benchmarks.results_device import (
    busy_profile,
    contexts,
    contexts_simulated,
    forecast,
    ordered_table,
    search_time,
)
from benchmarks.results_row import Row
from benchmarks.results_subnets import (
    decoders,
    ensemble,
    exits,
    operators,
    plan,
    pretrained_baselines,
)
from benchmarks.search_measures import seed_by_seed, to_the_same_average

INTRODUCTION = """\
# Results

Written by `python benchmarks/run_all.py` from the raw figures in `benchmarks/results`; do not edit.
Machines are shared and noisy, so figures that depend on one are ratios. Where a result was not made
by one run of its command, the section says how it was made.
*Bar* is what the project asks of itself, and *paper* what AdaptiveNet (MobiCom 2023) reports, on
other models, data and devices, unless another source is named. A result that was measured at
another commit than the one it was recorded at names it.
"""


def page(found: dict[str, dict[str, Any]]) -> str:
    """The page as Markdown.

    Args:
        found: By benchmark, its ``commands``, the ``machine``'s facts, and its ``result``.
    """
    parts = [INTRODUCTION]
    for name, (title, rows) in SECTIONS.items():
        if name not in found:
            continue
        kept = found[name]
        machine = kept["machine"]
        known = ", ".join(f"{key} {value}" for key, value in machine.items() if value)
        parts += [
            f"## {title}\n",
            "```\n" + "\n".join(kept["commands"]) + "\n```\n",
            f"Measured on: {known}.{_commit(kept)}\n",
            *([f"How this run differed: {kept['note']}\n"] if kept.get("note") else []),
            "| figure | measured | bar | paper | |\n|---|---|---|---|---|",
            *map(str, rows(kept["result"])),
            "",
        ]
    return "\n".join(parts).rstrip() + "\n"


def _commit(kept: dict[str, Any]) -> str:
    return f" Recorded at commit {kept['commit']}." if kept.get("commit") else ""


def partition(result: Any) -> Iterable[Row]:
    """Time to partition."""
    for row in result["ratios"]:
        yield Row(
            f"{row['model']}: time to partition, of the time to capture",
            f"{row['ratio']:.3f}",
            "≤ 0.15",
            met=row["ratio"] <= 0.15,
        )
    for row in result["growth"]:
        if row["growth"] > 1 and row["operators"] == max(r["operators"] for r in result["growth"]):
            yield Row(
                f"{row['chain']} chain: 16 times the operators take",
                f"{row['growth']:.1f} times as long",
                "≤ 24",
                met=row["growth"] <= 24,
            )


def expand(result: Any) -> Iterable[Row]:
    """Time, memory and sizes of supernets."""
    time, memory = result["time"], result["memory"]
    ratios = (
        ("time to expand, of the time to capture", time["ratio"], 1.5),
        (
            "time of the closed forms of all operators, of the time to capture",
            time.get("forms_ratio"),
            3,
        ),
        (
            "peak memory beyond the model's with all operators, of the bytes of the supernet's "
            "parameters",
            memory.get("operators_ratio"),
            2.5,
        ),
        (
            "peak memory beyond the model's, of the bytes of the supernet's parameters",
            memory["ratio"],
            2.5,
        ),
    )
    for figure, ratio, bar in ratios:
        if ratio is not None:
            yield Row(figure, f"{ratio:.2f}", f"≤ {bar:g}", met=ratio <= bar)
    for row in result["sizes"]:
        # The paper's γ is not known; the bar is for the best choice of it.
        first = row["gamma"] == min(r["gamma"] for r in result["sizes"])
        yield Row(
            f"{row['model']}, γ = {row['gamma']}: {row['branches']} branches, "
            f"{row['subnets']} subnets; size, of the model's",
            f"{row['size']:.2f}",
            f"≤ {row['bar']}" if first else "",
            str(row["paper"]),
            row["size"] <= row["bar"] if first else None,
        )
    for row in result.get("defaults", ()):
        yield Row(
            f"{row['model']}, the default kinds: {row['branches']} branches, "
            f"{row['subnets']:.3g} subnets; size, of the model's; the bundle's, new branches in 16 "
            "bits",
            f"{row['size']:.2f}; {row['bundle']:.2f}",
            f"≥ {row['least_subnets']} subnets; ≤ {row['bar']:g}; ≤ {row['bundle_bar']:g}",
            met=row["size"] <= row["bar"]
            and row["bundle"] <= row["bundle_bar"]
            and row["subnets"] >= row["least_subnets"],
        )
    row = result["calibration"]
    yield Row(
        f"mean accuracy of {row['subnets']} untrained subnets on digits, batch norms as made",
        f"{100 * row['as_made']:.1f} % (model: {100 * row['model_accuracy']:.1f} %)",
    )
    yield Row("the same, calibrated", f"{100 * row['calibrated']:.1f} %")


def export(result: Any) -> Iterable[Row]:
    """Time and size of an export."""
    ratio = result["ratio"]
    yield Row(
        f"ResNet-50, {result['branches']} branches: processor time, each branch alone against "
        "all at once",
        f"{ratio:.1f} times",
        "≥ 4",
        met=ratio >= 4,
    )
    yield Row("the bundle's size, of the model's", f"{result['size_ratio']:.2f}")


def public_models(result: Any) -> Iterable[Row]:
    """How far models of public libraries get, and why some do not."""
    for library, shares in result["summary"].items():
        n = shares["models"]
        told = (
            f"{shares['expanded']} expanded, {shares['same']} of them with the model's results, "
            f"{shares['exported']} exported"
        )
        yield Row(f"{library}: {n} models, one of each architecture", told)
    for found in result["models"]:
        if found["stage"] not in ("done", "make", "call"):
            reason = " ".join(found["reason"].split()).replace("|", "/")[:200]
            yield Row(f"{found['library']} {found['name']}: ends at `{found['stage']}`", reason)


def int8(result: Any) -> Iterable[Row]:
    """Speed-ups of 8-bit branches, and onnxruntime's own recipes."""
    for found in result["models"]:
        name, bar = found["model"], result["bars"][found["model"]]
        yield Row(
            f"{name}: every block in 8 bits, assembled, one thread",
            f"{found['speed_up']:.2f} times as fast as in float",
            f"≥ {bar:g}",
            met=found["speed_up"] >= bar,
        )
        yield Row(
            f"{name}: its time, of onnxruntime's best recipe for the whole model",
            f"{found['of_best_recipe']:.2f}",
            f"≤ {result['slower']:g}",
            met=found["of_best_recipe"] <= result["slower"],
        )
        yield Row(
            f"{name}: squared error of the results, of their variance; onnxruntime's static and "
            "dynamic recipes",
            f"{found['errors']['int8']:.1e}; {found['errors']['onnxruntime static']:.1e} and "
            f"{found['errors']['onnxruntime dynamic']:.1e}",
        )
        yield Row(
            f"{name}: conversions between neighbours; kernels that differ from the whole quantised "
            "at once",
            f"{found['conversions_between_neighbours']}; {len(found['different_kernels'])}",
            "0; 0",
            met=not found["conversions_between_neighbours"] and not found["different_kernels"],
        )
        yield Row(
            f"{name}: bytes of a bundle with 8-bit branches, of one without",
            f"{found['bytes_of_float']:.2f}",
            "≤ 1.4",
            met=found["bytes_of_float"] <= 1.4,
        )


def public_sizes(result: Any) -> Iterable[Row]:
    """How many models of public libraries take other sizes than their example's."""
    for kind, counted in result["summary"].items():
        n, bar = counted["take other sizes"], counted["bar"]
        told = (
            f"{counted['dynamic']} captured with sizes that vary, {counted['equal bit for bit']} "
            f"of them equal to the model bit for bit at three sizes, {counted['exported']} exported"
        )
        yield Row(
            f"{kind}: {n} models that take other sizes, of {counted['models']}",
            told,
            f"≥ {100 * bar:.0f} %" if bar else "",
            met=counted["share"] >= bar if bar and n else None,
        )
    for found in result["rest"]:
        reason = " ".join(found["reason"].split()).replace("|", "/")[:300]
        yield Row(f"{found['library']} {found['name']}: ends at `{found['stage']}`", reason)


def latency_model(result: Any) -> Iterable[Row]:
    """Errors of predicted latencies."""
    for row in result:
        for mode in ("assembled", "paged"):
            found, plain = row[mode]["corrected"], row[mode]["plain"]
            yield Row(
                f"{row['bundle']}, {mode}: median and 90th-percentile error, rank correlation, "
                f"{row[mode]['n_held_out']} held-out subnets",
                f"{100 * found['median']:.1f} %, {100 * found['p90']:.1f} %, "
                f"{found['spearman']:.3f}",
                "≤ 3 %, ≤ 8 %, ≥ 0.98",
                met=found["median"] <= 0.03 and found["p90"] <= 0.08 and found["spearman"] >= 0.98,
            )
            yield Row(
                f"{row['bundle']}, {mode}: the same for the uncorrected sum of branches",
                f"{100 * plain['median']:.1f} %, {100 * plain['p90']:.1f} %, "
                f"{plain['spearman']:.3f}",
            )
        mobile = "mobilenet" in row["bundle"].lower()
        yield Row(
            f"{row['bundle']}: time of a table ({row['branches']} branches)",
            f"{row['profile_s']:.0f} s",
            "≤ 60 s" if mobile else "",
            met=row["profile_s"] <= 60 if mobile else None,
        )


def sizes(result: Any) -> Iterable[Row]:
    """Errors of latencies predicted at other lengths, and differences from torch there."""
    for mode in ("assembled", "paged"):
        found, worst = result[mode], result["worst_difference"][mode]
        yield Row(
            f"BERT of 6 layers, {mode}: median and 90th-percentile error of latencies, "
            f"{result['subnets']} held-out subnets at {len(result['lengths'])} held-out lengths",
            f"{100 * found['median']:.1f} %, {100 * found['p90']:.1f} %",
            "≤ 5 %, ≤ 12 %",
            met=found["median"] <= 0.05 and found["p90"] <= 0.12,
        )
        yield Row(
            f"BERT of 6 layers, {mode}: difference from torch at "
            f"{len(result['compared_lengths'])} random lengths",
            f"{worst:.1e}",
            f"≤ {result['tolerance']:.0e}",
            met=worst <= result["tolerance"],
        )
    yield Row(f"time of a table ({result['branches']} branches)", f"{result['profile_s']:.0f} s")


def train_threads(result: Any) -> Iterable[Row]:
    """Time of a training step beside another process."""
    for way, rows in result["rows"].items():
        barred = way.startswith("chosen")
        for company, row in rows.items():
            alone = company == "alone"
            seconds = f"{row['median_s']:.2f} s, {row['threads']} threads"
            yield Row(
                f"{way}: a step {company if alone else f'beside {company}'}",
                seconds if alone else f"{row['ratio']:.2f} times as long as alone ({seconds})",
                f"≤ {result['bar']}" if barred and not alone else "",
                met=row["ratio"] <= result["bar"] if barred and not alone else None,
            )


def train_device(result: Any) -> Iterable[Row]:
    """Times of training steps, by device."""
    for row in result["rows"]:
        if row["device"] == "cpu":
            continue
        names = {"model": "the model itself", "distill": "distillation", "tune": "tuning"}
        case = f"{row['model']}, batch of {row['batch_size']}, {row['branches']} branches"
        quicker = ", ".join(f"{row['quicker'][key]:.1f}" for key in names)
        least = min(row["quicker"].values())
        yield Row(
            f"{case}, {row['precision']}: time of a step on the CPU (fp32) ÷ on the GPU: "
            + ", ".join(names.values()),
            quicker,
            "> 1" if row["large"] else "",
            met=least > 1 if row["large"] else None,
        )
        of_model = ", ".join(f"{row['of_model'][key]:.2f}" for key in ("distill", "tune"))
        busy = ", ".join(f"{row['busy'][key]:.0%}" for key in ("distill", "tune"))
        yield Row(
            f"{case}, {row['precision']}: step of distillation, of tuning ÷ step of the model; "
            "share of the time for which kernels run",
            f"{of_model}; {busy}",
        )


def train(result: Any) -> Iterable[Row]:
    """Accuracies of ways of training."""
    points = {"resnet": (2, 5), "vit": (3, 7)}
    for model, found in result.items():
        n = len(found["seeds"])
        yield Row(f"{model}: the original's test accuracy, {n} seeds", f"{found['teacher']} %")
        for way, cells in found["buckets"].items():
            yield Row(
                f"{model}: {way}: mean accuracy by range of FLOPs, smallest first",
                ", ".join(cells) + " %",
                **(
                    {
                        "bar": "in no range below 'untrained', 'distilled, stage only' or 'tuned'",
                        "paper": "best in every range (Figure 10)",
                        "met": best_everywhere(found["buckets"]),
                    }
                    if way == "distilled, tuned"
                    else {}
                ),
            )
        for (share, lost), bar in zip(found["lost_points"].items(), points[model], strict=True):
            yield Row(
                f"{model}: points that the best subnet of at most {share} of the FLOPs loses",
                lost,
                f"≤ {bar}",
                met=mean(lost) <= bar,
            )
        ratio = found["time_ratio"]["alone"]
        yield Row(
            f"{model}: time of teacher-forced distillation to chained distillation's final "
            "loss of branches, of its time",
            ratio,
            "< 1",
            met=mean(ratio) < 1,
        )
        before, after = (found["recalibration"][key] for key in ("before", "after"))
        yield Row(
            f"{model}: mean accuracy before and after batch norms are recalibrated on 512 images",
            f"{before} → {after} %",
            "not lower",
            met=mean(after) >= mean(before),
        )
        missed = "; ".join(found["missed"]) or "none"
        yield Row(f"{model}: bars that single seeds miss", missed)


def search(result: Any) -> Iterable[Row]:
    """Savings by guidance and reuse."""
    rows = result["efficiency"]
    for name, what, bar, paper in (
        ("plain-evolutionary", "subnets", 4, "1/3.9"),
        ("plain-evolutionary", "seconds", 14, "1/14.1"),
        ("plain-annealing", "subnets", 0, ""),
        ("plain-annealing", "seconds", 6.5, "1/6.6"),
    ):
        guided, plain = to_the_same_average(rows, name, what)
        by_seed = seed_by_seed(rows, name, what)
        yield Row(
            f"{what} to the final average accuracy of {name} ({guided:.4g} against {plain:.4g}; "
            f"means of {len(rows)} seeds)",
            f"1/{plain / guided:.1f}",
            f"≤ 1/{bar}" * bool(bar),
            paper,
            guided / plain <= 1 / bar if bar else None,
        )
        yield Row(
            "the same seed by seed, from when the plain search first has its final accuracy "
            "(median)",
            f"1/{1 / by_seed:.1f}",
            f"≤ 1/{bar}" * bool(bar),
            met=by_seed <= 1 / bar if bar else None,
        )
    for row in result["optimum"]:
        yield Row(
            f"seeds in which the best of {row['subnets']} subnets is found "
            f"({row['median_tried']:.0f} evaluated, median)",
            f"{row['found']:.0%}",
            "≥ 95 %",
            met=row["found"] >= 0.95,
        )
    for row in result["reuse"]:
        barred = row["n"] == 200 and row["kind"] == "search"
        yield Row(
            f"{row['n']} candidates, {KINDS[row['kind']]}: branch runs and time saved by shared "
            f"prefixes; cache of {row['peak_cache_bytes'] / 2**20:.1f} MiB",
            f"{row['saved']:.1%}, {row['time_saved']:.1%}",
            "≥ 57 %" if barred else "",
            "up to 56.7 % of time" if barred else "",
            row["saved"] >= 0.57 if barred else None,
        )
    memory = result["memory"]
    yield Row(
        "resident memory before and at most",
        f"{memory['before_mib']:.0f} MiB, {memory['peak_mib']:.0f} MiB",
    )


KINDS = {
    "uniform": "drawn uniformly near the budget",
    "search": "of a search with as many in a generation",
}


def search_memory(result: Any) -> Iterable[Row]:
    """Growth of processes."""
    for row in result["rows"]:
        allowed = row["memory_mib"] + row["cache_mib"] + row["batch_mib"]
        yield Row(
            f"{row['what']}, {row['model']} model: growth of the resident memory at its peak",
            f"{row['grown_mib']:.1f} MiB",
            bar=f"≤ {allowed:.1f} MiB: memory {row['memory_mib']}, cache {row['cache_mib']}, "
            f"one batch {row['batch_mib']:.1f}",
            met=row["met"],
        )


def serve_sizes(result: Any) -> Iterable[Row]:
    """Switches by requests of 16 to 256 tokens."""
    for name, where, bar in (
        ("idle", "without other programs", "0"),
        ("loaded", f"beside {result['n_processes']} processes", "≥ 1"),
    ):
        figures = result["phases"][name]
        n, shown = figures["n_switches"], figures["r_of_lengths"].values()
        plain = figures["r_to_the_mean_of_lengths"].values()
        yield Row(
            f"requests of 16 to 256 tokens {where}: switches; r by length; the latency by length, "
            "relative to the estimated mean",
            f"{n}; {min(shown):.2f} to {max(shown):.2f}; {min(plain):.2f} to {max(plain):.2f}",
            bar,
            met=n > 0 if name == "loaded" else n == 0,
        )


def http_load(result: Any) -> Iterable[Row]:
    """Answers, the time of `/livez`, and memory, under malformed and slow requests."""
    ours, bare, met = result["ours"], result["bare"], result["met"]
    load = (
        f"{result['seconds']:.0f} s of 64 clients, 100 slow connections, malformed requests, bombs"
    )
    yield Row(
        f"{load}: wrong of the answers that were checked",
        f"{ours['n_wrong']} of {ours['n_checked']:,}",
        "0",
        met=met["answers"],
    )
    statuses = ", ".join(f"{code}: {n:,}" for code, n in ours["statuses"].items())
    yield Row("answers by status", statuses, "none of 500 or more but 503", met=met["statuses"])
    yield Row(
        "`/livez` under the same load, 99th percentile; a bare uvicorn; ratio",
        f"{ours['live_p99_ms']:.0f} ms; {bare['live_p99_ms']:.0f} ms; {ours['live_ratio']:.2f}",
        "≤ 5",
        met=met["live"],
    )
    yield Row(
        "growth of the resident memory; bodies in flight",
        f"{ours['growth_mb']:.0f} MB; {ours['in_flight_mb']:.0f} MB",
        "≤ 64 MB and the bodies in flight",
        met=met["memory"],
    )


def serve(result: Any) -> Iterable[Row]:
    """Queries, switches and the scenario."""
    figures = result["queries"]
    yield Row(
        "query of a pool of 10,000 subnets, 99th percentile",
        f"{figures['p99_us']:.2f} µs",
        "≤ 43 µs",
        "43 µs (AdaScale)",
        figures["met"],
    )
    figures = result["overhead"]
    yield Row(
        "the runtime's own work, of a request's latency",
        f"{figures['own_share']:.2%}",
        "≤ 1 %",
        met=figures["met"],
    )
    figures = result["switches"]
    yield Row(
        "from a decision to the next request on a resident subnet, 99th percentile",
        f"{figures['p99_ms']:.2f} ms",
        "≤ 10 ms",
        met=figures["met"],
    )
    for name, figures in result.items():
        # Raw results of an earlier version, which measured cold switches differently.
        if name.startswith("cold, ") and "n_switches" in figures:
            yield from cold(figures, name.removeprefix("cold, "))
    for name, figures in result.items():
        if name.startswith("unprepared, "):
            where = f"{name.removeprefix('unprepared, ')}, threads: {figures['threads']}"
            yield Row(
                f"slower requests while another process prepares a subnet ({where}): median, 95th, "
                "99th percentile; seconds until it serves",
                ", ".join(f"{figures[key]:+.1%}" for key in ("added", "added_p95", "added_p99"))
                + f"; {figures['until_switched_s']:.1f} s",
            )
    figures = result["memory"]
    yield Row(
        "peak memory in paged mode, of the subnet's as one model",
        f"{figures['ratio']:.3f}",
        "≤ 1.10",
        met=figures["met"],
    )
    for name in (name for name in result if name.startswith("scenario")):
        yield from scenario(result[name], name)


def cold(figures: Any, where: str) -> Iterable[Row]:
    """Cold switches in one mode."""
    keys = ("added", "added_p95", "added_p99")
    share = figures["n_requests"] // figures["n_switches"]
    yield Row(
        f"slower requests for a cold switch in each {share:,} ({where}, threads: "
        f"{figures['threads']}): median, 95th, 99th percentile",
        ", ".join(f"{figures[key]:+.1%}" for key in keys),
        "≤ 5 % each",
        met=figures["met"],
    )
    yield Row(
        f"of all {figures['n_requests']:,} requests together; 99.9th percentile",
        ", ".join(f"{figures[f'all_{key}']:+.1%}" for key in keys)
        + f"; {figures['all_added_p999']:+.1%}",
    )
    if figures["added_met"] is not None:
        yield Row(
            f"the request that meets the making of a session ({figures['opening_ms']:.1f} ms)",
            f"{figures['added_met']:+.0%}",
        )


def scenario(result: Any, name: str) -> Iterable[Row]:
    """Steps of the load, in all runs."""
    where = f"{name}, threads: {result['threads']}"
    runs = result["runs"]
    for i, steps in enumerate(zip(*(run["steps"] for run in runs), strict=True)):
        told = [step["told"] for step in steps]
        over = ", ".join(f"{step['over_s']:.2f}" + " (reported)" * step["told"] for step in steps)
        yield Row(
            f"{where}; step {i + 1}, {steps[0]['n_processes']} competing processes: longest time "
            f"over the budget, and switches, of {len(runs)} runs ('reported': the runtime reported "
            "that it can't be kept)",
            f"{over} s; {', '.join(str(step['n_switches']) for step in steps)}",
            "≤ 1 s or reported, ≤ 2",
            "within 1 s",
            all(
                (step["over_s"] <= 1 or ok) and step["n_switches"] <= 2
                for step, ok in zip(steps, told, strict=True)
            ),
        )
    slow = [
        sum(step["own_slow_s"] for step in run["steps"] if step["own_slow_s"] is not None)
        for run in runs
    ]
    yield Row(
        f"{where}; time for which the machine was slow by itself, of the 30 s without a competing "
        "process (requests took over 1.25 times their usual processor time)",
        f"{', '.join(f'{slow_s:.2f}' for slow_s in slow)} s",
    )
    returned = sum(run["best_returned"] for run in runs)
    times = [run["returned_s"] for run in runs]
    yield Row(
        f"{where}; the best subnet is back after the load has gone, within 15 s",
        ", ".join("not" if time_s is None else f"{time_s:.1f} s" for time_s in times),
        "in all runs",
        met=returned == len(runs),
    )
    failed = sum(run["failed_requests"] for run in runs)
    yield Row(
        f"{where}; failed requests of {sum(run['n_requests'] for run in runs):,}",
        str(failed),
        "0",
        met=failed == 0,
    )


def tradeoff(result: Any) -> Iterable[Row]:
    """Accuracies per budget, of ours and of baselines."""
    n = len(result["seeds"])
    yield Row(f"the original's test accuracy, {n} seeds", f"{result['teacher']:.1f} %")
    ours = result["table"]["ours"]
    for i, budget in enumerate(result["budgets"]):
        others = "; ".join(
            f"{way} {cell(cells[i])}" for way, cells in result["table"].items() if way != "ours"
        )
        met = result["met"][f"{budget:.0%}"]
        yield Row(
            f"test accuracy at {budget:.0%} of the original's latency: ours, and {others}",
            f"{cell(ours[i])} %",
            ("above" if budget <= 0.6 else "not below, within the spread,")
            + " those with the supernet's steps",
            met=met,
        )
    longer = "narrower, all of the steps"
    rows = zip(result["budgets"], ours, result["table"][longer], strict=True)
    above = [f"{b:.0%}" for b, o, other in rows if other is not None and o[0] < other[0]]
    yield Row(
        f"budgets at which networks that are '{longer}' are above ours",
        ", ".join(above) or "none",
        "none",
        met=not above,
    )
    for way, points in result["mean_points_above"].items():
        if points is not None:
            yield Row(f"ours above {way}, mean over budgets", f"{points:+.2f} points")
    gain, spread = result["edge_gain"]
    yield Row(
        "skewed classes: searched on the device's data, above the subnet chosen on the cloud's",
        f"{gain:+.2f} ± {spread:.2f} points",
    )


def pretrained(result: Any) -> Iterable[Row]:
    """Results of training and search for models with pretrained weights."""
    for name, found in result["models"].items():
        for line in pretrained_report.acceptance(name, found):
            yield Row(f"{name}: {line.what}", line.measured, met=line.holds)
        for line in pretrained_report.after_distillation(found["branches"]):
            yield Row(f"{name}: errors of branches", line)
        yield from _int8(name, found["int8"]) if "int8" in found else ()
        ways, gains = found["judge"]["ways"], found["judge"]["gains"]
        for figure in ("latency", *gains):
            share = pretrained_report.interval(ways["quantised"][figure], ".3f")
            yield Row(f"{name}, quantised by onnxruntime: {_OF_ORIGINAL[figure]}", share)
            for budget in pretrained_report.BUDGETS:
                told = [
                    pretrained_report.interval(ways[f"{way} {budget}"][figure], ".3f")
                    for way in ("before", "after")
                ]
                if figure in gains:
                    told.append(pretrained_report.points(gains[figure][budget]))
                yield Row(
                    f"{name}, best subnet at {budget}: {_OF_ORIGINAL[figure]}; before, after "
                    "training" + ", difference" * (figure in gains),
                    "; ".join(told),
                )


def _int8(name: str, found: Any) -> Iterable[Row]:
    """Subnets of float and 8-bit branches, beside the original quantised by onnxruntime."""
    quantised = found["ways"]["quantised"]
    for way, row in found["ways"].items():
        share, score = (pretrained_report.interval(row[k], ".3f") for k in ("latency", "score"))
        budget = way.split()[-1]
        kept = budget[:-1].isdecimal() and quantised["latency"][0] <= float(budget[:-1]) / 100
        yield Row(
            f"{name}, {way}: share of the float original's latency; "
            + ("agreement" if name == "efficientnet" else "cosine"),
            f"{share}; {score}",
            f"≥ {quantised['score'][0]:.3f} (quantised original)" if kept else "",
            met=row["score"][0] >= quantised["score"][0] if kept else None,
        )


_OF_ORIGINAL = {
    "latency": "latency as a share of the original's",
    "agreement": "share of samples with the original's top class",
    "cosine": "cosine with the original's result",
    "spearman": "rank correlation of logits, or of similarities to other sentences",
}


def cell(value: Any) -> str:
    """A mean and its spread."""
    return "–" if value is None else f"{value[0]:.1f} ± {value[1]:.1f}"


def mean(text: str) -> float:
    """The mean in a text such as ``1.20 ± 0.10``."""
    return float(text.split(" ", maxsplit=1)[0]) if text[0].isdigit() else float("inf")


def multi_stage(result: Any) -> Iterable[Row]:
    """Training in stages against joint training."""
    met = result["met"]
    reached = [sum(seed["reached"]) for seed in result["seeds"]]
    n_exits = len(result["seeds"][0]["reached"])
    yield Row(
        "exits within 0.5 point of joint training's, by seed",
        ", ".join(f"{n} of {n_exits}" for n in reached),
    )
    yield Row(
        "time of all stages, each until its exit is as good or its epochs end, of joint training's "
        "by the same rule",
        f"{result['time']:.2f}",
        "≤ 0.6, with all exits",
        met=met["time"],
    )
    yield Row("time, of all of joint training", f"{result['time_of_all']:.2f}")
    yield Row(
        "memory in the last stage, of joint training's",
        *(f"{result['memory']:.2f}", "≤ 0.6"),
        met=met["memory"],
    )
    yield Row(
        "parameters of the exits",
        *(f"{result['parameters']:.1%}", "≤ 2 %"),
        met=met["parameters"],
    )
    for i, stage in enumerate(result["seeds"][0]["stages"]["stages"]):
        own = fmean(seed["stages"]["test"][i] for seed in result["seeds"])
        joint = fmean(seed["joint"]["test"][i] for seed in result["seeds"])
        yield Row(
            f"{stage['stage']}: accuracy on test images, and after joint training",
            f"{own:.1%}, {joint:.1%}",
        )


def energy(result: Any) -> Iterable[Row]:
    """The model of a processor's power on published profiles, each left out in turn."""
    for kind, least in result["bars"].items():
        share = result["means"][kind]
        yield Row(
            f"mean error, {kind}", f"{share:.1%}", f"≤ {least:.0%} (goal)", met=share <= least
        )
    yield Row(
        "mean error, of a processor that is not listed", f"{result['means']['of others']:.1%}"
    )
    yield Row("mean error, power linear in the load", f"{result['means']['affine']:.1%}")
    for row in result["rows"]:
        doubt = "" if row["plausible"] else " (counts something twice)"
        yield Row(
            f"{row['profile']}{doubt}: uncalibrated, calibrated",
            f"{row['uncalibrated']:.1%}, {row['calibrated']:.1%}",
        )


def best_everywhere(buckets: dict[str, list[str]]) -> bool:
    """Whether distilling and tuning is at least as accurate as all other ways."""
    compared = ("untrained", "distilled, stage only", "tuned")
    full = buckets["distilled, tuned"]
    return all(mean(full[i]) >= mean(buckets[way][i]) for way in compared for i in range(len(full)))


SECTIONS: dict[str, tuple[str, Callable[[Any], Iterable[Row]]]] = {
    "partition": ("Partitions", partition),
    "expand": ("Supernets", expand),
    "export": ("Export", export),
    "public_models": ("Models of public libraries", public_models),
    "public_kinds": ("Models of public libraries with every kind of branches", public_models),
    "public_sizes": ("Models of public libraries, with sizes that vary", public_sizes),
    "decoders": ("Decoders with a cache", decoders),
    "operators": ("Kinds of branches before training, on pretrained weights", operators),
    "train": ("Training", train),
    "train_threads": ("Training beside other programs", train_threads),
    "train_device": ("Training on a GPU", train_device),
    "latency_model": ("Latency model", latency_model),
    "busy_profile": ("Latency tables made beside other programs", busy_profile),
    "sizes": ("Sizes that vary", sizes),
    "int8": ("8-bit branches", int8),
    "search": ("Search", search),
    "search_time": ("Search with little time", search_time),
    "search_memory": ("Memory of profiling and searching", search_memory),
    "plan": ("Predicted scores", plan),
    "serve": ("Serving", serve),
    "serve_sizes": ("Serving inputs of different sizes", serve_sizes),
    "http_load": ("The HTTP endpoint under attack", http_load),
    "ordered_table": ("Queries with several limits", ordered_table),
    "forecast": ("Forecast of the load", forecast),
    "contexts_simulated": ("Changing loads, simulated", contexts_simulated),
    "contexts": ("Changing loads", contexts),
    "contexts_text": ("Changing loads, with a transformer", contexts),
    "tradeoff": ("Accuracy and latency against baselines", tradeoff),
    "ensemble": ("The default kinds of branches on Fashion-MNIST", ensemble),
    "exits": ("Cascades of early exits", exits),
    "exits_text": ("Cascades of early exits in a transformer", exits),
    "multi_stage": ("Multi-stage training", multi_stage),
    "energy": ("Energy of a processor", energy),
    "pretrained": ("Pretrained weights (95 % intervals in parentheses)", pretrained),
    "pretrained_baselines": (
        "Smaller networks, fine-tuned from pretrained weights (95 % intervals in parentheses)",
        pretrained_baselines,
    ),
}
