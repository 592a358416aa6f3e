"""GoogLeNet-like: parallel branches joined by cat, and an auxiliary head that eval skips."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .model_case import images, make_case


class BasicConv2d(nn.Module):
    """Convolution, batch norm, functional in-place ReLU."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, kernel, stride, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(n_out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.bn(self.conv(x)), inplace=True)


class Inception(nn.Module):
    """Four branches over one input: 1x1, 1x1-3x3, 1x1-3x3-3x3, pool-1x1."""

    def __init__(self, n_in: int, c1: int, c3r: int, c3: int, c5r: int, c5: int, pool: int) -> None:
        super().__init__()
        self.branch1 = BasicConv2d(n_in, c1, 1)
        self.branch2 = nn.Sequential(BasicConv2d(n_in, c3r, 1), BasicConv2d(c3r, c3, 3))
        self.branch3 = nn.Sequential(
            BasicConv2d(n_in, c5r, 1), BasicConv2d(c5r, c5, 3), BasicConv2d(c5, c5, 3)
        )
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1, ceil_mode=True), BasicConv2d(n_in, pool, 1)
        )
        self.n_out = c1 + c3 + c5 + pool

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class InceptionAux(nn.Module):
    """The auxiliary classifier, run in training only."""

    def __init__(self, n_in: int, n_classes: int) -> None:
        super().__init__()
        self.conv = BasicConv2d(n_in, 16, 1)
        self.fc1 = nn.Linear(16 * 4, 32)
        self.fc2 = nn.Linear(32, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(nn.functional.adaptive_avg_pool2d(x, (2, 2)))
        return self.fc2(nn.functional.relu(self.fc1(torch.flatten(x, 1))))


class GoogLeNet(nn.Module):
    """Szegedy et al. 2014, scaled down."""

    def __init__(self, n_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = BasicConv2d(3, 16, 7, stride=2)
        self.maxpool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.conv2 = BasicConv2d(16, 16, 1)
        self.conv3 = BasicConv2d(16, 32, 3)
        self.inception3a = Inception(32, 16, 16, 24, 4, 8, 8)
        self.inception3b = Inception(56, 24, 16, 32, 8, 16, 8)
        self.maxpool3 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception4a = Inception(80, 32, 16, 32, 4, 8, 8)
        self.inception4b = Inception(80, 24, 16, 40, 4, 8, 8)
        self.maxpool4 = nn.MaxPool2d(2, stride=2, ceil_mode=True)
        self.inception5a = Inception(80, 40, 24, 48, 8, 16, 16)
        self.aux1 = InceptionAux(80, n_classes)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(self.inception5a.n_out, n_classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.maxpool1(self.conv1(x))
        x = self.conv3(self.conv2(x))
        x = self.maxpool3(self.inception3b(self.inception3a(x)))
        x = self.inception4a(x)
        aux = self.aux1(x) if self.training else None
        x = self.inception5a(self.maxpool4(self.inception4b(x)))
        x = self.fc(self.dropout(torch.flatten(self.avgpool(x), 1)))
        return x if aux is None else (x, aux)


CASES = (make_case("googlenet", GoogLeNet, images(size=64), {"conv", "inplace", "unused-params"}),)
