"""Modules that are more than their forward: parametrisations, hooks, buffers, wrappers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from .model_case import Inputs, features, images, make_case


class ResidualTemporalBlock(nn.Module):
    """Dilated causal convolutions with weight norm."""

    def __init__(self, n_in: int, n_out: int, dilation: int) -> None:
        super().__init__()
        self.pad = 2 * dilation
        self.conv1 = weight_norm(nn.Conv1d(n_in, n_out, 3, padding=self.pad, dilation=dilation))
        self.conv2 = weight_norm(nn.Conv1d(n_out, n_out, 3, padding=self.pad, dilation=dilation))
        self.downsample = nn.Conv1d(n_in, n_out, 1) if n_in != n_out else None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv1(x)[:, :, : -self.pad].contiguous())
        y = torch.relu(self.conv2(y)[:, :, : -self.pad].contiguous())
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class TemporalConvNet(nn.Module):
    """Bai et al. 2018, scaled down."""

    def __init__(self) -> None:
        super().__init__()
        widths = [6, 12, 12, 12]
        self.network = nn.Sequential(
            *[ResidualTemporalBlock(widths[i], widths[i + 1], 2**i) for i in range(3)]
        )
        self.linear = weight_norm(nn.Linear(12, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.network(x)[:, :, -1])


def _double_input(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (args[0] * 2.0,)


def _clamp_output(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.clamp(-1.5, 1.5)


def _observe(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
    return None


class Hooked(nn.Module):
    """Pre-hooks and hooks that change values, and one that only looks."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
            for _ in range(3)
        )
        self.head = nn.Linear(width, 4)
        self.stem.register_forward_pre_hook(_double_input)
        self.blocks[1].register_forward_hook(_clamp_output)
        self.head.register_forward_hook(_observe)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((2, 3)))


class BagOfWords(nn.Module):
    """Integer inputs into an ``EmbeddingBag`` and an ``Embedding``."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(71, 16, mode="mean")
        self.category = nn.Embedding(9, 8)
        self.mlp = nn.Sequential(
            nn.Linear(24, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 32), nn.GELU()
        )
        self.out = nn.Linear(32, 6)

    def forward(self, words: Tensor, category: Tensor) -> Tensor:
        x = torch.cat([self.bag(words), self.category(category)], dim=1)
        return self.out(self.mlp(x))


class FixedFeatures(nn.Module):
    """Buffers do the first work (random Fourier features); parameters come late."""

    def __init__(self, n_in: int = 5, n_features: int = 12) -> None:
        super().__init__()
        self.standardise = nn.BatchNorm1d(n_in, affine=False)
        self.register_buffer("frequencies", torch.randn(n_in, n_features))
        self.register_buffer("unused", torch.zeros(3), persistent=False)
        self.hidden = nn.Linear(2 * n_features, 16)
        self.out = nn.Linear(16, 3)
        self.spare = nn.Linear(16, 100)

    def forward(self, x: Tensor) -> Tensor:
        phase = self.standardise(x) @ self.frequencies
        x = torch.cat([phase.sin(), phase.cos()], dim=-1)
        return self.out(torch.relu(self.hidden(x)))


class Wrapper(nn.Module):
    """The network sits two wrappers deep, as DataParallel and lightning-style code leave it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.module = nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3)),
        )
        for parameter in self.model.module[0].parameters():
            parameter.requires_grad_(False)

    def forward(self, x: Tensor, *rest: Tensor, **options: Tensor) -> Tensor:
        out = self.model.module(x)
        for tensor in rest:
            out = out + tensor
        if "temperature" in options:
            out = out / options["temperature"]
        return out


def _words(batch: int, generator: torch.Generator) -> Inputs:
    words = torch.randint(0, 71, (batch, 6), generator=generator)
    return (words, torch.randint(0, 9, (batch,), generator=generator)), {}


def _variadic(batch: int, generator: torch.Generator) -> Inputs:
    image = torch.randn(batch, 1, 10, 10, generator=generator)
    shifts = torch.randn(2, batch, 3, generator=generator)
    temperature = torch.rand(batch, 1, generator=generator) + 0.5
    return (image, shifts[0].clone(), shifts[1].clone()), {"temperature": temperature}


CASES = (
    make_case("weight_norm_tcn", TemporalConvNet, features(6, 20), {"conv"}),
    make_case("hooked", Hooked, images(size=16), {"conv", "hooks"}),
    make_case("bag_of_words", BagOfWords, _words, {"mlp", "multi-input", "int-input"}),
    make_case("fixed_features", FixedFeatures, features(5), {"mlp", "unused-params"}),
    make_case(
        "variadic_wrapper",
        Wrapper,
        _variadic,
        {"conv", "multi-input", "kwargs", "no-symbolic-trace", "no-dynamic-export"},
    ),
)
