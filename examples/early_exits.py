"""Train a network with early exits in stages, on real images.

    python examples/early_exits.py --data FOLDER --epochs 10 --images 60000
    python examples/early_exits.py

FOLDER holds the four files of Fashion-MNIST or MNIST as published, compressed. Without it, the
network learns scikit-learn's handwritten digits, which needs the extra `examples`.

The network is not trained before: each stage trains one segment of it and the exit at its end, on
top of the segments before, which stay as they are. Their blocks run once for each image, so that
later stages take the time of one segment. Then it prints for each exit how many test images get
their class, and what share of the network's work is done there.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fxelastic
from examples.data import digits
from examples.data.idx import read_split
from fxelastic import train
from fxelastic.spec import EXIT, Arch

N_VALIDATION = 200


class Residual(nn.Module):
    """Two convolutions and a shortcut; twice the width has half the size."""

    def __init__(self, n_in: int, width: int) -> None:
        super().__init__()
        stride = 1 if n_in == width else 2
        self.first = nn.Conv2d(n_in, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Conv2d(n_in, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.first(x)).relu()
        return (self.norm2(self.second(y)) + self.shortcut(x)).relu()


def network(n_classes: int = 10, width: int = 12) -> nn.Module:
    """A small residual network."""
    widths = (width, width, 2 * width, 2 * width, 4 * width)
    pairs = zip((width, *widths), widths, strict=False)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, 2, 1),
        nn.ReLU(),
        *(Residual(n_in, n_out) for n_in, n_out in pairs),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(widths[-1], n_classes),
    )


def load(folder: Path | None, n: int) -> dict[str, TensorDataset]:
    """The data sets ``train`` (at most n images), ``validation`` and ``test``."""
    if folder is None:
        known = digits.load()
        return {**known, "train": TensorDataset(*known["train"][:n])}
    sets = {}
    for name in ("train", "t10k"):
        images, classes = read_split(folder, name)
        pixels = torch.from_numpy(images[:n].astype(np.float32))[:, None] / 255
        sets[name] = (pixels - 0.3) / 0.35, torch.from_numpy(classes[:n].astype(np.int64))
    x, y = sets["train"]
    return {
        "train": TensorDataset(x[:-N_VALIDATION], y[:-N_VALIDATION]),
        "validation": TensorDataset(x[-N_VALIDATION:], y[-N_VALIDATION:]),
        "test": TensorDataset(*sets["t10k"]),
    }


class Printed(train.Callback):
    """Prints how each stage went."""

    def on_begin(self, stage: str, step: int, epoch: int, total_steps: int | None) -> None:
        """Note the time."""
        self.begin_s = time.perf_counter()

    def on_end(self, history: Any) -> None:
        """Print a line."""
        if history is not None:
            took_s, score = time.perf_counter() - self.begin_s, history.epochs[-1].scores[-1]
            print(f"{history.stage}: {len(history.epochs)} epochs in {took_s:.1f} s, {score:.1%}")


def main() -> int:
    """Train, and print the accuracy of each exit."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST or MNIST")
    parser.add_argument("--images", type=int, default=2_000, help="training images")
    parser.add_argument("--epochs", type=int, default=4, help="most epochs of a stage")
    parser.add_argument("--until", type=float, default=0.95, help="accuracy that ends a stage")
    parser.add_argument("--update", choices=("freeze", "finetune"), default="freeze")
    parser.add_argument("--checkpoints", type=Path, help="folder to resume from")
    args = parser.parse_args()
    data = load(args.data, args.images)
    torch.manual_seed(0)
    supernet = fxelastic.train_stages(
        network(),
        DataLoader(data["train"], 64, shuffle=True),
        example_inputs=data["train"][:2][0],
        exits="auto",
        update=args.update,
        epochs=args.epochs,
        until=args.until,
        validate=DataLoader(data["validation"], 100),
        lr=5e-3,
        checkpoints=args.checkpoints,
        callbacks=[Printed()],
    )
    originals = supernet.space.original.branches
    exits = sorted((b for b in supernet.branches.values() if b.kind == EXIT), key=lambda b: b.start)
    archs = [*(Arch((*originals[: b.start], b.id)) for b in exits), supernet.space.original]
    scores = fxelastic.evaluate(supernet, archs, DataLoader(data["test"], 200))
    work = {spec.id: spec.flops for spec in supernet.space.branches}
    whole = sum(work[name] for name in originals)
    print(f"\n{'on test images':>16} {'accuracy':>9} {'FLOPs':>7}")
    for arch in archs:
        share = sum(work[name] for name in arch) / whole
        print(f"{f'after {len(arch) - 1} blocks':>16} {scores[arch]:>9.1%} {share:>7.0%}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
