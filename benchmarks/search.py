"""Measure how much the guided search and shared prefixes save, on a trained supernet.

    python benchmarks/trained_bundle.py build/glyphs     (once)
    python benchmarks/search.py build/glyphs [--out FILE]

Prints, on 500 images and with one latency table,

- for each seed: the subnets and the time that the plain evolutionary search and plain annealing
  take to their final accuracy, each subnet evaluated by itself; and what the guided search, with
  shared prefixes, takes to reach the same (bars: 1/4 of the plain evolutionary search's subnets,
  1/14 of its time, 1/6.5 of plain annealing's time; aims: 1/8, 1/30, 1/15);
- in how many seeds the guided search finds the best of a space that was enumerated (bar: 95 %);
- what sharing saves of the branch runs and the time of 50, 100 and 200 candidates near one budget,
  drawn uniformly and as the search draws them, and the peak of the cache (bar: 57 % at 200 of the
  search's; aim: 80 %);
- the peak memory of the process.

Run it without torch in the process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from fxelastic import edge
from fxelastic.edge.bundle import Bundle
from fxelastic.edge.execution import Executor
from fxelastic.edge.searching.data import Dataset, read_data
from fxelastic.edge.searching.evaluation import Evaluator
from fxelastic.edge.searching.evolutionary import Evolutionary
from fxelastic.edge.searching.exhaustive import all_subnets
from fxelastic.edge.searching.guide import Guide
from fxelastic.edge.searching.margins import Margins
from fxelastic.edge.searching.registry import strategy
from fxelastic.edge.searching.scores import METRICS
from fxelastic.edge.searching.study import SearchEndedError, Study
from fxelastic.spec import Arch, SearchSpace
from fxelastic.spec.latency_table import LatencyTable

BARS = {"subnets": 1 / 4, "time": 1 / 14, "annealing_time": 1 / 6.5, "optimum": 0.95, "reuse": 0.57}
BATCH = 50


def main() -> int:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--optimum-seeds", type=int, default=40)
    parser.add_argument("--budget", type=float, default=0.6, help="share of the original's latency")
    parser.add_argument("--subnets", type=int, default=800, help="of a plain search")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    bundle = edge.load(args.folder / "bundle")
    table = _table(bundle, args.folder / "latency.json", args.threads)
    data = read_data(bundle, args.folder / "search.npz")
    before = psutil.Process().memory_info().rss
    with Executor(bundle, args.threads) as executor:
        result: dict[str, Any] = {
            "space": str(bundle.space),
            "images": len(data),
            "budget": args.budget,
            "efficiency": efficiency(executor, table, data, args),
            "optimum": optimum(executor, table, data, args),
            "reuse": reuse(executor, table, data, args),
        }
    result["memory"] = {
        "before_mib": before / 2**20,
        "peak_mib": _peak_bytes() / 2**20,
    }
    print("torch imported:", "torch" in sys.modules)
    result["met"] = report(result)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(result["met"].values()) else 1


def _table(bundle: Bundle, path: Path, threads: int) -> LatencyTable:
    if path.exists():
        table = LatencyTable.load(path)
        if table.bundle_digest == bundle.digest:
            return table
    table = edge.profile(bundle, threads=threads)
    table.save(path)
    return table


def study_of(
    space: SearchSpace, table: LatencyTable, share: float, evaluator: Any, n: int, seed: int
) -> Study:
    """A search for subnets of a share of the original's latency."""
    budget_ms = share * table.predict_ms(space.original)
    return Study(
        space,
        table.costs(),
        table.overhead_ms(),
        budget_ms,
        evaluator,
        n,
        random.Random(f"benchmark {seed}"),
    )


def run(name: str, study: Study, goal: float = math.inf) -> Study:
    """Search until the end, or until the best is as good as the goal."""

    def reached(study: Study) -> None:
        if study.best is not None and study.scores[study.best] >= goal:
            raise SearchEndedError

    study.progress = reached
    with contextlib.suppress(SearchEndedError):
        strategy(name)().run(study)
    return study


