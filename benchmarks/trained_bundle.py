"""Make a bundle of a ResNet's trained supernet, and data to search with; for other benchmarks.

    python benchmarks/trained_bundle.py OUT

trains a ResNet of 15 residual blocks on glyphs, expands, distils and tunes it, and writes
``OUT/bundle``, ``OUT/search.npz`` (500 images) and ``OUT/test.npz`` (2,000 others). Takes some
minutes; existing files are kept.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fxelastic
from benchmarks.train import SETTINGS, loader, train_teacher
from benchmarks.train_models import SmallResNet
from examples.data.glyphs import SIZE, Glyphs

GAMMA = 0.3
EPOCHS = {"distil": 2, "tune": 1}


def main() -> int:
    """Make the missing files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=Path("build/data"))
    parser.add_argument("--depth", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    make(args.out, args.data, args.depth)
    return 0


def make(out: Path, data_folder: Path, depth: int) -> None:
    """Make the files that the folder lacks."""
    out.mkdir(parents=True, exist_ok=True)
    data = Glyphs(seed=0).load(data_folder)
    for name, part, n in (("search", "validation", 500), ("test", "test", 2000)):
        images, classes = next(iter(DataLoader(data[part], n)))
        np.savez(out / f"{name}.npz", x=images.numpy(), targets=classes.numpy())
    if (out / "bundle").exists():
        return
    torch.manual_seed(0)
    model = SmallResNet(widths=(16, 32, 48), depth=depth)
    teacher = out / "teacher.safetensors"
    if teacher.exists():
        safetensors.torch.load_model(model, teacher)
    else:
        train_teacher(model, data["train"], SETTINGS["resnet"], "cpu")
        safetensors.torch.save_model(model, teacher)
    supernet = fxelastic.expand(
        model.eval(), GAMMA, example_inputs=torch.zeros(2, 1, SIZE, SIZE), seed=0
    )
    print(supernet.space, file=sys.stderr)
    options: dict[str, Any] = {"checkpoints": out / "checkpoints", "warmup": 0.05}
    train = loader(data["train"], shuffle=True)
    fxelastic.distill(supernet, train, epochs=EPOCHS["distil"], lr=4e-3, **options)
    fxelastic.tune(supernet, train, epochs=EPOCHS["tune"], lr=5e-4, soft=0.9, **options)
    fxelastic.export(supernet, out / "bundle")


if __name__ == "__main__":
    raise SystemExit(main())
