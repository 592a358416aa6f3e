"""ShuffleNetV2 (split and shuffled channels) and a ResNeXt with grouped convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .model_case import images, make_case


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of ``groups`` groups."""
    batch, n_channels, height, width = x.size()
    x = x.view(batch, groups, n_channels // groups, height, width)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(batch, n_channels, height, width)


class InvertedResidual(nn.Module):
    """Half of the channels pass untouched, or both halves are strided."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        half = n_out // 2
        self.branch1 = nn.Sequential()
        if stride > 1:
            self.branch1 = nn.Sequential(
                nn.Conv2d(n_in, n_in, 3, stride, 1, groups=n_in, bias=False),
                nn.BatchNorm2d(n_in),
                nn.Conv2d(n_in, half, 1, bias=False),
                nn.BatchNorm2d(half),
                nn.ReLU(inplace=True),
            )
        self.branch2 = nn.Sequential(
            nn.Conv2d(n_in if stride > 1 else half, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, half, 3, stride, 1, groups=half, bias=False),
            nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            x1, x2 = x.chunk(2, dim=1)
            out = torch.cat((x1, self.branch2(x2)), dim=1)
        else:
            out = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        return channel_shuffle(out, 2)


class ShuffleNetV2(nn.Module):
    """Ma et al. 2018, scaled down."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64), n_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU(inplace=True)
        )
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        n_channels = 12
        for index, (width, repeats) in enumerate(zip(widths, (3, 4, 2), strict=True)):
            blocks = [InvertedResidual(n_channels, width, 2)]
            blocks += [InvertedResidual(width, width, 1) for _ in range(repeats - 1)]
            setattr(self, f"stage{index + 2}", nn.Sequential(*blocks))
            n_channels = width
        self.conv5 = nn.Sequential(
            nn.Conv2d(n_channels, 96, 1, bias=False), nn.BatchNorm2d(96), nn.ReLU(inplace=True)
        )
        self.fc = nn.Linear(96, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        x = self.conv5(self.stage4(self.stage3(self.stage2(x))))
        return self.fc(x.mean([2, 3]))


class ResNeXtBlock(nn.Module):
    """A bottleneck whose 3x3 convolution has several groups, then a shuffle (ShuffleNet v1)."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.conv1 = nn.Conv2d(width, width, 1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.shuffle = nn.ChannelShuffle(groups)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=groups, bias=False)
        self.gn = nn.GroupNorm(groups, width)
        self.conv3 = nn.Conv2d(width, width, 1, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.shuffle(torch.relu(self.bn1(self.conv1(x))))
        out = nn.functional.leaky_relu(self.gn(self.conv2(out)), 0.1)
        return torch.relu(x + self.conv3(out))


class ResNeXt(nn.Module):
    """Grouped residual blocks at one resolution."""

    def __init__(self, width: int = 24, groups: int = 4, depth: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.blocks = nn.Sequential(*[ResNeXtBlock(width, groups) for _ in range(depth)])
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean(dim=(-2, -1)))


CASES = (
    make_case("shufflenet_v2", ShuffleNetV2, images(size=64), {"conv", "inplace"}),
    make_case("resnext_grouped", ResNeXt, images(size=16), {"conv"}),
)
