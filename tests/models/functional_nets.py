"""No submodules to name things by: parameters in lists and plain functions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .model_case import images, make_case


def weight(*shape: int) -> nn.Parameter:
    """A parameter with unit output variance for unit inputs."""
    fan_in = 1
    for size in shape[1:]:
        fan_in *= size
    return nn.Parameter(torch.randn(*shape) * (2.0 / fan_in) ** 0.5)


class FunctionalChain(nn.Module):
    """LeNet from ``F.conv2d`` and ``F.linear`` over a parameter list."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            [weight(8, 3, 3, 3), weight(16, 8, 3, 3), weight(32, 16 * 16), weight(10, 32)]
        )
        self.biases = nn.ParameterList(
            [nn.Parameter(torch.randn(n) * 0.1) for n in (8, 16, 32, 10)]
        )

    def forward(self, x: Tensor) -> Tensor:
        for index in range(2):
            x = F.conv2d(x, self.weights[index], self.biases[index], padding=1)
            x = F.max_pool2d(F.relu(x), 2)
        x = F.relu(F.linear(x.flatten(1), self.weights[2], self.biases[2]))
        return F.linear(x, self.weights[3], self.biases[3])


class FunctionalResNet(nn.Module):
    """Residual units written out: repetition shows in the structure only."""

    def __init__(self, width: int = 12, depth: int = 5) -> None:
        super().__init__()
        self.stem = weight(width, 3, 3, 3)
        self.kernels = nn.ParameterDict()
        for index in range(depth):
            for half in ("a", "b"):
                self.kernels[f"w{index}{half}"] = weight(width, width, 3, 3)
                self.kernels[f"g{index}{half}"] = nn.Parameter(torch.rand(width) + 0.5)
                self.kernels[f"h{index}{half}"] = nn.Parameter(torch.randn(width) * 0.1)
                self.register_buffer(f"m{index}{half}", torch.randn(width) * 0.1)
                self.register_buffer(f"v{index}{half}", torch.rand(width) + 1.0)
        self.head = weight(7, width)
        self.depth = depth

    def _conv_norm(self, x: Tensor, key: str) -> Tensor:
        x = F.conv2d(x, self.kernels[f"w{key}"], padding=1)
        mean, variance = getattr(self, f"m{key}"), getattr(self, f"v{key}")
        scale, shift = self.kernels[f"g{key}"], self.kernels[f"h{key}"]
        return F.batch_norm(x, mean, variance, scale, shift, training=self.training)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.stem, stride=2, padding=1)
        for index in range(self.depth):
            y = F.relu(self._conv_norm(x, f"{index}a"))
            x = F.relu(x + self._conv_norm(y, f"{index}b"))
        return F.linear(F.adaptive_avg_pool2d(x, 1).flatten(1), self.head)


CASES = (
    make_case("functional_chain", FunctionalChain, images(size=16), {"conv", "functional"}),
    make_case("functional_resnet", FunctionalResNet, images(size=16), {"conv", "functional"}),
)
