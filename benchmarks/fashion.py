"""Fashion-MNIST, and the small residual networks that benchmarks on it start from.

    python benchmarks/fashion.py --data FOLDER [--seeds 0 1 2]

trains a network from scratch for each seed that has no weights in `benchmarks/weights`, some
13 minutes of one core each, and prints the accuracy of each on the test split (bar: 92.5 %). FOLDER
holds the four files of the data set as published (Xiao and others, 2017), compressed.

Other benchmarks import `Fashion` and `original`, so all of them start from the same weights.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.train_models import SmallResNet
from examples.data.idx import read_split

WEIGHTS = Path(__file__).parent / "weights"
BAR = 0.925
SIZE, N_CLASSES = 28, 10
WIDTHS, DEPTH = (12, 24, 48), 2
EPOCHS, BATCH, PEAK_LR = 24, 128, 6e-3
#: The last images of the training split, on which subnets are chosen.
N_VALIDATION = 5_000

Split = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Fashion:
    """The data: images ``(n, 1, 28, 28)`` with mean 0 and deviation 1, and classes ``(n,)``."""

    train: Split
    validation: Split
    test: Split

    @classmethod
    def load(cls, folder: Path) -> Fashion:
        """Read the published files.

        Raises:
            FileNotFoundError: A file is missing.
        """
        x, y = read_split(folder, "train")
        test_x, test_y = read_split(folder, "t10k")
        n = len(x) - N_VALIDATION
        mean, deviation = float(x[:n].mean() / 255), float(x[:n].std() / 255)

        def split(images: np.ndarray, classes: np.ndarray) -> Split:
            scaled = (images.astype(np.float32) / 255 - mean) / deviation
            return torch.from_numpy(scaled)[:, None], torch.from_numpy(classes.astype(np.int64))

        return cls(split(x[:n], y[:n]), split(x[n:], y[n:]), split(test_x, test_y))


@dataclass
class Batches:
    """Batches of a split in random order; iterating again gives another order.

    Attributes:
        split: Images and classes.
        size: Samples in a batch.
        seed: Seed of the order and the augmentation.
        augment: Whether to flip and shift images.
    """

    split: Split
    size: int = BATCH
    seed: int = 0
    augment: bool = True

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed)

    def __len__(self) -> int:
        return len(self.split[0]) // self.size

    def __iter__(self) -> Iterator[Split]:
        x, y = self.split
        order = torch.randperm(len(x), generator=self._generator)
        for part in order[: len(self) * self.size].split(self.size):
            images = x[part]
            yield (self._augmented(images) if self.augment else images), y[part]

    def _augmented(self, images: Tensor) -> Tensor:
        """Half of the images mirrored, and all shifted by up to 2 pixels."""
        mirrored = torch.rand(len(images), generator=self._generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        left, top = torch.randint(0, 5, (2, len(images)), generator=self._generator)
        padded = F.pad(images, (2, 2, 2, 2), value=float(images.min()))
        rows = (top[:, None] + torch.arange(SIZE))[:, :, None]
        columns = (left[:, None] + torch.arange(SIZE))[:, None, :]
        which = torch.arange(len(images))[:, None, None]
        return padded[which, 0, rows, columns][:, None]


def network() -> SmallResNet:
    """The network with random weights: 3.0 million multiplications for a sample."""
    return SmallResNet(N_CLASSES, WIDTHS, DEPTH)


def original(seed: int, folder: Path = WEIGHTS) -> SmallResNet:
    """The trained network of a seed.

    Raises:
        FileNotFoundError: It is not trained.
    """
    model = network()
    safetensors.torch.load_model(model, folder / f"fashion-{seed}.safetensors")
    return model.eval()


@torch.no_grad()
def accuracy(model: torch.nn.Module, split: Split) -> float:
    """The share of images that get their class."""
    parts = zip(split[0].split(500), split[1].split(500), strict=True)
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in parts) / len(split[1])


def train(model: torch.nn.Module, batches: Batches, epochs: int) -> None:
    """Train with cross-entropy, AdamW, and a learning rate that rises and falls once."""
    optimiser = torch.optim.AdamW(model.parameters(), PEAK_LR, weight_decay=2e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, PEAK_LR, total_steps=epochs * len(batches), pct_start=0.2
    )
    model.train()
    for epoch in range(epochs):
        begin_s = time.perf_counter()
        for x, y in batches:
            optimiser.zero_grad()
            loss = F.cross_entropy(model(x), y, label_smoothing=0.05)
            loss.backward()
            optimiser.step()
            schedule.step()
        took_s = time.perf_counter() - begin_s
        told = f"epoch {epoch}: loss {float(loss.detach()):.3f}, {took_s:.0f} s"
        print(told, file=sys.stderr, flush=True)
    model.eval()


def main() -> int:
    """Train what is missing; return 1 if the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = Fashion.load(args.data)
    WEIGHTS.mkdir(exist_ok=True)
    missed = 0
    for seed in args.seeds:
        path = WEIGHTS / f"fashion-{seed}.safetensors"
        if not path.exists():
            torch.manual_seed(seed)
            model = network()
            train(model, Batches(data.train, seed=seed), EPOCHS)
            safetensors.torch.save_model(model, path)
        found = accuracy(original(seed), data.test)
        missed += found < BAR
        print(f"seed {seed}: {found:.2%} of the test split", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
