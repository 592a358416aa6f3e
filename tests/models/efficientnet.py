"""EfficientNet: inverted residuals with squeeze-and-excitation, SiLU, stochastic depth."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .model_case import images, make_case

# expansion, kernel, stride, output channels, repeats
SETTINGS = [(1, 3, 1, 8, 1), (6, 3, 2, 12, 2), (6, 5, 2, 20, 2), (6, 3, 2, 32, 3), (6, 5, 1, 40, 2)]


class ConvNormActivation(nn.Sequential):
    """Convolution, batch norm, optional SiLU."""

    def __init__(
        self, n_in: int, n_out: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(n_out, eps=1e-3),
        ]
        if act:
            layers.append(nn.SiLU(inplace=True))
        super().__init__(*layers)


class SqueezeExcitation(nn.Module):
    """Channel gates from the global average."""

    def __init__(self, n_channels: int, squeeze: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(n_channels, squeeze, 1)
        self.activation = nn.SiLU(inplace=True)
        self.fc2 = nn.Conv2d(squeeze, n_channels, 1)
        self.scale_activation = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.activation(self.fc1(self.avgpool(x)))
        return self.scale_activation(self.fc2(scale)) * x


class StochasticDepth(nn.Module):
    """Drops whole residual branches per sample in training; nothing in eval."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.p
        return x * keep / (1.0 - self.p)


class MBConv(nn.Module):
    """Expand, depthwise, squeeze-and-excite, project."""

    def __init__(
        self, n_in: int, n_out: int, kernel: int, stride: int, expansion: int, drop: float
    ) -> None:
        super().__init__()
        hidden = n_in * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(ConvNormActivation(n_in, hidden, 1))
        layers.append(ConvNormActivation(hidden, hidden, kernel, stride, groups=hidden))
        layers.append(SqueezeExcitation(hidden, max(1, n_in // 4)))
        layers.append(ConvNormActivation(hidden, n_out, 1, act=False))
        self.block = nn.Sequential(*layers)
        self.stochastic_depth = StochasticDepth(drop)
        self.use_res_connect = stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        result = self.block(x)
        if self.use_res_connect:
            result = self.stochastic_depth(result)
            result += x
        return result


class EfficientNet(nn.Module):
    """Tan & Le 2019, scaled down."""

    def __init__(self, n_classes: int = 10) -> None:
        super().__init__()
        features: list[nn.Module] = [ConvNormActivation(3, 16, 3, 2)]
        n_channels = 16
        for index, (expansion, kernel, stride, n_out, repeats) in enumerate(SETTINGS):
            stage = []
            for repeat in range(repeats):
                step = stride if repeat == 0 else 1
                stage.append(MBConv(n_channels, n_out, kernel, step, expansion, 0.04 * index))
                n_channels = n_out
            features.append(nn.Sequential(*stage))
        features.append(ConvNormActivation(n_channels, 4 * n_channels, 1))
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2, inplace=True), nn.Linear(160, n_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


CASES = (make_case("efficientnet", EfficientNet, images(size=64), {"conv", "inplace"}),)
