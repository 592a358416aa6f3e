"""Train the supernets of a small ResNet and a small ViT on glyphs, and compare ways of training.

For each model and seed it prints, on generated data (`examples/data/glyphs.py`),

- the mean accuracy of random subnets by range of FLOPs: untrained, distilled only (the stage
  alone, as in the paper's Figure 10), tuned only with as many steps as both stages, and distilled
  then tuned (bar: the last is best in every range); for comparison, distilled with as many steps as
  both stages, teacher-forced and chained;
- the best subnet of at most 70 % and 50 % of the FLOPs, chosen on validation data and scored on
  test data, against the original (bars: ResNet 2 and 5 points lost, ViT 3 and 7);
- the loss of branches over time, teacher-forced and chained (bar: the first reaches the final
  loss of the second in less time), on held-out images: of single branches, fed by the model, and
  of chains as in subnets;
- the accuracy of random subnets before and after their batch-norm statistics are measured again on
  512 images (bar: not lower on average).

A seed with a result in the folder is not run again. With several seeds, the benchmark prints means
and spreads, and writes them with --summary.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fxelastic
from benchmarks.train_measures import best_within, branch_curve, buckets_of, recalibrated
from benchmarks.train_models import SmallResNet, SmallViT
from benchmarks.train_report import report, summary
from examples.data.glyphs import SIZE, Glyphs
from fxelastic import Supernet

WAYS = ("untrained", "distilled, chained", "distilled", "tuned", "distilled, tuned")
STAGE = "distilled, stage only"


@dataclass(frozen=True)
class Setting:
    """Options of training a model and its supernet.

    Attributes:
        build: Makes the model.
        epochs: Epochs of the model's own training.
        lr: Its peak learning rate.
        distill: Epochs of distillation before tuning.
        tune: Epochs of tuning after it. The other ways get as many steps as both together.
        distill_lr: Learning rate of distillation.
        tune_lr: Learning rate of tuning.
        soft: Share of soft labels in tuning.
        points: Points of accuracy that the best subnet may lose at 70 % and 50 % of the FLOPs.
    """

    build: Any
    epochs: int
    lr: float
    distill: int
    tune: int
    distill_lr: float
    tune_lr: float
    soft: float
    points: tuple[float, float]


SETTINGS = {
    "resnet": Setting(
        lambda: SmallResNet(widths=(16, 32, 48)), 5, 3e-3, 3, 2, 4e-3, 5e-4, 0.9, (2, 5)
    ),
    "vit": Setting(SmallViT, 7, 2e-3, 3, 2, 4e-3, 5e-4, 0.9, (3, 7)),
}
GAMMA = 0.3
BATCH = 100


def main() -> int:
    """Run the seeds without a result, and print all results."""
    args = arguments()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, Any]]] = {}
    for name in args.models:
        for seed in args.seeds:
            path = args.out / f"{name}-{seed}{'-quick' * args.quick}.json"
            if not path.exists():
                result = compare(name, seed, args)
                temporary = path.with_suffix(".tmp")
                temporary.write_text(json.dumps(result, indent=1))
                temporary.replace(path)
            result = json.loads(path.read_text())
            print(report(result), flush=True)
            found.setdefault(name, []).append(result)
    table = summary(found)
    print(table["text"])
    if args.summary is not None:
        args.summary.write_text(json.dumps(table["data"], indent=1) + "\n")
    return 0 if all(table["data"][name]["met"] for name in found) else 1


def compare(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """All results of one model and seed, as plain data."""
    began = time.perf_counter()
    setting = SETTINGS[name]
    task = Glyphs(seed=seed)
    if args.quick:
        task = replace(task, n_train=2000, n_validation=500, n_test=500)
        setting = replace(setting, epochs=2, distill=1, tune=1)
    data = task.load(args.data)
    torch.manual_seed(seed)
    model = setting.build()
    weights = args.out / f"teacher-{name}-{task.key}-{setting.epochs}.safetensors"
    if weights.exists():
        safetensors.torch.load_model(model, weights)
    else:
        train_teacher(model, data["train"], setting, args.device)
        safetensors.torch.save_model(model.cpu(), weights)
    model.eval()
    clock = Clock(began)
    clock("teacher")

    def fresh() -> Supernet:
        supernet = fxelastic.expand(
            model, GAMMA, example_inputs=torch.zeros(2, 1, SIZE, SIZE), kinds=args.kinds, seed=seed
        )
        return supernet.to(args.device)

    loaders = {key: loader(value, shuffle=key == "train") for key, value in data.items()}
    test = list(loaders["test"])
    n_epochs = setting.distill + setting.tune
    supernets = {way: fresh() for way in WAYS}
    original = supernets["untrained"].space.original
    teacher = fxelastic.evaluate(supernets["untrained"], [original], test)[original]
    curves = {}
    options: dict[str, Any] = {"seed": seed, "warmup": 0.05, "precision": args.precision}
    distilling = {**options, "lr": setting.distill_lr}
    tuning = {
        **options,
        "lr": setting.tune_lr,
        "soft": setting.soft,
        "sampling": fxelastic.train.Bucketed(),
    }
    held_out = list(loaders["validation"])[:2]
    for mode in ("chained", "teacher_forced"):
        supernet = supernets["distilled" + ", chained" * (mode == "chained")]
        curves[mode] = branch_curve(
            supernet, loaders["train"], held_out, mode=mode, epochs=n_epochs, **distilling
        )
        clock(mode)
    fxelastic.tune(supernets["tuned"], loaders["train"], epochs=n_epochs, **tuning)
    clock("tuned")
    both = supernets["distilled, tuned"]
    fxelastic.distill(both, loaders["train"], epochs=setting.distill, **distilling)
    stage = buckets_of(both, test[:20], seed)
    fxelastic.tune(both, loaders["train"], epochs=setting.tune, **tuning)
    clock("distilled, tuned")
    buckets = {way: buckets_of(supernets[way], test[:20], seed) for way in WAYS}
    buckets = {
        **{way: buckets[way] for way in WAYS[:2]},
        STAGE: stage,
        **{way: buckets[way] for way in WAYS[2:]},
    }
    clock("buckets")
    validation = list(loaders["validation"])
    best = {
        f"{share:.0%}": best_within(both, share, validation, test, seed) for share in (0.7, 0.5)
    }
    clock("search")
    calibration = recalibrated(both, list(loaders["train"]), test[:20], seed)
    clock("recalibration")
    return {
        "model": name,
        "seed": seed,
        "quick": args.quick,
        "teacher": teacher,
        "points": setting.points,
        "space": str(both.space),
        "epochs": {"teacher": setting.epochs, "distill": setting.distill, "tune": setting.tune},
        "buckets": buckets,
        "best": best,
        "curves": curves,
        "recalibration": calibration,
        "seconds": clock.seconds,
    }


class Clock:
    """Records the time of each part."""

    def __init__(self, began: float) -> None:
        self.seconds: dict[str, float] = {}
        self._last = began

    def __call__(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] = round(now - self._last, 1)
        self._last = now
        print(f"  {part}: {self.seconds[part]:.0f} s", file=sys.stderr, flush=True)


def loader(data: Dataset[Any], *, shuffle: bool) -> DataLoader[Any]:
    """Batches of 100 images."""
    return DataLoader(data, BATCH, shuffle=shuffle, drop_last=shuffle)


def train_teacher(model: nn.Module, data: Dataset[Any], setting: Setting, device: str) -> None:
    """Train the model from scratch, in the usual way."""
    model.to(device).train()
    batches = loader(data, shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), setting.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, setting.lr, total_steps=setting.epochs * len(batches), pct_start=0.2
    )
    for _ in range(setting.epochs):
        for images, classes in batches:
            optimizer.zero_grad()
            logits = model(images.to(device))
            nn.functional.cross_entropy(logits, classes.to(device)).backward()
            optimizer.step()
            schedule.step()


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--kinds", nargs="+", default=["merged", "pruned"])
    parser.add_argument("--out", type=Path, default=Path("build/train"))
    parser.add_argument("--data", type=Path, default=Path("build/data"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--quick", action="store_true", help="a run of a few minutes")
    parser.add_argument("--summary", type=Path, help="write means and spreads to this JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
