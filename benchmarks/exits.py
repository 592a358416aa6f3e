"""Measure cascades of early exits, on Fashion-MNIST and on generated texts.

    python benchmarks/exits.py --data FOLDER [--seeds 0] [--epochs 3] [--work FOLDER] [--out FILE]
    python benchmarks/exits.py --task topics [...]

The networks are those of `fashion.py`, or the transformers of `topics.py`, which are trained first
if the folder of ``--work`` does not have them. Exits after every block are distilled on the
training split; thresholds come from the validation split, half of which tests them; everything
below is measured on the test split, which nothing was chosen on, with onnxruntime and one thread:

- the mean latency at batch size 1 against the original's, in turns, sample by sample, by the
  processor time of the thread (bars: 45 % less at a loss of at most 1 point, 25 % less at 0.3);
- accuracy, harmed samples, the share of samples that leave at each exit, and how well confidences
  rank mistakes (AUROC);
- violations of the bound over 200 seeded splits, with the risk on the whole pool of validation and
  test samples (bar: at most 19 at delta 0.05);
- 1,000 samples alone and in batches of 7 and 64: where they leave, and their results, against the
  differences that the cascade's subnets have by themselves between batch sizes;
- throughput at batch size 32 against the original's.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fxelastic
from benchmarks import topics
from benchmarks.fashion import Batches, Fashion, Split, accuracy, original
from benchmarks.machine import commit, facts
from benchmarks.topics import Topics
from fxelastic import edge, kinds
from fxelastic.edge.cascades.entry import CascadeEntry
from fxelastic.edge.cascades.finding import exits_along, leaving_along, record, useful
from fxelastic.edge.cascades.thresholds import Leaving, choose, proposals
from fxelastic.edge.searching.data import read_data
from fxelastic.edge.serving.options import Serving
from fxelastic.edge.serving.serve import loader_of
from fxelastic.files import replace_file
from fxelastic.spec.cascade import Cascade
from fxelastic.spec.resources import LATENCY

GAMMA = 0.05
LOSSES, DELTA = (0.003, 0.01), 0.05
#: The least share of the latency that is saved, for each loss.
BARS = {0.003: 0.25, 0.01: 0.45}
CONFIDENCES = ("max_softmax", "margin", "entropy")
N_SPLITS, MOST_VIOLATIONS = 200, 19
N_TIMED, N_COMPARED, SIZES = 1500, 1000, (7, 64)


@dataclass(frozen=True)
class Task:
    """What a network is for.

    Attributes:
        data: Samples and their classes.
        original: The trained network of a seed.
        augment: Whether images are mirrored and shifted in training.
    """

    data: Fashion | Topics
    original: Callable[[int], torch.nn.Module]
    augment: bool


def task_of(args: argparse.Namespace, folder: Path) -> Task:
    """The task that the options name; the folder keeps weights."""
    if args.task == "fashion":
        return Task(Fashion.load(args.data), original, augment=True)
    texts = Topics.generate()
    return Task(texts, lambda seed: topics.original(seed, texts, folder), augment=False)


def build(seed: int, task: Task, folder: Path, epochs: int) -> dict[str, Any]:
    """Expand the network of a seed with exits, distil them, and export them."""
    model, data = task.original(seed), task.data
    calibration = list(data.train[0][:2048].split(128))
    supernet = fxelastic.expand(
        model,
        GAMMA,
        example_inputs=data.train[0][:2],
        kinds=(kinds.Exit(every=1),),
        calibration=calibration,
        seed=seed,
        threads=1,
    )
    begin_s = time.process_time()
    loader = Batches(data.train, seed=seed, augment=task.augment)
    fxelastic.distill(supernet, loader, epochs=epochs, seed=seed, threads=1)
    took_s = time.process_time() - begin_s
    fxelastic.export(supernet, folder, force=True)
    exits = [branch for branch in supernet.branches.values() if branch.kind == "exit"]
    originals = sum(block.n_params for block in supernet.partition.blocks)
    return {
        "test_accuracy": accuracy(model, data.test),
        "n_exits": len(exits),
        "params_of_exits": sum(branch.n_params for branch in exits) / originals,
        "distillation_s": took_s,
        "refused": [str(refusal) for refusal in supernet.skips],
    }


def arrays(split: Split) -> tuple[np.ndarray, np.ndarray]:
    return split[0].numpy(), split[1].numpy()


def joined(*splits: Split) -> tuple[np.ndarray, np.ndarray]:
    x, y = (np.concatenate(parts) for parts in zip(*map(arrays, splits), strict=True))
    return x, y


def interleaved(
    runs: dict[str, Callable[[np.ndarray], Any]], inputs: list[np.ndarray]
) -> dict[str, float]:
    """The processor time of each run over the inputs, in s; the runs take turns."""
    spent = dict.fromkeys(runs, 0.0)
    for x in inputs[:20]:
        for run in runs.values():
            run(x)
    for i, x in enumerate(inputs):
        order = list(runs) if i % 2 else list(runs)[::-1]
        for name in order:
            begin_s = time.thread_time()
            runs[name](x)
            spent[name] += time.thread_time() - begin_s
    return spent


class Served:
    """Subnets and cascades in memory, as serving runs them."""

    def __init__(self, bundle: edge.Bundle, mode: str) -> None:
        self.loader = loader_of(bundle, mode, options=Serving(threads=1))
        self.name = bundle.inputs[0].name

    def __call__(self, arch: Any) -> Callable[[np.ndarray], Any]:
        loaded = self.loader.load(arch, urgent=True)
        return lambda x: loaded.run({self.name: x})


def figures(bundle: edge.Bundle, entry: CascadeEntry, test: Any, mode: str) -> dict[str, Any]:
    """One cascade on the test split."""
    x, y = test
    served = Served(bundle, mode)
    whole, cascade = served(bundle.space.original), served(entry.cascade)
    found = [cascade(part) for part in np.array_split(x, 40)]
    classes = np.concatenate([result.outputs[0].argmax(1) for result in found])
    left_at = np.concatenate([result.left_at for result in found])
    theirs = np.concatenate([whole(part)[0].argmax(1) for part in np.array_split(x, 40)])
    alone = interleaved(
        {"whole": whole, "cascade": cascade}, [x[i : i + 1] for i in range(N_TIMED)]
    )
    batches = [x[i : i + 32] for i in range(0, 2560, 32)]
    together = interleaved({"whole": whole, "cascade": cascade}, batches)
    return {
        "cascade": str(entry.cascade),
        "expected_saving": None,
        "saving": 1 - alone["cascade"] / alone["whole"],
        "saving_at_32": 1 - together["cascade"] / together["whole"],
        "original_ms": 1e3 * alone["whole"] / N_TIMED,
        "coverage": (np.bincount(left_at, minlength=len(entry.coverage)) / len(y)).tolist(),
        "harmed": float(((classes != y) & (theirs == y)).mean()),
        "loss": float((theirs == y).mean() - (classes == y).mean()),
        "bound": entry.bound,
        "auroc": list(entry.auroc),
    }


def splits(whole: Leaving) -> dict[str, Any]:
    """How often thresholds of a part of the pool harm more of all of it than they may."""
    n_over = dict.fromkeys(LOSSES, 0)
    savings: dict[float, list[float]] = {loss: [] for loss in LOSSES}
    for seed in range(N_SPLITS):
        order = np.random.default_rng(seed).permutation(len(whole))
        proposed, testing = proposals(whole.take(order[:2500])), whole.take(order[2500:5000])
        for loss in LOSSES:
            n_harmed, cost = whole.outcome(choose(proposed, testing, loss, DELTA).thresholds)
            n_over[loss] += n_harmed > loss * len(whole)
            savings[loss].append(1 - cost / float(whole.costs[-1]))
    return {
        str(loss): {"violations": n_over[loss], "mean_saving": float(np.mean(savings[loss]))}
        for loss in LOSSES
    }


def neighbours(bundle: edge.Bundle, cascade: Cascade, x: np.ndarray, mode: str) -> dict[str, Any]:
    """Samples alone against the same samples in batches."""
    served = Served(bundle, mode)
    whole = served(cascade)
    subnets = [served(arch) for arch in cascade.archs]
    heads = subnets[:-1]
    x = x[:N_COMPARED]

    def parts(run: Callable[[np.ndarray], Any], size: int) -> list[Any]:
        return [run(x[i : i + size]) for i in range(0, len(x), size)]

    def outputs(found: list[Any]) -> np.ndarray:
        return np.concatenate([part[0] for part in found])

    def left_at(found: list[Any]) -> np.ndarray:
        return np.concatenate([part.left_at for part in found])

    from fxelastic.edge.cascades.confidence import confidence

    sure = confidence(cascade.confidence)
    alone = parts(whole, 1)
    # That of onnxruntime between batch sizes, for each subnet of the cascade by itself.
    tolerance = max(
        float(np.abs(outputs(parts(run, size)) - outputs(parts(run, 1))).max())
        for run in subnets
        for size in SIZES
    )
    # How far a confidence moves with the batch size, at any of the exits.
    close = np.zeros(len(x), bool)
    moved = 0.0
    for head, threshold in zip(heads, cascade.thresholds, strict=True):
        own = np.concatenate([sure(head(x[i : i + 1])[0]) for i in range(len(x))])
        for size in SIZES:
            other = np.concatenate([sure(head(x[i : i + size])[0]) for i in range(0, len(x), size)])
            moved = max(moved, float(np.abs(own - other).max()))
        close |= np.abs(own - threshold) <= 2 * moved
    found: dict[str, Any] = {"tolerance": tolerance, "confidence_moves": moved}
    found["near_a_threshold"] = int(close.sum())
    for size in SIZES:
        together = parts(whole, size)
        same = left_at(together) == left_at(alone)
        found[f"other_exit_at_{size}"] = int((~same & ~close).sum())
        difference = np.abs(outputs(together) - outputs(alone))
        found[f"difference_at_{size}"] = float(difference[same].max())
    return found


def measure(seed: int, task: Task, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """All figures of one seed."""
    data = task.data
    report = folder / f"built-{seed}.json"
    path = folder / f"bundle-{seed}"
    if not report.exists():
        report.write_text(json.dumps(build(seed, task, path, args.epochs)))
    bundle = edge.load(path)
    table_path = folder / f"latency-{seed}.json"
    if not table_path.exists():
        edge.profile(bundle, threads=1, n_subnets=20, n_held_out=6).save(table_path)
    table = edge.LatencyTable.load(table_path)
    found: dict[str, Any] = {"seed": seed, **json.loads(report.read_text()), "cascades": {}}
    test = arrays(data.test)
    price_of = table.costs_of(args.mode)[LATENCY]
    whole_ms = table.predict_ms(bundle.space.original, args.mode)
    for by in CONFIDENCES:
        result = edge.search(
            bundle,
            table,
            arrays(data.validation),
            budget="99%",
            max_loss=LOSSES,
            delta=DELTA,
            held_out=0.5,
            exit_confidence=by,
            max_subnets=5,
            threads=1,
            force=True,
            mode=args.mode,
        )
        for entry in result.cascades:
            if entry.cascade.end != bundle.space.original:
                continue
            own = figures(bundle, entry, test, args.mode)
            own["expected_saving"] = 1 - entry.latency_ms / whole_ms
            found["cascades"][f"{by} {entry.max_loss}"] = own
            print(f"seed {seed}, {by}, {entry.max_loss}: {own}", file=sys.stderr, flush=True)
        if by == CONFIDENCES[0] and result.cascades:
            entry = result.cascades[0]
            found["neighbours"] = neighbours(bundle, entry.cascade, test[0], args.mode)
    with edge.Executor(bundle, 1) as executor:
        pool = read_data(bundle, joined(data.validation, data.test))
        trunk = bundle.space.original
        pool_answers = record(
            executor, pool, trunk, exits_along(bundle, trunk, price_of), CONFIDENCES[0], 250
        )
    found["accuracies"] = dict(
        zip([*pool_answers.exits, "original"], pool_answers.right.mean(1).tolist(), strict=True)
    )
    kept = pool_answers.of(useful(pool_answers))
    found["splits"] = splits(leaving_along(bundle, trunk, kept, price_of))
    return found


def judged(found: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """Each bar: what it is about, what was measured, and whether it is met."""
    rows = []
    for loss, bar in BARS.items():
        own = found["cascades"].get(f"{CONFIDENCES[0]} {loss}")
        saving = 0.0 if own is None else own["saving"]
        rows.append(
            (f"latency saved at a loss of {loss:g}, bar {bar:.0%}", f"{saving:.1%}", saving >= bar)
        )
        n = found["splits"][str(loss)]["violations"]
        rows.append((f"violations at {loss:g} in {N_SPLITS} splits", str(n), n <= MOST_VIOLATIONS))
        if own is not None:
            more = own["saving_at_32"]
            rows.append((f"time saved at batch 32 and {loss:g}", f"{more:.1%}", more >= 0))
    batches = found.get("neighbours", {})
    for size in SIZES if batches else ():
        n, difference = batches[f"other_exit_at_{size}"], batches[f"difference_at_{size}"]
        met = n == 0 and difference <= batches["tolerance"]
        text = f"{n} other exits, {difference:.1e} of {batches['tolerance']:.1e}"
        rows.append((f"alone against batches of {size}", text, met))
    return rows


def main() -> int:
    """Measure each seed; return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--task", default="fashion", choices=("fashion", "topics"))
    parser.add_argument("--data", type=Path, help="the folder of Fashion-MNIST")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=3, help="epochs of distilling the exits")
    parser.add_argument("--mode", default="assembled", choices=("assembled", "paged"))
    parser.add_argument("--work", type=Path, help="keeps bundles and tables between runs")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    args = parser.parse_args()
    if args.task == "fashion" and args.data is None:
        parser.error("--data is needed for the task fashion: the folder of Fashion-MNIST")
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "machine": facts(),
        "commit": commit(),
        "task": args.task,
        "bars": {str(loss): bar for loss, bar in BARS.items()},
        "confidences": CONFIDENCES,
        "n_splits": N_SPLITS,
        "most_violations": MOST_VIOLATIONS,
        "seeds": [],
    }
    missed = 0
    with tempfile.TemporaryDirectory(prefix="exits-") as temporary:
        folder = args.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        task = task_of(args, folder)
        for seed in args.seeds:
            found = measure(seed, task, folder, args)
            result["seeds"].append(found)
            print(f"seed {seed}: {found['test_accuracy']:.2%} of the test split")
            for what, text, met in judged(found):
                missed += not met
                print(f"  {what}: {text}{'' if met else '  MISSED'}")
    if args.out is not None:
        replace_file(args.out, (json.dumps(result, indent=1) + "\n").encode())
    return int(missed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
