"""Small models of text and images whose inputs have other sizes, and one of fixed length."""

from __future__ import annotations

import torch
from torch import nn


class Encoder(nn.Module):
    """A text model with a table of 64 positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 8)
        self.positions = nn.Parameter(torch.randn(64, 8))
        self.layers = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(4)])

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids) + self.positions[: ids.shape[1]]
        return self.layers(x * mask[..., None]).mean(1)


class Pyramid(nn.Module):
    """An image model that takes multiples of 4 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, 2, 1)
        self.pool = nn.MaxPool2d(2)
        self.up = nn.Upsample(scale_factor=2)
        self.head = nn.Sequential(*[nn.Conv2d(8, 8, 3, padding=1) for _ in range(4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down(x)
        return self.head(self.up(self.pool(x)) + x)


class FixedLength(nn.Module):
    """A model whose head takes 16 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 8)
        self.head = nn.Linear(128, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(ids).flatten(1))
