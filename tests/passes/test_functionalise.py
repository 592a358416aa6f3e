"""In-place operators can't corrupt a value that somebody else reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic.ir.operators import mutated_operands
from fxelastic.passes import capture


class Layer(nn.Module):
    def __init__(self, body: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(self.linear(x))


def read_after_write(y: torch.Tensor) -> torch.Tensor:
    z = y.relu_()
    return y + z


def write_through_a_view(y: torch.Tensor) -> torch.Tensor:
    y[:, 0] = 0
    return y * 2


def view_before_write(y: torch.Tensor) -> torch.Tensor:
    view = y.view(-1)
    y.add_(1)
    return y + view.view_as(y)


def copy_under_a_mask(y: torch.Tensor) -> torch.Tensor:
    target = torch.zeros_like(y)
    target.copy_(y)
    y.masked_fill_(target > 0, -1.0)
    return y + target


def write_twice(y: torch.Tensor) -> torch.Tensor:
    return y.add_(1).mul_(2).clamp_(min=0)


def write_to_a_part(y: torch.Tensor) -> torch.Tensor:
    left = y.narrow(1, 0, 2)
    left.mul_(3)
    return torch.cat([y.narrow(1, 2, 2), left], 1) + y


def fill_then_scatter(y: torch.Tensor) -> torch.Tensor:
    y.zero_()
    y.index_add_(0, torch.tensor([0]), torch.ones(1, 4))
    return y


BODIES = [
    read_after_write,
    write_through_a_view,
    view_before_write,
    copy_under_a_mask,
    write_twice,
    write_to_a_part,
    fill_then_scatter,
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_nothing_is_written_to(body: Callable[[torch.Tensor], torch.Tensor]) -> None:
    model = Layer(body).eval()
    traced = capture(model, torch.randn(2, 4))
    assert not any(list(mutated_operands(node)) for node in traced.graph.nodes)
    for size in (2, 3):
        x = torch.randn(size, 4)
        assert torch.equal(traced(x.clone()), model(x.clone()))


def test_an_input_that_the_model_writes_to_is_not_the_users() -> None:
    class Writes(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.add_(1))

    x = torch.zeros(2, 4)
    capture(Writes(4, 4), x)
    assert torch.equal(x, torch.zeros(2, 4))


class Mapped(nn.Module):
    """Uses torch.func.vmap, whose tensors have no memory of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.func.vmap(lambda row: row * row.sum())(self.first(x)))


class Counted(nn.Module):
    """Divides by how many values are above zero, which is a result like any other."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
        self.middle = nn.Linear(8, 8)
        self.last = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.last(self.middle(x) / ((x > 0).nonzero().shape[0] + 1))


@pytest.mark.parametrize("kind", [Mapped, Counted])
def test_odd_values_are_captured(kind: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    supernet = fxelastic.expand(model, 0.2, example_inputs=torch.randn(2, 8))
    x = torch.randn(5, 8)
    with torch.no_grad():
        assert torch.equal(supernet(x), model(x))
        for arch in supernet.space.sample(3, seed=0):
            assert supernet(x, arch=arch).isfinite().all()
    fxelastic.export(supernet, tmp_path / "bundle")
