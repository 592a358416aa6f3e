"""Residual networks: ResNet-18/50 as published, and a pre-activation WideResNet."""

from __future__ import annotations

from torch import Tensor, nn

from .model_case import images, make_case


def conv3x3(n_in: int, n_out: int, stride: int = 1) -> nn.Conv2d:
    """A padded 3x3 convolution without bias."""
    return nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)


def conv1x1(n_in: int, n_out: int, stride: int = 1) -> nn.Conv2d:
    """A 1x1 convolution without bias."""
    return nn.Conv2d(n_in, n_out, 1, stride=stride, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, n_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(n_in, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample(n_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut."""

    expansion = 4

    def __init__(self, n_in: int, width: int, stride: int) -> None:
        super().__init__()
        n_out = width * self.expansion
        self.conv1 = conv1x1(n_in, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, n_out)
        self.bn3 = nn.BatchNorm2d(n_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample(n_in, n_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


def downsample(n_in: int, n_out: int, stride: int) -> nn.Sequential | None:
    """The projection of a shortcut whose shape changes."""
    if stride == 1 and n_in == n_out:
        return None
    return nn.Sequential(conv1x1(n_in, n_out, stride), nn.BatchNorm2d(n_out))


class ResNet(nn.Module):
    """He et al. 2015, ImageNet stem."""

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], depths: list[int], n_classes: int = 1000
    ) -> None:
        super().__init__()
        self.n_channels = 64
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = self._stage(block, 64, depths[0], 1)
        self.layer2 = self._stage(block, 128, depths[1], 2)
        self.layer3 = self._stage(block, 256, depths[2], 2)
        self.layer4 = self._stage(block, 512, depths[3], 2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512 * block.expansion, n_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _stage(
        self, block: type[BasicBlock] | type[Bottleneck], width: int, depth: int, stride: int
    ) -> nn.Sequential:
        layers = []
        for index in range(depth):
            layers.append(block(self.n_channels, width, stride if index == 0 else 1))
            self.n_channels = width * block.expansion
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


class PreActBlock(nn.Module):
    """Norm and activation first; the shortcut branches off after the first activation."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(n_in)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = conv3x3(n_in, n_out, stride)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.relu2 = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.3)
        self.conv2 = conv3x3(n_out, n_out)
        self.same_shape = n_in == n_out and stride == 1
        self.convShortcut = None if self.same_shape else conv1x1(n_in, n_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        if self.convShortcut is not None:
            x = self.relu1(self.bn1(x))
            out = x
            shortcut = self.convShortcut(x)
        else:
            out = self.relu1(self.bn1(x))
            shortcut = x
        out = self.relu2(self.bn2(self.conv1(out)))
        return shortcut + self.conv2(self.dropout(out))


class WideResNet(nn.Module):
    """Zagoruyko & Komodakis 2016, CIFAR layout."""

    def __init__(self, depth_per_group: int = 2, widen: int = 2, n_classes: int = 10) -> None:
        super().__init__()
        widths = [8, 8 * widen, 16 * widen, 32 * widen]
        self.conv1 = conv3x3(3, widths[0])
        for group in range(3):
            blocks = [
                PreActBlock(
                    widths[group] if index == 0 else widths[group + 1],
                    widths[group + 1],
                    2 if index == 0 and group > 0 else 1,
                )
                for index in range(depth_per_group)
            ]
            setattr(self, f"block{group + 1}", nn.Sequential(*blocks))
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(widths[3], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(x)
        out = self.block3(self.block2(self.block1(out)))
        out = self.relu(self.bn1(out))
        out = nn.functional.avg_pool2d(out, 8)
        return self.fc(out.view(-1, self.fc.in_features))


CASES = (
    make_case(
        "resnet18",
        lambda: ResNet(BasicBlock, [2, 2, 2, 2]),
        images(size=64),
        {"conv", "real", "inplace"},
    ),
    make_case(
        "resnet50",
        lambda: ResNet(Bottleneck, [3, 4, 6, 3]),
        images(size=64),
        {"conv", "real", "inplace"},
    ),
    make_case("wide_resnet", WideResNet, images(size=32), {"conv", "inplace"}),
)
