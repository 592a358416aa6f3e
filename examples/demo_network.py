"""The demo's network, already trained, and its data: handwritten digits, shifted and noisy.

`examples/train_demo_model.py` wrote the weights beside this file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from data.digits import N_CLASSES, load
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

WEIGHTS = Path(__file__).with_suffix(".safetensors")
NOISE = 2.0  # standard deviations of the images


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, n_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or n_in != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(n_in, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem of stride 2, followed by nine residual blocks."""

    def __init__(self, widths: tuple[int, ...] = (24, 48, 72), depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        sizes = [width for width in widths for _ in range(depth)]
        strides = [2 if i and i % depth == 0 else 1 for i in range(len(sizes))]
        self.blocks = nn.Sequential(
            *[
                Block(n_in, n_out, stride)
                for n_in, n_out, stride in zip([widths[0], *sizes], sizes, strides, strict=False)
            ]
        )
        self.head = nn.Linear(widths[-1], N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Spoilt(Dataset[Any]):
    """Images shifted by up to four pixels, with noise: clean digits are too easy to compare models.

    With a seed, the shift and noise of an item are always the same; without one, they are drawn
    again in each epoch.
    """

    def __init__(self, data: TensorDataset, seed: int | None = None) -> None:
        self.data = data
        self.seed = seed

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        chance = None
        if self.seed is not None:
            chance = torch.Generator().manual_seed(1000 * self.seed + index)
        image, digit = self.data[index]
        rows, columns = torch.randint(-4, 5, (2,), generator=chance).tolist()
        moved = image.roll((rows, columns), (1, 2))
        return moved + NOISE * torch.randn(moved.shape, generator=chance), digit


def digits() -> dict[str, TensorDataset]:
    """The demo's data sets ``train`` (897 images), ``validation`` (500) and ``test`` (400)."""
    return load(n_validation=500)


def trained(weights: Path = WEIGHTS) -> ResNet:
    """The network with its weights, in evaluation mode."""
    model = ResNet()
    model.load_state_dict(load_file(weights))
    return model.eval()
