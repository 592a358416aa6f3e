"""Search with little time, and compare the results with each budget's additive best.

    python benchmarks/search_time.py BUNDLE TABLE DATA [--seconds 3 10 40] [--out FILE]

For each time budget and each latency budget it prints the score of the subnet that `edge.search`
returned, on all samples of the search's part of the data, beside the scores of two other subnets:
the additive best by the work that branches leave out, which is known without measuring, and the
additive best by all branches' errors on 50 samples. Then it prints the time that the search took.

Bars: no result is below the first by more than 0.002, which is noise; and a search takes at most a
tenth more than its time, or the time to evaluate one sample.

A table that is missing is made first. Run it without torch in the process.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from fxelastic import edge
from fxelastic.edge.bundle import Bundle
from fxelastic.edge.executor import Executor
from fxelastic.edge.searching.additive import additive_best, quality_costs
from fxelastic.edge.searching.choice import chosen_metric
from fxelastic.edge.searching.data import read_data
from fxelastic.edge.searching.evaluation import Evaluator
from fxelastic.spec import Arch
from fxelastic.spec.latency_table import LatencyTable

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.search import study_of

NOISE = 0.002
LATE = 0.1


def main() -> int:
    """Search, judge, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("table", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seconds", type=float, nargs="+", default=[3.0, 10.0, 40.0])
    parser.add_argument("--budgets", type=int, nargs="+", default=[90, 70, 50], help="in %%")
    parser.add_argument("--strategy", default="evolutionary")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    bundle = edge.load(args.bundle)
    if not args.table.exists():
        edge.profile(bundle, threads=args.threads).save(args.table)
    table = LatencyTable.load(args.table)
    runs = [searched(bundle, table, args, time_s) for time_s in args.seconds]
    result = {"bundle": str(bundle.space), "budgets": args.budgets, "runs": runs}
    judge(bundle, table, args, result)
    met = report(result)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if met else 1


def searched(
    bundle: Bundle, table: LatencyTable, args: argparse.Namespace, time_s: float
) -> dict[str, Any]:
    """The subnets that a search in limited time returns, and the time that it took."""
    begin_s = time.perf_counter()
    result = edge.search(
        bundle,
        table,
        args.data,
        budget=[f"{share}%" for share in args.budgets],
        strategy=args.strategy,
        time_budget_s=time_s,
        threads=args.threads,
    )
    took_s = time.perf_counter() - begin_s
    return {
        "time_budget_s": time_s,
        "took_s": took_s,
        "subnets": result.counts.subnets,
        "archs": [str(best.arch) for best in result.bests],
        "latencies_ms": [best.latency_ms for best in result.bests],
        "marks": list(result.marks),
    }


def judge(
    bundle: Bundle, table: LatencyTable, args: argparse.Namespace, result: dict[str, Any]
) -> None:
    """Add the scores of all subnets, and those of the additive bests."""
    given = read_data(bundle, args.data)
    metric = chosen_metric(bundle, None, labelled=given.labelled)
    samples, _ = given.split(0.2, seed=0)
    result["score"], result["samples"] = metric.name, len(samples)
    with Executor(bundle, args.threads, None) as executor:
        evaluator = Evaluator(executor, samples, metric, costs=table.costs())
        measured = evaluator.distortion(lambda: False)
        for name, distortion in (("unmeasured", None), ("measured", measured)):
            costs = quality_costs(bundle.space, distortion)
            found = [
                additive_best(study_of(bundle.space, table, share / 100, evaluator, 1, 0), costs)
                for share in args.budgets
            ]
            result[name] = {"archs": [str(arch) for arch in found]}
        rows = [*result["runs"], result["unmeasured"], result["measured"]]
        archs = [Arch.parse(text) for row in rows for text in row["archs"]]
        scores = evaluator.scores(archs)
        original = Arch(tuple(bundle.space.original))
        begin_s = time.perf_counter()
        for inputs, _ in samples.batches(1):
            executor.run(original, inputs)
            break
        result["one_evaluation_s"] = time.perf_counter() - begin_s
    for row in rows:
        row["scores"] = [scores[Arch.parse(text)] for text in row["archs"]]


def report(result: dict[str, Any]) -> bool:
    """Print the figures and their bars; return whether all bars are met."""
    print(f"{result['bundle']}; {result['score']} on {result['samples']} samples\n")
    header = ("time", "took", "budget", "latency", "score", "unmeasured", "measured", "")
    line = "{:>7} {:>8} {:>7} {:>10} {:>8} {:>11} {:>9}  {}"
    print(line.format(*header))
    met = True
    first, second = result["unmeasured"]["scores"], result["measured"]["scores"]
    for run in result["runs"]:
        for i, share in enumerate(result["budgets"]):
            score = run["scores"][i]
            reached = score >= first[i] - NOISE
            met = met and reached
            print(
                line.format(
                    f"{run['time_budget_s']:g} s",
                    f"{run['took_s']:.2f} s",
                    f"{share}%",
                    f"{run['latencies_ms'][i]:.2f} ms",
                    f"{score:.4f}",
                    f"{first[i]:.4f}",
                    f"{second[i]:.4f}",
                    run["marks"][i] + ("" if reached else "  BELOW"),
                )
            )
        least_s = max(LATE * run["time_budget_s"], result["one_evaluation_s"])
        late = run["took_s"] > run["time_budget_s"] + least_s
        met = met and not late
        print(f"  {'LATE' if late else 'in time'}, {run['subnets']} subnets evaluated")
    return met


if __name__ == "__main__":
    raise SystemExit(main())
