"""The small networks of the training benchmark: a ResNet and a ViT for images of 32 × 32."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, n_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Module | None = None
        if stride != 1 or n_in != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(n_in, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class SmallResNet(nn.Module):
    """A residual network of basic blocks behind a stem of stride 2."""

    def __init__(
        self,
        n_classes: int = 36,
        widths: tuple[int, ...] = (16, 32, 64),
        depth: int = 3,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        blocks = []
        n_in = widths[0]
        for i, width in enumerate(widths):
            for j in range(depth):
                blocks.append(BasicBlock(n_in, width, 2 if i and not j else 1))
                n_in = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(n_in, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class EncoderLayer(nn.Module):
    """Self-attention and an MLP, each behind a layer norm."""

    def __init__(self, width: int, n_heads: int, hidden: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(n, length, 3, self.n_heads, width // self.n_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(y.transpose(1, 2).reshape(n, length, width))
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


class SmallViT(nn.Module):
    """A vision transformer of 16 tokens behind a stem of convolutions, which small data needs."""

    def __init__(
        self, n_classes: int = 36, width: int = 64, depth: int = 6, n_heads: int = 4
    ) -> None:
        super().__init__()
        widths = (1, width // 2, width // 2, width)
        self.stem = nn.Sequential()
        for n_in, n_out in pairwise(widths):
            self.stem.append(nn.Conv2d(n_in, n_out, 3, 2, 1, bias=False))
            self.stem.append(nn.BatchNorm2d(n_out))
            self.stem.append(nn.ReLU())
        self.position = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.layers = nn.Sequential(
            *[EncoderLayer(width, n_heads, 2 * width) for _ in range(depth)]
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.layers(x)).mean(1))
