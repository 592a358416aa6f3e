"""A branch that computes nothing is a skip; no other kind makes one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxelastic


class Scale(nn.Module):
    """A learned scale and shift for each position: parameters, and no product."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(4, 16)), nn.Parameter(torch.zeros(4, 16))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale + self.shift).relu()


class Positions(nn.Module):
    """A position embedding before each layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table.weight


def norms(norm: Callable[[], nn.Module]) -> list[nn.Module]:
    return [part for _ in range(3) for part in (norm(), nn.GELU(), Scale())]


def network(middle: list[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), *middle, nn.Linear(16, 4)).eval()


NETWORKS = {
    "layer norms": lambda: network(norms(lambda: nn.LayerNorm(16))),
    "batch norms": lambda: network(norms(lambda: nn.BatchNorm1d(4))),
    "scales": lambda: network([Scale() for _ in range(5)]),
    "positions": lambda: network([p for _ in range(3) for p in (Positions(), nn.LayerNorm(16))]),
    "slopes": lambda: network([p for _ in range(3) for p in (nn.PReLU(4), Scale())]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_copies_that_compute_nothing_are_not_made(name: str) -> None:
    supernet = fxelastic.expand(NETWORKS[name](), 0.05, example_inputs=torch.randn(2, 4, 16))
    empty = [b.kind for b in supernet.branches.values() if not b.flops and b.kind != "original"]
    assert set(empty) == {"skip"}
    reasons = [skip.reason for skip in supernet.skips if skip.kind == "merged"]
    assert "nothing would be left to compute: 0 FLOPs" in reasons


class Opaque(nn.Module):
    """It can't be looked into: what it computes is not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 1e9 else self.layer(x)


class Products(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Bilinear(16, 16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x, x)
        return y


@pytest.mark.parametrize("part", [Opaque, Products])
def test_copies_that_compute_something_else_are_made(part: Callable[[], nn.Module]) -> None:
    model = network([part() for _ in range(3)])
    supernet = fxelastic.expand(model, 0.4, example_inputs=torch.randn(2, 16))
    assert any(branch.kind == "merged" for branch in supernet.branches.values())
