"""Xception-like: separable convolutions and pooled shortcuts."""

from __future__ import annotations

from torch import Tensor, nn

from .model_case import images, make_case


class SeparableConv2d(nn.Module):
    """Depthwise, then pointwise."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_in, 3, padding=1, groups=n_in, bias=False)
        self.pointwise = nn.Conv2d(n_in, n_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.conv1(x))


class XceptionBlock(nn.Module):
    """Separable convolutions, each after an activation; a projected shortcut when strided."""

    def __init__(self, n_in: int, n_out: int, repeats: int, stride: int) -> None:
        super().__init__()
        self.skip: nn.Module | None = None
        if n_in != n_out or stride != 1:
            self.skip = nn.Conv2d(n_in, n_out, 1, stride, bias=False)
            self.skipbn = nn.BatchNorm2d(n_out)
        layers: list[nn.Module] = []
        for index in range(repeats):
            layers.append(nn.ReLU(inplace=False))
            layers.append(SeparableConv2d(n_in if index == 0 else n_out, n_out))
            layers.append(nn.BatchNorm2d(n_out))
        if stride != 1:
            layers.append(nn.MaxPool2d(3, stride, 1))
        self.rep = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out = self.rep(x)
        skip = x if self.skip is None else self.skipbn(self.skip(x))
        out += skip
        return out


class Xception(nn.Module):
    """Chollet 2016, scaled down."""

    def __init__(self, n_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.act1 = nn.ReLU(inplace=True)
        self.block1 = XceptionBlock(8, 16, 2, 2)
        self.block2 = XceptionBlock(16, 32, 2, 2)
        self.block3 = XceptionBlock(32, 32, 3, 1)
        self.block4 = XceptionBlock(32, 32, 3, 1)
        self.block5 = XceptionBlock(32, 48, 2, 2)
        self.conv3 = SeparableConv2d(48, 64)
        self.bn3 = nn.BatchNorm2d(64)
        self.act3 = nn.Hardswish(inplace=True)
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.block5(self.block4(self.block3(self.block2(self.block1(x)))))
        x = self.act3(self.bn3(self.conv3(x)))
        return self.fc(self.global_pool(x).squeeze(-1).squeeze(-1))


class OddPooling(nn.Module):
    """Odd sizes, ceil-mode pools, a norm without parameters before everything else."""

    def __init__(self) -> None:
        super().__init__()
        self.normalize = nn.BatchNorm2d(3, affine=False)
        self.conv1 = nn.Conv2d(3, 12, 5, stride=2, padding=1, padding_mode="reflect")
        self.pool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.conv2 = nn.Conv2d(12, 20, 3, dilation=2, padding=2)
        self.lrn = nn.LocalResponseNorm(5)
        self.pool2 = nn.AvgPool2d(2, stride=2, ceil_mode=True, count_include_pad=False)
        self.pad = nn.ZeroPad2d((0, 1, 0, 1))
        self.conv3 = nn.Conv2d(20, 24, (1, 3), bias=False)
        self.instance = nn.InstanceNorm2d(24, affine=True)
        self.pool3 = nn.LPPool2d(2, 2, ceil_mode=True)
        self.fc = nn.Sequential(nn.AdaptiveMaxPool2d((2, 1)), nn.Flatten(), nn.Linear(48, 7))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(nn.functional.elu(self.conv1(self.normalize(x))))
        x = self.pool2(self.lrn(nn.functional.softplus(self.conv2(x))))
        x = self.instance(self.conv3(self.pad(x)))
        return self.fc(self.pool3(nn.functional.relu6(x)))


CASES = (
    make_case("xception", Xception, images(size=48), {"conv", "inplace"}),
    make_case("odd_pooling", OddPooling, images(size=43), {"conv"}),
)
