"""ConvNeXt: depthwise 7x7, channels-last MLP, layer scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .efficientnet import StochasticDepth
from .model_case import images, make_case


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of ``(N, C, H, W)``."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = nn.functional.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class Permute(nn.Module):
    """``permute`` as a layer."""

    def __init__(self, dims: list[int]) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return torch.permute(x, self.dims)


class CNBlock(nn.Module):
    """Depthwise convolution and MLP, scaled per channel, added to the input."""

    def __init__(self, width: int, drop: float) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(width, width, 7, padding=3, groups=width),
            Permute([0, 2, 3, 1]),
            nn.LayerNorm(width, eps=1e-6),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            Permute([0, 3, 1, 2]),
        )
        self.layer_scale = nn.Parameter(torch.full((width, 1, 1), 0.5))
        self.stochastic_depth = StochasticDepth(drop)

    def forward(self, x: Tensor) -> Tensor:
        result = self.layer_scale * self.block(x)
        return self.stochastic_depth(result) + x


class ConvNeXt(nn.Module):
    """Liu et al. 2022, scaled down."""

    def __init__(self, widths: tuple[int, ...] = (16, 24, 32), depths: tuple[int, ...] = (2, 3, 2)):
        super().__init__()
        features: list[nn.Module] = [
            nn.Sequential(nn.Conv2d(3, widths[0], 4, 4), LayerNorm2d(widths[0], eps=1e-6))
        ]
        for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            features.append(nn.Sequential(*[CNBlock(width, 0.1) for _ in range(depth)]))
            if index + 1 < len(widths):
                down = nn.Conv2d(width, widths[index + 1], 2, 2)
                features.append(nn.Sequential(LayerNorm2d(width, eps=1e-6), down))
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            LayerNorm2d(widths[-1], eps=1e-6), nn.Flatten(1), nn.Linear(widths[-1], 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)))


CASES = (make_case("convnext", ConvNeXt, images(size=32), {"conv"}),)
