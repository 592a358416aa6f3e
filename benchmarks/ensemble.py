"""Compare the default kinds of branches with merged, pruned and skip alone on Fashion-MNIST.

    python benchmarks/ensemble.py --data FOLDER --work FOLDER --seeds 0 1 2 --out FILE

FOLDER of ``--data`` holds the published files of Fashion-MNIST; the originals are those of
`fashion.py`. Two supernets of each original get the same calibration, the same steps of
distillation and the same steps of tuning: one with merged, pruned and skip branches, however large,
and one with the default kinds and at most twice the original's parameters, or with those of
``--kinds``. For budgets of 50 to 95 % of the original's latency, both are searched on the
validation images with as many subnets, and the subnets found are judged on the test images. The
second supernet is exported with 8-bit branches as well, and searched at 40 %.

All subnets are assembled and run in onnxruntime with one thread. Their latencies are processor
times taken in turns with the original. Intermediate results stay in ``--work``; an interrupted run
resumes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fxelastic
from benchmarks.fashion import Batches, Fashion, original
from benchmarks.machine import facts
from benchmarks.pretrained_subnets import shares_of_time
from benchmarks.tradeoff import profiled, searched
from fxelastic import Int8, Supernet, edge
from fxelastic.branches.registry import DEFAULT_KINDS
from fxelastic.edge.sessions import SessionMaker
from fxelastic.files import replace_file
from fxelastic.spec import Arch

GAMMA = 0.1
BUDGETS = ("50%", "60%", "70%", "80%", "90%", "95%")
INT8_BUDGET = "40%"
#: Points that the mean of a budget may lie below that of the plain kinds.
MARGIN = 0.3
#: Points that the subnet with 8-bit branches may lose.
INT8_LOSS = 1.0
PLAIN = ("merged", "pruned", "skip")
CALIBRATION = 4  # batches
ROUNDS = 300
BATCH = 500


@dataclass(frozen=True)
class Setting:
    """How long to train.

    Attributes:
        distill: Steps of distillation.
        tune: Steps of tuning.
    """

    distill: int
    tune: int


def main() -> int:
    """Run the seeds without a result, and print the comparison; return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of Fashion-MNIST")
    parser.add_argument("--work", type=Path, default=Path("build/ensemble"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--kinds", nargs="+", default="default", help="kinds to compare with")
    parser.add_argument("--distill", type=int, default=800, help="steps of distillation")
    parser.add_argument("--tune", type=int, default=800, help="steps of tuning")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    setting = Setting(args.distill, args.tune)
    data = Fashion.load(args.data)
    results = []
    for seed in args.seeds:
        path = args.work / f"{seed}.json"
        if not path.exists():
            folder = args.work / str(seed)
            folder.mkdir(parents=True, exist_ok=True)
            found = compare(seed, data, folder, args.kinds, setting)
            replace_file(path, json.dumps(found, indent=1).encode())
        results.append(json.loads(path.read_text()))
    kinds = args.kinds if args.kinds != "default" else list(DEFAULT_KINDS)
    result = {"kinds": kinds, **vars(setting), "machine": facts(), "seeds": results}
    result |= summary(results)
    print(text(result), flush=True)
    if args.out is not None:
        replace_file(args.out, (json.dumps(result, indent=1) + "\n").encode())
    return 0 if all(result["met"].values()) else 1


def compare(
    seed: int, data: Fashion, folder: Path, chosen: str | Sequence[str], setting: Setting
) -> dict[str, Any]:
    """Both supernets of one seed."""
    found: dict[str, Any] = {"seed": seed}
    validation = data.validation[0].numpy(), data.validation[1].numpy()
    for way, kinds in {"plain": PLAIN, "ensemble": chosen}.items():
        net = trained(seed, data, kinds, folder / f"{way}.safetensors", setting)
        bundle = fxelastic.export(net, folder / way, verify=False, force=True)
        table = profiled(folder / way)
        archs = searched(bundle, table, validation, list(BUDGETS), seed)
        names = [arch and str(arch) for arch in archs]
        found[way] = {"branches": len(bundle.space.branches), "archs": names}
        found[way] |= judged(bundle, archs, data)
        print(f"seed {seed}, {way}: {found[way]['accuracy']}", file=sys.stderr, flush=True)
    path = folder / "int8"
    quantise = Int8(_calibration(data, seed))
    bundle = fxelastic.export(net, path, verify=False, force=True, quantise=quantise)
    archs = searched(bundle, profiled(path), validation, [INT8_BUDGET], seed)
    found["int8"] = {"archs": [arch and str(arch) for arch in archs]} | judged(bundle, archs, data)
    print(f"seed {seed}, int8: {found['int8']}", file=sys.stderr, flush=True)
    return found


def _calibration(data: Fashion, seed: int) -> list[tuple[torch.Tensor]]:
    batches = Batches(data.train, seed=seed, augment=False)
    return [(x,) for x, _ in itertools.islice(batches, CALIBRATION)]


def trained(
    seed: int, data: Fashion, kinds: str | Sequence[str], weights: Path, setting: Setting
) -> Supernet:
    """A calibrated, distilled and tuned supernet, or its weights from an earlier run."""
    model = original(seed)
    net = fxelastic.expand(
        model,
        GAMMA,
        example_inputs=data.train[0][:2],
        kinds=kinds,
        calibration=_calibration(data, seed),
        seed=seed,
        threads=1,
    )
    if weights.exists():
        return net.load(weights)
    options: dict[str, Any] = {"seed": seed, "warmup": 0.05, "threads": 1}
    options["held_out"] = list(Batches(data.validation, augment=False))[:8]
    batches = Batches(data.train, seed=seed)
    fxelastic.distill(net, batches, steps=setting.distill, **options)
    sampling = fxelastic.train.Bucketed()
    fxelastic.tune(net, batches, steps=setting.tune, soft=0.5, sampling=sampling, **options)
    net.save(weights)
    return net


def judged(bundle: edge.Bundle, archs: Sequence[Arch | None], data: Fashion) -> dict[str, Any]:
    """Accuracy on the test images, and the share of the original's latency, for each subnet.

    A budget that no subnet keeps has None for both.
    """
    folder = bundle.path.with_suffix(".subnets")
    folder.mkdir(exist_ok=True)
    known = {arch: folder / f"{i}.onnx" for i, arch in enumerate(dict.fromkeys(archs)) if arch}
    path = edge.assemble(bundle, bundle.space.original, folder / "original.onnx")
    for arch, file in known.items():
        edge.assemble(bundle, arch, file)
    images, classes = (part.numpy() for part in data.test)
    name = SessionMaker(threads=1).open_branch(path).get_inputs()[0].name
    _, shares = shares_of_time([path, *known.values()], {name: images[:1]}, ROUNDS)
    rows = {
        arch: (_accuracy(file, images, classes), share[0])
        for (arch, file), share in zip(known.items(), shares, strict=True)
    }
    pairs = [(None, None) if arch is None else rows[arch] for arch in archs]
    return {
        "original": _accuracy(path, images, classes),
        "accuracy": [accuracy for accuracy, _ in pairs],
        "latency": [latency for _, latency in pairs],
    }


def _accuracy(path: Path, images: np.ndarray, classes: np.ndarray) -> float:
    session = SessionMaker(threads=1).open_branch(path)
    name = session.get_inputs()[0].name
    starts = range(0, len(images), BATCH)
    scores = [session.run(None, {name: images[i : i + BATCH]})[0] for i in starts]
    return float((np.concatenate(scores).argmax(1) == classes).mean())


def summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean accuracies in percent, paired differences in points, and which bars are met."""
    rows: list[dict[str, Any]] = []
    for i, budget in enumerate(BUDGETS):
        pairs = [(r["ensemble"]["accuracy"][i], r["plain"]["accuracy"][i]) for r in results]
        kept = [(100 * a, 100 * b) for a, b in pairs if a is not None and b is not None]
        if kept:
            row = {
                "budget": budget,
                "ensemble": statistics.mean(a for a, _ in kept),
                "plain": statistics.mean(b for _, b in kept),
                "difference": statistics.mean(a - b for a, b in kept),
            }
            rows.append(row)
    losses = [
        100 * (r["int8"]["original"] - r["int8"]["accuracy"][0])
        for r in results
        if r["int8"]["accuracy"][0] is not None
    ]
    loss = statistics.mean(losses) if losses else None
    met = {row["budget"]: row["difference"] >= -MARGIN for row in rows}
    met |= {f"8 bits at {INT8_BUDGET}": loss is not None and loss <= INT8_LOSS}
    teacher = statistics.mean(100 * r["plain"]["original"] for r in results)
    return {"original": teacher, "rows": rows, "int8_loss": loss, "met": met}


def text(result: dict[str, Any]) -> str:
    """The comparison as lines of text."""
    lines = [f"original: {result['original']:.2f} %", "budget     plain  ensemble  difference"]
    lines += [
        f"{row['budget']:>6}{row['plain']:>10.2f}{row['ensemble']:>10.2f}{row['difference']:>+12.2f}"
        for row in result["rows"]
    ]
    loss = result["int8_loss"]
    told = "no subnet" if loss is None else f"{loss:.2f} points below the original"
    lines.append(f"with 8-bit branches at {INT8_BUDGET}: {told}")
    lines += [f"{'met' if met else 'MISSED'}: {name}" for name, met in result["met"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
