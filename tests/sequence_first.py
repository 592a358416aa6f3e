"""A small model of sequences whose inputs and results hold samples in dimension 1."""

from __future__ import annotations

import torch
from torch import nn

STEPS = 6


class Tagger(nn.Module):
    """Class scores (steps, n, 5) of sequences (steps, n, 8), from states (1, n, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.layers = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(2)])
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = state + self.first(x).cumsum(0) / STEPS
        return self.head(self.layers(x)), x[-1:]


def samples(n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Inputs for n samples."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(STEPS, n, 8, generator=generator),
        "state": torch.randn(1, n, 8, generator=generator),
    }
