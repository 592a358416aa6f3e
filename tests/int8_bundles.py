"""A small network of convolutions and attention, exported with 8-bit branches."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic.edge import Bundle
from fxelastic.ir.supernet import Supernet

_FOLDER = tempfile.TemporaryDirectory(prefix="fxelastic-int8-")


class Residual(nn.Module):
    """An inverted residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(
            nn.Conv2d(width, 2 * width, 1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU6()
        )
        self.spatial = nn.Sequential(
            nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width), nn.ReLU6()
        )
        self.project = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(self.spatial(self.expand(x)))


class Attention(nn.Module):
    """A transformer's layer with one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        weights = torch.softmax(q @ k.transpose(1, 2) / x.shape[-1] ** 0.5, -1)
        x = self.norm(x + self.out(weights @ v))
        return x + self.mlp(x)


class Hybrid(nn.Module):
    """Two inverted residuals, then attention over their pixels."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU())
        self.first = Residual(width)
        self.second = Residual(width)
        self.attention = Attention(width)
        self.head = nn.Linear(width, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.second(self.first(self.stem(images)))
        return self.head(self.attention(x.flatten(2).transpose(1, 2)).mean(1))


def calibration(n_batches: int = 4, seed: int = 0) -> list[Tensor]:
    """Batches of four images."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 3, 16, 16, generator=generator) for _ in range(n_batches)]


def images(n: int, seed: int = 1) -> np.ndarray:
    """Images for a device."""
    return np.random.default_rng(seed).standard_normal((n, 3, 16, 16)).astype(np.float32)


@functools.cache
def supernet() -> Supernet:
    """The network with pruned branches."""
    torch.manual_seed(0)
    model = Hybrid().eval()
    return fxelastic.expand(
        model, 0.4, example_inputs=torch.randn(2, 3, 16, 16), kinds=("pruned",), prune=(0.5,)
    )


@functools.cache
def bundle() -> Bundle:
    """Its bundle with 8-bit branches in all formats, verified."""
    options = fxelastic.Int8(calibration())
    return fxelastic.export(supernet(), Path(_FOLDER.name) / "int8", quantise=options, n_subnets=1)


@functools.cache
def tiny_supernet() -> Supernet:
    """Two linear maps in one block."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8)).eval()
    return fxelastic.expand(model, 1.0, example_inputs=torch.randn(2, 64), kinds=())


def tiny(path: Path, formats: tuple[str, ...] = ("u8s8",), **options: Any) -> Bundle:
    """Its bundle, not verified."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(8, 64, generator=generator) for _ in range(2)]
    quantise = fxelastic.Int8(batches, formats=formats, **options)
    return fxelastic.export(tiny_supernet(), path, verify=False, quantise=quantise)
