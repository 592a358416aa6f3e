"""MobileNetV2 as published."""

from __future__ import annotations

from torch import Tensor, nn

from .model_case import images, make_case

# expansion, output channels, repeats, stride of the first
SETTINGS = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
]


class ConvBNReLU(nn.Sequential):
    """Convolution, batch norm, ReLU6."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(n_out),
            nn.ReLU6(inplace=True),
        )


class InvertedResidual(nn.Module):
    """Expand, filter depthwise, project; a shortcut where shapes agree."""

    def __init__(self, n_in: int, n_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = n_in * expansion
        self.use_res_connect = stride == 1 and n_in == n_out
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(ConvBNReLU(n_in, hidden, 1, 1))
        layers.append(ConvBNReLU(hidden, hidden, 3, stride, groups=hidden))
        layers.append(nn.Conv2d(hidden, n_out, 1, bias=False))
        layers.append(nn.BatchNorm2d(n_out))
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        if self.use_res_connect:
            return x + self.conv(x)
        return self.conv(x)


class MobileNetV2(nn.Module):
    """Sandler et al. 2018."""

    def __init__(self, n_classes: int = 1000) -> None:
        super().__init__()
        features: list[nn.Module] = [ConvBNReLU(3, 32, 3, 2)]
        n_channels = 32
        for expansion, n_out, repeats, stride in SETTINGS:
            for index in range(repeats):
                features.append(
                    InvertedResidual(n_channels, n_out, stride if index == 0 else 1, expansion)
                )
                n_channels = n_out
        features.append(ConvBNReLU(n_channels, 1280, 1, 1))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, n_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = nn.functional.adaptive_avg_pool2d(x, (1, 1))
        return self.classifier(x.flatten(1))


CASES = (make_case("mobilenet_v2", MobileNetV2, images(size=64), {"conv", "real", "inplace"}),)
