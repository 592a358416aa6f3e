"""Sharing beyond tied embeddings: one module called in a row, one parameter in several modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .model_case import features, images, make_case


class RecursiveConv(nn.Module):
    """DRCN-like: the same residual unit applied many times, its outputs averaged."""

    def __init__(self, width: int = 12, steps: int = 4) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 3, padding=1)
        self.recurse = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.reconstruct = nn.Conv2d(width, 3, 3, padding=1)
        self.mix = nn.Parameter(torch.linspace(0.5, 1.5, steps))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embed(x)
        total = torch.zeros_like(x)
        for weight in self.mix.unbind(0):
            hidden = hidden + self.recurse(hidden)
            total = total + weight * self.reconstruct(hidden)
        return x + total / self.mix.sum()


class TiedAutoEncoder(nn.Module):
    """The decoder multiplies by the encoder's weights transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(18, 14)
        self.second = nn.Linear(14, 6)
        self.bias_second = nn.Parameter(torch.randn(14) * 0.1)
        self.bias_first = nn.Parameter(torch.randn(18) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        code = torch.relu(self.second(torch.relu(self.first(x))))
        hidden = torch.relu(nn.functional.linear(code, self.second.weight.t(), self.bias_second))
        return hidden @ self.first.weight + self.bias_first


class SharedParameter(nn.Module):
    """Different modules own one and the same parameter object under different names."""

    def __init__(self, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        self.inp = nn.Linear(10, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.layers[2].weight = self.layers[0].weight
        for norm in self.norms[1:]:
            norm.bias = self.norms[0].bias
        self.out = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + nn.functional.gelu(layer(norm(x)))
        return self.out(x)


CASES = (
    make_case(
        "recursive_conv", RecursiveConv, images(size=16), {"conv", "shared", "no-symbolic-trace"}
    ),
    make_case("tied_autoencoder", TiedAutoEncoder, features(18), {"mlp", "shared"}),
    make_case("shared_parameter", SharedParameter, features(10), {"mlp", "shared"}),
)
