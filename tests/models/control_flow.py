"""Python control flow over shapes and settings: only torch.export can follow it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .model_case import features, images, make_case


class ShapeLoop(nn.Module):
    """Pools until the map is small, pads odd sizes, picks a head by the size that is left."""

    def __init__(self, width: int = 12, smallest: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.steps = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(6))
        self.heads = nn.ModuleDict(
            {str(size): nn.Linear(width * size * size, 5) for size in (2, 3, 4)}
        )
        self.smallest = smallest

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        step = 0
        while x.shape[-1] > self.smallest:
            if x.shape[-1] % 2:
                x = nn.functional.pad(x, (0, 1, 0, 1))
            x = nn.functional.max_pool2d(x, 2)
            x = x + torch.relu(self.steps[step](x))
            step += 1
        side = int(math.sqrt(x.shape[2] * x.shape[3]))
        return self.heads[str(side)](x.flatten(1))


class Routed(nn.Module):
    """Loops and branches on settings, types and sizes; reads values with ``len`` and ``int``."""

    def __init__(
        self, plan: tuple[str, ...] = ("linear", "gate", "skip", "linear", "norm")
    ) -> None:
        super().__init__()
        self.plan = plan
        self.layers = nn.ModuleDict()
        for index, kind in enumerate(plan):
            if kind in ("linear", "gate"):
                self.layers[f"{kind}_{index}"] = nn.Linear(16, 16)
            elif kind == "norm":
                self.layers[f"{kind}_{index}"] = nn.LayerNorm(16)
        self.out = nn.Linear(16, 4)

    def forward(self, x: Tensor, extra: list[Tensor] | None = None) -> Tensor:
        if not isinstance(x, Tensor) or x.dim() != 3:
            raise ValueError(f"expected (N, L, 16), got {tuple(x.shape)}")
        rows = [row for row in x.unbind(1)]
        total = rows[0]
        for row in rows[1 : int(len(rows))]:
            total = total + row / math.sqrt(len(rows))
        for index, kind in enumerate(self.plan):
            if kind == "skip":
                continue
            layer = self.layers[f"{kind}_{index}"]
            if kind == "gate":
                total = total * torch.sigmoid(layer(total))
            else:
                total = total + layer(total)
        for tensor in extra or []:
            total = total + tensor
        if total.shape[1] > 8:
            total = total / float(total.shape[1]) ** 0.25
        return self.out(total)


CASES = (
    make_case(
        "shape_loop", ShapeLoop, images(size=30), {"conv", "unused-params", "no-symbolic-trace"}
    ),
    make_case("routed", Routed, features(5, 16), {"mlp", "no-symbolic-trace"}),
)
