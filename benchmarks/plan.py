"""Predicted against measured scores of subnets: how far a plan can be trusted.

    python benchmarks/plan.py --data FOLDER [--steps 600] [--bundle FOLDER]

distils a supernet of the network that `benchmarks/weights` has for Fashion-MNIST, without labels,
exports and profiles it, and plans with 30 measured subnets on validation images. It then measures
30 further subnets, drawn in the same way with another seed, and prints the median absolute error
and the rank correlation of their predictions (bars: 1 point or 1.5 standard errors of a score,
whichever is larger; 0.9), beside those that the plan states itself. FOLDER holds the published
files; ``--bundle`` takes a bundle and its latency table from an earlier run, and ``--out`` names a
JSON file for the figures.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fxelastic import edge
from fxelastic.edge.searching.data import read_data
from fxelastic.edge.searching.evaluation import Evaluator
from fxelastic.edge.searching.planning import BUDGETS, drawn
from fxelastic.edge.searching.prediction import spearman
from fxelastic.edge.searching.scores import METRICS

N_HELD_OUT = 30
BAR, RANK_BAR = 0.01, 0.9


def made(data: Path, folder: Path, steps: int) -> None:
    """Distil, export and profile; writes validation images beside the bundle."""
    import torch

    import fxelastic
    from benchmarks import fashion
    from fxelastic import kinds

    torch.set_num_threads(1)
    splits = fashion.Fashion.load(data)
    images, classes = splits.validation
    supernet = fxelastic.expand(
        fashion.original(0),
        example_inputs=images[:2],
        kinds=("merged", "pruned", "skip", kinds.LowRank(), kinds.Separable()),
        calibration=[splits.train[0][:64]],
    )
    fxelastic.distill(
        supernet,
        fashion.Batches(splits.train, 64),
        steps=steps,
        lr=1e-3,
        held_out=list(zip(images.split(64), classes.split(64), strict=True))[:8],
        progress=True,
    )
    bundle = fxelastic.export(supernet, folder, verify=False)
    np.savez(folder.with_name("validation.npz"), x=images.numpy(), targets=classes.numpy())
    edge.profile(bundle).save(folder.with_name("latency.json"))


def main() -> None:
    """Print the errors of a plan."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, default=Path("plan/bundle"))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if not args.bundle.exists():
        args.bundle.parent.mkdir(parents=True, exist_ok=True)
        made(args.data, args.bundle, args.steps)
    bundle = edge.load(args.bundle)
    table = edge.LatencyTable.load(args.bundle.with_name("latency.json"))
    given = np.load(args.bundle.with_name("validation.npz"))
    data = given["x"][: args.samples], given["targets"][: args.samples]
    plan = edge.plan(bundle, table, data, held_out=0.0, force=True)
    costs = table.costs_of("assembled")
    distortion = plan.prediction.distortion
    errors = dict(zip(distortion.branches, distortion.errors.tolist(), strict=True))
    low = float(BUDGETS[0].rstrip("%")) / 100 * plan.original_ms
    rng = random.Random("held out")
    archs = drawn(bundle.space, costs, errors, 2 * N_HELD_OUT, low, rng)
    archs = [arch for arch in archs if arch not in plan.measured][:N_HELD_OUT]
    with edge.Executor(bundle, 1) as executor:
        evaluator = Evaluator(executor, read_data(bundle, data), METRICS["top1"])
        scores = evaluator.scores(archs)
    measured = np.fromiter(scores.values(), float)
    expected = plan.prediction.predict(list(scores))
    found = np.abs(expected.scores - measured)
    result = {
        "held_out": len(found),
        "median": float(np.median(found)),
        "bar": max(BAR, 1.5 * plan.standard_error),
        "rank": spearman(expected.scores, measured),
        "rank_bar": RANK_BAR,
        "within": float((found < expected.bands).mean()),
        "stated_median": plan.median_error,
        "stated_rank": plan.rank_correlation,
        "original": plan.original_score,
        "standard_error": plan.standard_error,
        "scores": measured.tolist(),
    }
    print(
        f"original {plan.original_score:.4f}; standard error of a score {plan.standard_error:.4f}"
    )
    print(f"stated: median error {plan.median_error:.4f}, rank {plan.rank_correlation:.3f}")
    print(
        f"{len(found)} held-out subnets, scores {measured.min():.3f} to {measured.max():.3f}: "
        f"median error {result['median']:.4f} (bar {result['bar']:.4f}), "
        f"rank {result['rank']:.3f} (bar {RANK_BAR}); {result['within']:.0%} within their bands"
    )
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
