"""Measure how much the guided search and shared prefixes save, on a trained supernet.

    python benchmarks/trained_bundle.py build/glyphs     (once)
    python benchmarks/search.py build/glyphs [--out FILE]

Prints, on 500 images and with one latency table,

- the subnets and the time that the plain evolutionary search (which evaluates each subnet alone)
  and the guided search (with shared prefixes) take to the same accuracy (bars: 1/4 of the subnets,
  1/14 of the time; 1/6.5 of plain annealing's time; aims: 1/8, 1/30, 1/15), in two ways: as
  published (AdaptiveNet, Figure 12a), until the mean over seeds reaches the plain search's final
  mean; and seed by seed, until the plain search's final accuracy is first reached, as the median
  over seeds;
- in how many seeds the guided search finds the best of a space that was enumerated (bar: 95 %);
- the share of branch runs and of time that shared prefixes save for 50, 100 and 200 candidates near
  one budget, drawn uniformly or as a generation of a search, and the peak of the cache (bar: 57 %
  for 200 candidates of a search; aim: 80 %);
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.search_measures import AXES, seed_by_seed, to_the_same_average
from fxelastic import edge
from fxelastic.edge.bundle import Bundle
from fxelastic.edge.executor import Executor
from fxelastic.edge.searching.data import Dataset, read_data
from fxelastic.edge.searching.evaluation import Evaluator
from fxelastic.edge.searching.evolutionary import Evolutionary
from fxelastic.edge.searching.proposals import all_subnets
from fxelastic.edge.searching.scores import METRICS
from fxelastic.edge.searching.study import SearchEndedError, Study, strategy
from fxelastic.edge.searching.tally import Margins
from fxelastic.spec import Arch, SearchSpace
from fxelastic.spec.latency_table import LatencyTable
from fxelastic.spec.limits import Limits

BARS = {
    ("plain-evolutionary", "subnets"): 1 / 4,
    ("plain-evolutionary", "seconds"): 1 / 14,
    ("plain-annealing", "seconds"): 1 / 6.5,
}
OPTIMUM, REUSE = 0.95, 0.57
BATCH = 50
PLAIN = ("plain-evolutionary", "plain-annealing")
GENERATIONS = 3


def main() -> int:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--optimum-seeds", type=int, default=40)
    parser.add_argument("--budget", type=float, default=0.6, help="share of the original's latency")
    parser.add_argument("--subnets", type=int, default=800, help="for a plain search")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    bundle = edge.load(args.folder / "bundle")
    table = _table(bundle, args.folder / "latency.json", args.threads)
    data = read_data(bundle, args.folder / "search.npz")
    before = psutil.Process().memory_info().rss
    with Executor(bundle, args.threads, None) as executor:
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
    limits = Limits({"latency_ms": share * table.predict_ms(space.original)})
    rng = random.Random(f"benchmark {seed}")
    return Study(space, table.costs_of(), limits, evaluator, n, rng)


def run(name: str, study: Study, goal: float = math.inf, least: int = 0) -> Study:
    """Search until the end, or until enough subnets are tried and the best reaches the goal."""

    def reached(study: Study) -> None:
        if study.tried >= least and study.best is not None and study.scores[study.best] >= goal:
            raise SearchEndedError

    study.progress = reached
    with contextlib.suppress(SearchEndedError):
        strategy(name)().run(study)
    return study


def efficiency(
    executor: Executor, table: LatencyTable, data: Dataset, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """The best so far by subnets and time, for each seed and way to search."""
    rows = []
    for seed in range(args.seeds):

        def study(n: int, seed: int, *, reuse: bool) -> Study:
            options: dict[str, Any] = {"batch_size": BATCH, "costs": table.costs(), "reuse": reuse}
            evaluator = Evaluator(executor, data, METRICS["top1"], **options)
            return study_of(executor.bundle.space, table, args.budget, evaluator, n, seed)

        found = {name: run(name, study(args.subnets, seed, reuse=False)) for name in PLAIN}
        goal = max(plain.history[-1].accuracy for plain in found.values())
        guided = study(4 * args.subnets, seed + 1000, reuse=True)
        found["evolutionary"] = run("evolutionary", guided, goal, args.subnets // 2)
        row = {
            "seed": seed,
            **{
                name: {
                    "steps": [[s.subnets, s.seconds, s.accuracy] for s in study.history],
                    "subnets": study.tried,
                    "seconds": study.seconds,
                    "saved": study.evaluator.counts.saved,
                }
                for name, study in found.items()
            },
        }
        rows.append(row)
        print(f"seed {seed}: {row}", file=sys.stderr, flush=True)
    return rows


class Replay:
    """Returns known scores instead of evaluating subnets."""

    def __init__(self, everything: Evaluator) -> None:
        self.metric = everything.metric
        self.known: dict[Arch, float] = {}
        self.margins = Margins(len(everything.data), BATCH, reorder=False)
        self.distortion = everything.distortion
        self.make_room = everything.make_room
        self._everything = everything

    def estimates(self) -> dict[Arch, float]:
        """Return no estimates: no evaluation ends early."""
        return {}

    def scores(
        self, archs: Iterable[Arch], floors: Any = None, stop: Any = None
    ) -> dict[Arch, float]:
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
    """A space of random new branches that is small enough to enumerate."""
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
    """Savings by shared prefixes in groups of candidates near one budget."""
    space, costs = executor.bundle.space, table.costs()
    rows = []
    for n in (50, 100, 200):
        for kind, groups in (
            ("uniform", [uniform(space, table, args.budget, n)]),
            ("search", drawn(executor, table, data, args.budget, n)),
        ):
            peaks: list[int] = [0]
            options: dict[str, Any] = {"batch_size": BATCH, "costs": costs}
            shared = Evaluator(executor, data, METRICS["top1"], watch=peaks.append, **options)
            single = Evaluator(executor, data, METRICS["top1"], reuse=False, **options)
            seconds = [_timed(shared, groups), _timed(single, groups)]
            assert shared.known == single.known
            bounded = Evaluator(
                executor, data, METRICS["top1"], cache_bytes=max(peaks) // 2, **options
            )
            bounded_s = _timed(bounded, groups)
            assert bounded.known == single.known
            rows.append(
                {
                    "kind": kind,
                    "n": n,
                    "groups": [len(group) for group in groups],
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
) -> list[list[Arch]]:
    """Generations of n candidates of a guided search, without the first generation."""
    evaluator = Evaluator(executor, data, METRICS["top1"], batch_size=BATCH, costs=table.costs())
    search = Evolutionary(population=n)
    most = search.first + GENERATIONS * n
    study = study_of(executor.bundle.space, table, share, evaluator, most, seed=1)
    groups: list[list[Arch]] = []
    scores = evaluator.scores

    def noted(archs: Iterable[Arch], floors: Any = None, stop: Any = None) -> dict[Arch, float]:
        groups.append(list(archs))
        return scores(groups[-1], floors)

    evaluator.scores = noted  # type: ignore[method-assign]
    with contextlib.suppress(SearchEndedError):
        search.run(study)
    return groups[1:]


def _timed(evaluator: Evaluator, groups: list[list[Arch]]) -> float:
    begin_s = time.perf_counter()
    for group in groups:
        evaluator.scores(group)
    return time.perf_counter() - begin_s


def _peak_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def report(result: dict[str, Any]) -> dict[str, bool]:
    """Print the figures and their bars; return whether each bar is met."""
    print(f"\n{result['space']}; budget {result['budget']:.0%}, {result['images']} images\n")
    met = {}
    for name, what in ((name, what) for name in PLAIN for what in AXES):
        guided, plain = to_the_same_average(result["efficiency"], name, what)
        by_seed = seed_by_seed(result["efficiency"], name, what)
        print(
            f"{what} of {name} and guided, to the same average accuracy: {plain:.1f}, "
            f"{guided:.1f} (1/{plain / guided:.1f}); seed by seed 1/{1 / by_seed:.1f} (median)"
        )
        bar = BARS.get((name, what))
        if bar is not None:
            print(f"  bar: 1/{1 / bar:.1f}")
            met[f"{name}, {what}"] = guided / plain <= bar
            met[f"{name}, {what}, seed by seed"] = by_seed <= bar
    for row in result["optimum"]:
        print(
            f"best of {row['fitting']} subnets of {row['subnets']} found in {row['found']:.0%} of "
            f"seeds, after {row['median_tried']:.0f} (median; {row['optima']} are as good)"
        )
    met["optimum"] = all(row["found"] >= OPTIMUM for row in result["optimum"])
    for row in result["reuse"]:
        print(
            f"{row['n']:3} candidates ({row['kind']}): {row['saved']:.1%} of runs and "
            f"{row['time_saved']:.1%} of time saved with a cache of up to "
            f"{row['peak_cache_bytes'] / 2**20:.1f} MiB; {row['bounded_saved']:.1%} and "
            f"{row['bounded_time_saved']:.1%} with half of it"
        )
    met["reuse"] = any(
        row["saved"] >= REUSE
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
