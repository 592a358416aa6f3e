"""Signatures: two inputs, keyword-only inputs, a dict input, a Siamese net, conditioning."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .model_case import Inputs, make_case


def conv_block(n_in: int, n_out: int) -> nn.Sequential:
    """Strided convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, 3, 2, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True)
    )


class ImageAndTable(nn.Module):
    """An image encoder and a table encoder, joined late."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = nn.Sequential(
            conv_block(3, 8), conv_block(8, 16), conv_block(16, 24), nn.AdaptiveAvgPool2d(1)
        )
        self.table_encoder = nn.Sequential(
            nn.BatchNorm1d(7), nn.Linear(7, 16), nn.SiLU(), nn.Linear(16, 16), nn.SiLU()
        )
        self.fusion = nn.Sequential(nn.Linear(40, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        joined = torch.cat([self.image_encoder(image).flatten(1), self.table_encoder(table)], 1)
        return self.fusion(joined)


class KeywordOnly(nn.Module):
    """Only keyword arguments; one has a default and is never given, one is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(9, 20)
        self.right = nn.Linear(6, 20)
        self.trunk = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU())
        self.head = nn.Linear(20, 3)

    def forward(
        self, *, left: Tensor, right: Tensor, bias: Tensor | None = None, scale: float = 1.0
    ) -> Tensor:
        hidden = torch.tanh(self.left(left) * scale + self.right(right))
        if bias is not None:
            hidden = hidden + bias
        return self.head(hidden + self.trunk(hidden))


class DictInput(nn.Module):
    """A batch in one dict, one of its entries nested."""

    def __init__(self) -> None:
        super().__init__()
        self.user = nn.Embedding(31, 12)
        self.item = nn.Embedding(37, 12)
        self.dense = nn.Linear(5, 12)
        self.tower = nn.Sequential(nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU())
        self.out = nn.Linear(12, 1)

    def forward(self, batch: dict[str, Tensor | dict[str, Tensor]]) -> Tensor:
        ids = batch["ids"]
        parts = [self.user(ids["user"]), self.item(ids["item"]), self.dense(batch["dense"])]
        return torch.sigmoid(self.out(self.tower(torch.cat(parts, dim=-1)))).squeeze(-1)


class Siamese(nn.Module):
    """One encoder on two images; the distance of the two embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            conv_block(1, 8),
            conv_block(8, 16),
            conv_block(16, 16),
            nn.Flatten(),
            nn.Linear(16 * 9, 24),
        )
        self.head = nn.Linear(24, 1)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b = self.encoder(first), self.encoder(second)
        return self.head((a - b).abs()).squeeze(1), a, b


class FiLMBlock(nn.Module):
    """Residual convolution, scaled and shifted by the condition."""

    def __init__(self, width: int, n_condition: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width, affine=False)
        self.film = nn.Linear(n_condition, 2 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x = torch.relu(self.conv1(x))
        gamma, beta = self.film(condition)[:, :, None, None].chunk(2, dim=1)
        return x + torch.relu((1 + gamma) * self.bn(self.conv2(x)) + beta)


class FiLMNet(nn.Module):
    """Perez et al. 2017: an encoded condition modulates every block."""

    def __init__(self, width: int = 16, depth: int = 4) -> None:
        super().__init__()
        self.condition = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 12))
        self.stem = conv_block(3, width)
        self.blocks = nn.ModuleList(FiLMBlock(width, 12) for _ in range(depth))
        self.head = nn.Linear(width, 5)

    def forward(self, image: Tensor, condition: Tensor) -> Tensor:
        condition = self.condition(condition)
        x = self.stem(image)
        for block in self.blocks:
            x = block(x, condition)
        return self.head(x.amax(dim=(2, 3)))


def _image_and(n_features: int) -> Callable[[int, torch.Generator], Inputs]:
    def make(batch: int, generator: torch.Generator) -> Inputs:
        image = torch.randn(batch, 3, 24, 24, generator=generator)
        return (image, torch.randn(batch, n_features, generator=generator)), {}

    return make


def _keywords(batch: int, generator: torch.Generator) -> Inputs:
    left = torch.randn(batch, 9, generator=generator)
    return (), {"right": torch.randn(batch, 6, generator=generator), "left": left, "scale": 0.5}


def _dict(batch: int, generator: torch.Generator) -> Inputs:
    ids = {
        "user": torch.randint(0, 31, (batch,), generator=generator),
        "item": torch.randint(0, 37, (batch,), generator=generator),
    }
    return ({"ids": ids, "dense": torch.randn(batch, 5, generator=generator)},), {}


def _pair(batch: int, generator: torch.Generator) -> Inputs:
    first = torch.randn(batch, 1, 20, 20, generator=generator)
    return (first, torch.randn(batch, 1, 20, 20, generator=generator)), {}


CASES = (
    make_case("image_and_table", ImageAndTable, _image_and(7), {"conv", "multi-input", "inplace"}),
    make_case(
        "keyword_only",
        KeywordOnly,
        _keywords,
        {"mlp", "multi-input", "kwargs"},
    ),
    make_case("dict_input", DictInput, _dict, {"mlp", "multi-input", "int-input"}),
    make_case(
        "siamese",
        Siamese,
        _pair,
        {"conv", "multi-input", "multi-output", "side-exits", "shared", "inplace"},
    ),
    make_case("film", FiLMNet, _image_and(6), {"conv", "multi-input", "inplace"}),
)
