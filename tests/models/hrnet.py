"""HRNet-like: parallel resolutions that exchange features again and again."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .model_case import images, make_case
from .resnet import conv1x1, conv3x3


class Residual(nn.Module):
    """A basic residual block of constant width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(width, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + x)


class HighResolutionModule(nn.Module):
    """Every branch runs by itself, then each output sums all branches at its resolution."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(Residual(w), Residual(w)) for w in widths)
        fuse_layers = []
        for target, n_out in enumerate(widths):
            row: list[nn.Module] = []
            for source, n_in in enumerate(widths):
                row.append(self._exchange(source, target, n_in, n_out))
            fuse_layers.append(nn.ModuleList(row))
        self.fuse_layers = nn.ModuleList(fuse_layers)
        self.relu = nn.ReLU(False)

    @staticmethod
    def _exchange(source: int, target: int, n_in: int, n_out: int) -> nn.Module:
        if source == target:
            return nn.Identity()
        if source > target:
            up = nn.Upsample(scale_factor=2 ** (source - target), mode="nearest")
            return nn.Sequential(conv1x1(n_in, n_out), nn.BatchNorm2d(n_out), up)
        steps: list[nn.Module] = []
        for index in range(target - source):
            last = index == target - source - 1
            steps += [conv3x3(n_in, n_out if last else n_in, 2)]
            steps += [nn.BatchNorm2d(n_out if last else n_in)]
            steps += [] if last else [nn.ReLU(inplace=True)]
        return nn.Sequential(*steps)

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        xs = [branch(x) for branch, x in zip(self.branches, xs, strict=True)]
        fused = []
        for row in self.fuse_layers:
            total = row[0](xs[0])
            for index in range(1, len(xs)):
                total = total + row[index](xs[index])
            fused.append(self.relu(total))
        return fused


class HRNet(nn.Module):
    """Sun et al. 2019, scaled down: heat maps from all resolutions together."""

    def __init__(self, widths: tuple[int, ...] = (8, 12, 16)) -> None:
        super().__init__()
        self.conv1 = conv3x3(3, 8, 2)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.transition1 = nn.ModuleList(
            [nn.Sequential(conv3x3(8, w, 2**i), nn.BatchNorm2d(w)) for i, w in enumerate(widths)]
        )
        self.stage2 = HighResolutionModule(list(widths))
        self.stage3 = HighResolutionModule(list(widths))
        self.last_layer = nn.Conv2d(sum(widths), 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        xs = [transition(x) for transition in self.transition1]
        xs = self.stage3(self.stage2(xs))
        size = xs[0].shape[2:]
        up = [nn.functional.interpolate(x, size=size, mode="bilinear") for x in xs[1:]]
        return self.last_layer(torch.cat([xs[0], *up], 1))


CASES = (make_case("hrnet", HRNet, images(size=32), {"conv", "inplace"}),)