def efficiency(
    executor: Executor, table: LatencyTable, data: Dataset, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """To the final accuracy of the plain searches: subnets and time."""
    space = executor.bundle.space
    rows = []
    for seed in range(args.seeds):
        row: dict[str, Any] = {"seed": seed}

        def evaluator(*, reuse: bool) -> Evaluator:
            metric, costs = METRICS["top1"], table.costs()
            return Evaluator(executor, data, metric, batch_size=BATCH, costs=costs, reuse=reuse)

        for name in ("plain-evolutionary", "plain-annealing"):
            plain = run(
                name,
                study_of(space, table, args.budget, evaluator(reuse=False), args.subnets, seed),
            )
            last = plain.history[-1]
            guided = run(
                "evolutionary",
                study_of(
                    space, table, args.budget, evaluator(reuse=True), 4 * args.subnets, seed + 1000
                ),
                last.accuracy,
            )
            row[name] = {
                "accuracy": last.accuracy,
                "subnets": last.subnets,
                "seconds": last.seconds,
                "all_subnets": plain.tried,
                "all_seconds": plain.seconds,
                "guided_accuracy": guided.history[-1].accuracy,
                "guided_subnets": guided.tried,
                "guided_seconds": guided.seconds,
                "saved": guided.evaluator.counts.saved,
                "reached": guided.history[-1].accuracy >= last.accuracy,
            }
            print(f"seed {seed} {name}: {row[name]}", file=sys.stderr, flush=True)
        rows.append(row)
    return rows


class Replay:
    """Scores that are known already, told only when asked for."""

    def __init__(self, everything: Evaluator) -> None:
        self.metric = everything.metric
        self.known: dict[Arch, float] = {}
        self.margins = Margins(len(everything.data), BATCH, reorder=False)
        self._everything = everything

    def scores(self, archs: Iterable[Arch], floors: Any = None) -> dict[Arch, float]:
        """The scores of subnets."""
        found = self._everything.scores(archs)
        self.known.update(found)
        margins = self._everything.margins.by_arch
        self.margins.by_arch.update({arch: margins[arch] for arch in found})
        return found


def optimum(
    executor: Executor, table: LatencyTable, data: Dataset, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """How often the best of an enumerated space is found."""
    rows = []
    for i, share in enumerate((0.8, 0.88, 0.94)):
        space = small_space(executor.bundle.space, seed=i)
        metric = METRICS["top1"]
        everything = Evaluator(executor, data, metric, batch_size=BATCH, costs=table.costs())
        fitting = [
            arch
            for arch in all_subnets(space)
            if study_of(space, table, share, everything, 1, 0).fits(arch)
        ]
        scores = everything.scores(fitting)
        best = max(scores.values())
        hits, tried = 0, []
        for seed in range(args.optimum_seeds):
            study = study_of(space, table, share, Replay(everything), 200, seed)
            found = run("evolutionary", study, best)
            hits += found.history[-1].accuracy >= best
            tried.append(found.tried)
        rows.append(
            {
                "subnets": space.count(),
                "fitting": len(fitting),
                "budget": share,
                "best": best,
                "optima": sum(score == best for score in scores.values()),
                "found": hits / args.optimum_seeds,
                "median_tried": statistics.median(tried),
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def small_space(space: SearchSpace, seed: int, most: int = 4000) -> SearchSpace:
    """As many new branches, drawn at random, as leave a space that can be enumerated."""
    new = [spec for spec in space.branches if spec.kind != "original"]
    random.Random(seed).shuffle(new)
    kept = [spec for spec in space.branches if spec.kind == "original"]
    for spec in new:
        if SearchSpace(space.n_blocks, (*kept, spec)).count() <= most:
            kept.append(spec)
    return SearchSpace(space.n_blocks, tuple(kept))


def reuse(
    executor: Executor, table: LatencyTable, data: Dataset, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """What sharing saves of groups of candidates near one budget."""
    space, costs = executor.bundle.space, table.costs()
    rows = []
    for n in (50, 100, 200):
        for kind, group in (
            ("uniform", uniform(space, table, args.budget, n)),
            ("search", drawn(executor, table, data, args.budget, n)),
        ):
            peaks: list[int] = [0]
            options: dict[str, Any] = {"batch_size": BATCH, "costs": costs}
            shared = Evaluator(executor, data, METRICS["top1"], watch=peaks.append, **options)
            single = Evaluator(executor, data, METRICS["top1"], reuse=False, **options)
            seconds = [_timed(shared, group), _timed(single, group)]
            assert shared.known == single.known
            bounded = Evaluator(
                executor, data, METRICS["top1"], cache_bytes=max(peaks) // 2, **options
            )
            bounded_s = _timed(bounded, group)
            assert bounded.known == single.known
            rows.append(
                {
                    "kind": kind,
                    "n": len(group),
                    "saved": shared.counts.saved,
                    "time_saved": 1 - seconds[0] / seconds[1],
                    "peak_cache_bytes": max(peaks),
                    "bounded_saved": bounded.counts.saved,
                    "bounded_time_saved": 1 - bounded_s / seconds[1],
                }
            )
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def uniform(space: SearchSpace, table: LatencyTable, share: float, n: int) -> list[Arch]:
    """Candidates of 95 to 100 % of a budget."""
    high = share * table.predict_ms(space.original) - table.overhead_ms()
    return list(dict.fromkeys(space.sample_within(2 * n, table.costs(), 0.95 * high, high, 0)))[:n]


def drawn(
    executor: Executor, table: LatencyTable, data: Dataset, share: float, n: int
) -> list[Arch]:
    """A generation of the guided search: candidates that it asks for together."""
    space = executor.bundle.space
    evaluator = Evaluator(executor, data, METRICS["top1"], batch_size=BATCH, costs=table.costs())
    study = study_of(space, table, share, evaluator, 60 + n, 1)
    groups: list[list[Arch]] = []
    scores = evaluator.scores

    def noted(archs: Iterable[Arch], floors: Any = None) -> dict[Arch, float]:
        groups.append(list(archs))
        return scores(groups[-1], floors)

    evaluator.scores = noted  # type: ignore[method-assign]
    with contextlib.suppress(SearchEndedError):
        Evolutionary().run(study)
    study.max_subnets = study.tried + 10 * n
    groups.clear()
    with contextlib.suppress(SearchEndedError):
        guide = Guide(study)
        Evolutionary(population=n).evolve(study, guide, generations=1)
    return groups[-1][:n]


def _timed(evaluator: Evaluator, group: list[Arch]) -> float:
    begin_s = time.perf_counter()
    evaluator.scores(group)
    return time.perf_counter() - begin_s


def _peak_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def report(result: dict[str, Any]) -> dict[str, bool]:
    """Print the figures against the bars; tell which are met."""
    print(f"\n{result['space']}; budget {result['budget']:.0%}, {result['images']} images\n")
    ratios: dict[str, list[float]] = {"subnets": [], "time": [], "annealing_time": []}
    for row in result["efficiency"]:
        for name in ("plain-evolutionary", "plain-annealing"):
            values = row[name]
            subnets = values["guided_subnets"] / values["subnets"]
            seconds = values["guided_seconds"] / values["seconds"]
            if not values["reached"]:
                subnets = seconds = math.inf
            if name == "plain-evolutionary":
                ratios["subnets"].append(subnets)
                ratios["time"].append(seconds)
            else:
                ratios["annealing_time"].append(seconds)
            print(
                f"seed {row['seed']}  {name:18} {values['accuracy']:.4f} after "
                f"{values['subnets']:4} subnets, {values['seconds']:6.1f} s; guided "
                f"{values['guided_subnets']:4} subnets, {values['guided_seconds']:5.1f} s "
                f"(1/{1 / subnets:.1f}, 1/{1 / seconds:.1f})"
            )
    met = {}
    for key, values in ratios.items():
        middle = statistics.median(values)
        met[key] = middle <= BARS[key]
        print(f"{key}: 1/{1 / middle:.1f} (median of seeds; bar 1/{1 / BARS[key]:.1f})")
    for row in result["optimum"]:
        print(
            f"best of {row['fitting']} subnets of {row['subnets']} found in {row['found']:.0%} of "
            f"seeds, after {row['median_tried']:.0f} (median; {row['optima']} are as good)"
        )
    met["optimum"] = all(row["found"] >= BARS["optimum"] for row in result["optimum"])
    for row in result["reuse"]:
        print(
            f"{row['n']:3} candidates ({row['kind']}): {row['saved']:.1%} of runs and "
            f"{row['time_saved']:.1%} of time saved with a cache of up to "
            f"{row['peak_cache_bytes'] / 2**20:.1f} MiB; {row['bounded_saved']:.1%} and "
            f"{row['bounded_time_saved']:.1%} with half of it"
        )
    met["reuse"] = any(
        row["saved"] >= BARS["reuse"]
        for row in result["reuse"]
        if row["n"] == 200 and row["kind"] == "search"
    )
    memory = result["memory"]
    print(f"memory: {memory['before_mib']:.0f} MiB before, {memory['peak_mib']:.0f} MiB at most")
    for key, value in met.items():
        print(f"  {'met   ' if value else 'MISSED'} {key}")
    return met


if __name__ == "__main__":
    raise SystemExit(main())
