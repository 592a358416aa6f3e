"""DenseNet: every layer reads the concatenation of all layers before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .model_case import images, make_case


class DenseLayer(nn.Module):
    """Pre-activation 1x1 bottleneck and 3x3 convolution."""

    def __init__(self, n_in: int, growth: int, bottleneck: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(n_in)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(n_in, bottleneck * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(bottleneck * growth)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(bottleneck * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(self.relu1(self.norm1(torch.cat(features, 1))))
        return self.conv2(self.relu2(self.norm2(x)))


class DenseBlock(nn.ModuleDict):
    """Layers that share one growing list of features."""

    def __init__(self, n_layers: int, n_in: int, growth: int, bottleneck: int = 4) -> None:
        super().__init__()
        for index in range(n_layers):
            layer = DenseLayer(n_in + index * growth, growth, bottleneck)
            self.add_module(f"denselayer{index + 1}", layer)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


class Transition(nn.Sequential):
    """Halve the channels and the resolution."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(n_in)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(n_in, n_out, 1, bias=False)
        self.pool = nn.AvgPool2d(2, 2)


class DenseNet(nn.Module):
    """Huang et al. 2016, scaled down."""

    def __init__(self, growth: int = 8, depths: tuple[int, ...] = (3, 4, 3)) -> None:
        super().__init__()
        n_channels = 16
        self.features = nn.Sequential()
        self.features.add_module("conv0", nn.Conv2d(3, n_channels, 3, 2, 1, bias=False))
        self.features.add_module("norm0", nn.BatchNorm2d(n_channels))
        self.features.add_module("relu0", nn.ReLU(inplace=True))
        for index, depth in enumerate(depths):
            block = DenseBlock(depth, n_channels, growth)
            self.features.add_module(f"denseblock{index + 1}", block)
            n_channels += depth * growth
            if index + 1 < len(depths):
                transition = Transition(n_channels, n_channels // 2)
                self.features.add_module(f"transition{index + 1}", transition)
                n_channels //= 2
        self.features.add_module("norm5", nn.BatchNorm2d(n_channels))
        self.classifier = nn.Linear(n_channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = nn.functional.relu(self.features(x), inplace=True)
        out = nn.functional.adaptive_avg_pool2d(out, (1, 1))
        return self.classifier(torch.flatten(out, 1))


CASES = (make_case("densenet", DenseNet, images(size=32), {"conv", "inplace"}),)
