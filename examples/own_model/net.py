"""A user's model in a file that does not import fxelastic.

    fxelastic explain net.py:build --gamma 0.2
    fxelastic export net.py:build bundle --gamma 0.2
    fxelastic inspect bundle
    fxelastic check net.py:build --golden blocks.txt

``blocks.txt`` records the model's blocks; ``partitions.yml`` is a CI job that fails if a change of
the model changes them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Gate(nn.Module):
    """Weighs channels by their means over the image (squeeze and excitation)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(width, width // 4, 1)
        self.up = nn.Conv2d(width // 4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.up(F.relu(self.down(x.mean((2, 3), keepdim=True))))
        return x * weights.sigmoid()


class Unit(nn.Module):
    """Two convolutions and a gate, with a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            Gate(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.body(x))


class Net(nn.Module):
    """Takes an image and a number, such as the exposure; returns logits and an embedding."""

    def __init__(self, width: int = 24, depth: int = 4, n_classes: int = 10) -> None:
        super().__init__()
        # fxelastic runs the model on these, unless --example-input is given.
        self.example_input_array = (torch.zeros(2, 3, 48, 48), torch.zeros(2, 1))
        self.stem = nn.Conv2d(3, width, 4, stride=4)
        self.units = nn.Sequential(*(Unit(width) for _ in range(depth)))
        self.beside = nn.Linear(1, width)
        self.head = nn.Linear(width, n_classes)

    def forward(self, image: Tensor, exposure: Tensor) -> dict[str, Tensor]:
        x = self.units(self.stem(image)).mean((2, 3)) + self.beside(exposure)
        return {"logits": self.head(x), "embedding": F.normalize(x, dim=1)}


def build() -> nn.Module:
    """Build the model, for the commands."""
    return Net()
