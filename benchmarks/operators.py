"""Measure what each kind of branch loses before training, on networks with real weights.

    python benchmarks/operators.py --images FOLDER --out FILE

One block at a time is replaced by a branch, which reads the model's own values. The error is the
squared error of its output over the variance of the model's own output, on samples of the test
split. Kinds are compared at an equal share of the block's FLOPs, between whose measured points the
error is interpolated. Operators are made twice: by the weights alone, and weighted by calibration
data of the training split. The last map of no branch is fitted, so that the comparison is of the
operators alone. The packages and the data are those of `pretrained.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import itertools

import fxelastic
from benchmarks.machine import facts
from benchmarks.pretrained_branches import batches, branch_sums, normalised_errors
from benchmarks.pretrained_data import Samples, load_samples
from benchmarks.pretrained_models import (
    GAMMA,
    REQUIRED,
    PretrainedModel,
    check_installed,
    load_model,
)
from fxelastic import kinds
from fxelastic.files import replace_file

#: Shares of a block's FLOPs at which kinds are compared.
SHARES = (0.75, 0.5, 0.35)
OPERATORS: dict[str, Any] = {
    "lowrank": kinds.LowRank(ranks=(0.8, 0.65, 0.5, 0.35, 0.25)),
    "lowrank spatial": kinds.LowRank(ranks=(0.8, 0.5, 0.25), ways=("spatial",)),
    "tucker": kinds.Tucker(ranks=(0.85, 0.7, 0.5, 0.35)),
    "separable": kinds.Separable(terms=(1, 2, 3)),
    "grouped": kinds.Grouped(groups=(2, 4)),
    "ghost": kinds.Ghost(ratios=(0.75, 0.5, 0.25)),
    "fire": kinds.Fire(ratios=(0.5, 0.25)),
}
OTHERS: dict[str, Any] = {
    "pruned": kinds.Pruned(ratios=(0.125, 0.25, 0.375, 0.5, 0.625)),
    "lowres": kinds.LowRes(),
}
CALIBRATION, JUDGED = 64, 128  # samples

#: For each block the points (share of FLOPs, error) of a kind.
Points = dict[int, list[tuple[float, float]]]


def measured(model: PretrainedModel, samples: dict[str, Samples], kind: Any) -> Points:
    """The branches of one kind: their FLOPs and errors."""
    example = model.tensors(samples["train"], slice(0, 2))
    supernet = fxelastic.expand(
        model.module, GAMMA, example_inputs=example, kinds=(kind,), threads=1
    )
    originals = {branch.start: branch.flops for branch in supernet.path()}
    found: Points = defaultdict(list)
    sums = branch_sums(supernet, model, batches(model, samples["test"].take(JUDGED)))
    for name, values in sums.items():
        branch = supernet.branches[name]
        share = branch.flops / max(1, originals[branch.start])
        found[branch.start].append((share, float(normalised_errors(values.sum(0)))))
    return {start: sorted(points) for start, points in found.items()}


def error_at(points: list[tuple[float, float]], share: float) -> float | None:
    """The error at a share of the FLOPs, interpolated in its logarithm; None outside the points.

    The whole block is a point, too: all its FLOPs, without an error.
    """
    least = 1e-6
    points = [*points, (1.0, least)]
    for (a, low), (b, high) in itertools.pairwise(points):
        if a <= share <= b and b > a:
            part = (share - a) / (b - a)
            logs = [math.log(max(least, x)) for x in (low, high)]
            # Towards the whole block the error is linear: its logarithm has no end.
            return math.exp(logs[0] + part * (logs[1] - logs[0])) if b < 1 else low * (1 - part)
    return None


def compared(found: dict[str, Points]) -> list[dict[str, Any]]:
    """For each share the mean error of each kind, over the blocks that pruning reaches, too."""
    rows = []
    for share in SHARES:
        errors = {
            kind: {start: error_at(values, share) for start, values in points.items()}
            for kind, points in found.items()
        }
        for kind, by_block in errors.items():
            pairs = [
                (own, other)
                for start, own in by_block.items()
                if own is not None and (other := errors["pruned"].get(start)) is not None
            ]
            if pairs:
                n = len(pairs)
                rows.append(
                    {
                        "share": share,
                        "kind": kind,
                        "blocks": n,
                        "error": sum(own for own, _ in pairs) / n,
                        "pruned": sum(other for _, other in pairs) / n,
                    }
                )
    return rows


def main() -> int:
    """Measure both models, and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=REQUIRED, help="one of the models (default: both)")
    parser.add_argument("--images", type=Path, help="folder of photographs")
    parser.add_argument("--text", type=Path, help="file of sentences")
    parser.add_argument("--work", type=Path, help="folder for samples (default: temporary)")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    args = parser.parse_args()
    names = [args.model] if args.model else list(REQUIRED)
    for name in names:
        check_installed(name)
    if args.images is None and "efficientnet" in names:
        raise SystemExit("efficientnet needs --images FOLDER, with folders train and test in it")
    torch.set_num_threads(1)
    result: dict[str, Any] = {"machine": facts(), "models": {}}
    with tempfile.TemporaryDirectory(prefix="operators-") as temporary:
        for name in names:
            folder = (args.work or Path(temporary)) / name / "samples"
            samples = load_samples(name, folder, args.images, args.text)
            model = load_model(name)
            data = ((model.tensors(samples["train"].take(CALIBRATION), slice(None)), {}),)
            found: dict[str, Points] = {}
            for kind, maker in OTHERS.items():
                found[kind] = measured(model, samples, maker)
            for kind, maker in OPERATORS.items():
                found[f"{kind}, weights alone"] = measured(model, samples, maker)
                fitted = dataclasses.replace(maker, calibration=data)
                found[kind] = measured(model, samples, fitted)
                print(f"{name}: {kind} done", file=sys.stderr, flush=True)
            rows = compared(found)
            result["models"][name] = {"rows": rows, "points": found}
            print(f"{name}: mean error over blocks, of the variance of their outputs")
            for row in rows:
                print(
                    f"  {row['share']:4.0%} of the FLOPs  {row['kind']:28s} {row['error']:.4f}"
                    f"  pruned {row['pruned']:.4f}  ({row['blocks']} blocks)"
                )
    if args.out is not None:
        replace_file(args.out, (json.dumps(result, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
