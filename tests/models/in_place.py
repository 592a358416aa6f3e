"""In-place operators wherever they can stand: on views, slices, values read again, inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .model_case import features, images, make_case


class InPlaceUnit(nn.Module):
    """A residual unit that overwrites whatever it can."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.scale = nn.Parameter(torch.empty(width, 1, 1).uniform_(0.5, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        y.relu_()
        y = self.conv2(y)
        y.mul_(self.scale)
        y.add_(x)
        y[:, 0] = 0
        y[:, 1:3].mul_(0.5)
        half = y.shape[1] // 2
        y[:, :half].add_(y[:, half:])
        return nn.functional.dropout(y, 0.2, self.training, inplace=True)


class InPlaceEverywhere(nn.Module):
    """A stem, in-place units, and a head that writes into the pooled features."""

    def __init__(self, width: int = 12, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.units = nn.ModuleList(InPlaceUnit(width) for _ in range(depth))
        self.fc = nn.Linear(width, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.leaky_relu(self.stem(x), 0.1, inplace=True)
        for unit in self.units:
            x = unit(x)
            x.clamp_(min=-4.0, max=4.0)
        flat = x.mean((2, 3))
        flat[..., -1].fill_(1.0)
        out = self.fc(flat)
        out.sub_(out.amax(dim=1, keepdim=True))
        return out.exp_().div_(2.0)


class LateWrite(nn.Module):
    """Values that are read, then overwritten, then read again through older views and tuples."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.a = nn.Linear(10, width)
        self.b = nn.Linear(width, width)
        self.c = nn.Linear(width, width)
        self.d = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = self.a(x)
        view = a.view(a.shape[0], 4, 4)
        b = self.b(a)
        view.tanh_()  # changes `a`, after `b` was made from it
        c = self.c(a + b)
        b.copy_(c)  # `b` takes the place of `c`
        c.zero_()
        a += b
        view[:, 1:, :2] += view[:, :-1, 2:]
        d = self.d(a)
        return d, view.transpose(1, 2)


class InPlaceOnInput(nn.Module):
    """Normalises the caller's tensor in place before it looks at it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.8, 0.9, 1.1]).view(1, 3, 1, 1))
        self.conv1 = nn.Conv2d(3, 10, 3, padding=1)
        self.conv2 = nn.Conv2d(10, 10, 3, padding=1)
        self.fc = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(self.mean).div_(self.std)
        y = torch.relu_(self.conv1(x))
        y = y + self.conv2(y)
        return self.fc(y.mean(dim=(2, 3))) + x.mean(dim=(1, 2, 3))[:, None]


CASES = (
    make_case(
        "in_place_everywhere",
        InPlaceEverywhere,
        images(size=16),
        {"conv", "inplace", "no-symbolic-trace"},
    ),
    make_case(
        "late_write",
        LateWrite,
        features(10),
        {"mlp", "inplace", "multi-output", "side-exits", "no-symbolic-trace"},
    ),
    make_case(
        "in_place_on_input", InPlaceOnInput, images(size=12), {"conv", "inplace", "mutates-input"}
    ),
)
