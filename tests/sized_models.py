"""Small models whose inputs have other sizes, and one of fixed length."""

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


class Tagger(nn.Module):
    """A text model of recurrent layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 8)
        self.forwards = nn.LSTM(8, 6, batch_first=True)
        self.both = nn.RNN(6, 4, bidirectional=True)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, (last, _) = self.forwards(self.embed(ids))
        return self.both(x.transpose(0, 1))[0], last


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


class ResizedPositions(nn.Module):
    """An image model that resizes its table of positions, unless it fits."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.positions = nn.Parameter(torch.randn(1, 8, 4, 4))
        self.head = nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, positions = self.patches(x), self.positions
        if x.shape[2:] != positions.shape[2:]:
            positions = nn.functional.interpolate(positions, size=x.shape[2:], mode="bilinear")
        return self.head(x + positions)


class PaddedPyramid(nn.Module):
    """An image model that pads odd sizes, which Python decides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = nn.functional.interpolate(nn.functional.max_pool2d(x, 2), scale_factor=2.0)
        if y.shape[2] != x.shape[2]:
            y = nn.functional.pad(y, (0, 0, 0, 1))
        return self.head(x + y)


class Windows(nn.Module):
    """An image model that pads to whole windows again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(*[nn.Conv2d(3, 3, 1) for _ in range(4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, convolution in enumerate(self.convolutions):
            n = 5 + 2 * (i % 2)
            x = nn.functional.pad(x, (0, 0, 0, (n - x.shape[2] % n) % n))
            b, c, h, w = x.shape
            x = convolution(x.view(b, c, h // n, n, w).flatten(2, 3)[:, :, ::2])
        return x
