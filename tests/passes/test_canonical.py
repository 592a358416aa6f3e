"""Writes to whole tensors: the same values, and gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic.ir.operators import operator_name


class _Writes(nn.Module):
    """Writes one tensor over a stretch of another one, in some form."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(6, 6), nn.Linear(6, 6)
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.one(x), self.other(x)
        if self.form == "same":
            y[:, :3] = z[:, 3:]
        elif self.form == "whole":
            y.view(-1, 3, 2).copy_(z.view(-1, 2, 3).transpose(1, 2))
        elif self.form == "broadcast":
            y[:, 1:4] = z[:, :1]
        elif self.form == "row":
            y[:, 2:] = self.other.bias[:4]
        elif self.form == "tensor":
            y.copy_(z[:1])
        elif self.form == "tensor, dtype":
            y.copy_(z.double())
        elif self.form == "element":
            y = y + z.new_zeros(()).copy_(z[0, 0].double())
        else:
            y[:, :2] = z[:, :2].double()
        return torch.tanh(y).view(-1, 2, 3)


# The forms with a tensor need no views, and so none of torch's own functionalisation.
FORMS = (
    *("same", "whole", "broadcast", "row", "dtype"),
    *("tensor", "tensor, dtype", "element"),
)


@pytest.mark.parametrize("form", FORMS)
def test_writes_have_gradients(form: str) -> None:
    torch.manual_seed(0)
    model = _Writes(form)
    x = torch.randn(3, 6)
    supernet = fxelastic.expand(model, 1.0, example_inputs=x, kinds=())
    names = {operator_name(node) for node in supernet.partition.graph.nodes}
    assert "aten.copy" not in names
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    result, wanted = supernet(one), model(other)
    assert torch.equal(result, wanted)
    result.pow(2).sum().backward()
    wanted.pow(2).sum().backward()
    assert one.grad is not None
    assert other.grad is not None
    assert torch.allclose(one.grad, other.grad, rtol=1e-5, atol=1e-6)


class Joined(nn.Module):
    """Writes two results into memory that it took as it came, with layers in between."""

    def __init__(self, take: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 3), nn.Linear(8, 5), nn.Linear(8, 2)
        self.take = take

    def forward(self, x: Tensor) -> Tensor:
        joined = self.take(x)
        joined[:, :3] = self.first(x).relu()
        joined[:, 3:] = self.second(x).relu()
        return self.last(joined)


@pytest.mark.parametrize(
    "take",
    [
        lambda x: x.new_empty(x.shape[0], 8),
        torch.empty_like,
        lambda x: torch.empty(x.shape[0], 8),
        lambda x: torch.empty_like(x, memory_format=torch.contiguous_format),
    ],
)
def test_memory_that_is_filled_in_parts(take: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    """A cut between two writes hands on what is not written yet: zeros, each time."""
    torch.manual_seed(0)
    model = Joined(take).eval()
    supernet = fxelastic.expand(model, 0.5, example_inputs=torch.randn(2, 8))
    targets = {str(node.target) for node in supernet.partition.graph.nodes}
    assert not any("empty" in target for target in targets)
    x = torch.randn(5, 8)
    with torch.no_grad():
        assert torch.equal(supernet(x), model(x))
    fxelastic.export(supernet, tmp_path / "bundle")
