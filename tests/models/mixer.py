"""Models of linear layers: MLP-Mixer, gMLP, a plain MLP."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .model_case import features, images, make_case
from .vit import Mlp, PatchEmbed


class MixerBlock(nn.Module):
    """One MLP across tokens, one across channels."""

    def __init__(self, dim: int, n_tokens: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp_tokens = Mlp(n_tokens, 2 * n_tokens)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp_channels = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mlp_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp_channels(self.norm2(x))


class MlpMixer(nn.Module):
    """Tolstikhin et al. 2021, scaled down."""

    def __init__(self, dim: int = 24, depth: int = 4) -> None:
        super().__init__()
        self.stem = PatchEmbed(8, dim)
        self.blocks = nn.Sequential(*[MixerBlock(dim, 16) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(x))).mean(dim=1))


class SpatialGatingUnit(nn.Module):
    """One half of the channels, mixed across tokens, gates the other half."""

    def __init__(self, dim: int, n_tokens: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim // 2)
        self.proj = nn.Linear(n_tokens, n_tokens)
        nn.init.ones_(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        u, v = x.chunk(2, dim=-1)
        v = self.proj(self.norm(v).transpose(-1, -2))
        return u * v.transpose(-1, -2)


class GatedMlpBlock(nn.Module):
    """Expand, gate, project, add."""

    def __init__(self, dim: int, n_tokens: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.proj_in = nn.Linear(dim, 4 * dim)
        self.sgu = SpatialGatingUnit(4 * dim, n_tokens)
        self.proj_out = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = nn.functional.gelu(self.proj_in(self.norm(x)))
        return self.proj_out(self.sgu(x)) + shortcut


class GatedMlp(nn.Module):
    """Liu et al. 2021 (gMLP), scaled down."""

    def __init__(self, dim: int = 24, depth: int = 4) -> None:
        super().__init__()
        self.embed = PatchEmbed(8, dim)
        self.layers = nn.ModuleList(GatedMlpBlock(dim, 16) for _ in range(depth))
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(torch.mean(x, 1))


def plain_mlp() -> nn.Module:
    """A bare ``nn.Sequential`` with batch norm."""
    return nn.Sequential(
        nn.Linear(20, 48),
        nn.BatchNorm1d(48),
        nn.ReLU(),
        nn.Linear(48, 48),
        nn.PReLU(48),
        nn.Dropout(0.5),
        nn.Linear(48, 48),
        nn.ELU(),
        nn.Linear(48, 6),
        nn.LogSoftmax(dim=-1),
    )


CASES = (
    make_case("mlp_mixer", MlpMixer, images(size=32), {"mlp"}),
    make_case("gmlp", GatedMlp, images(size=32), {"mlp"}),
    make_case("plain_mlp", plain_mlp, features(20), {"mlp"}),
)
