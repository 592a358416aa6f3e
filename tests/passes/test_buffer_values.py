"""Control flow that reads a model's own buffers is followed, and no other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic.errors import CaptureError


class Flags(nn.Module):
    """Reads buffers in each way that conditions do."""

    def __init__(self, on: bool) -> None:
        super().__init__()
        self.register_buffer("on", torch.tensor(on))
        self.register_buffer("columns", torch.tensor([True, False, True]))
        self.register_buffer("count", torch.tensor(2), persistent=False)
        self.register_buffer("scales", torch.tensor([0.5, 0.0, 2.0]))
        self.plain = torch.tensor([1, 0])
        self.first = nn.Linear(6, 6)
        self.body = nn.Sequential(nn.Linear(6, 6), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        if self.on:
            x = self.first(x)
        for i, chosen in enumerate(self.columns):
            if chosen:
                x = x + i
        for _ in range(int(self.count)):
            x = self.body(x)
        for scale in self.scales.tolist():
            if scale:
                x = x * scale
        if (self.scales > 1).any() and self.scales.shape[0] == 3 and self.plain[0] == 1:
            x = x.tanh()
        return x


@pytest.mark.parametrize("on", [True, False])
def test_conditions_on_buffers_are_followed(on: bool) -> None:
    torch.manual_seed(0)
    model = Flags(on).eval()
    found = fxelastic.partition(model, example_inputs=torch.randn(2, 6))
    assert not found.opaque
    assert found.dynamic_batch
    operators = [str(node.target) for node in found.graph_module.graph.nodes]
    assert operators.count("aten.linear.default") == 2 + on
    assert operators.count("aten.mul.Tensor") == 2
    assert "aten.tanh.default" in operators
    x = torch.randn(5, 6)
    torch.testing.assert_close(found.graph_module(x)[0], model(x))


class Part(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.before, self.inner, self.after = nn.Linear(6, 6), inner, nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Any:
        return self.after(self.inner(self.before(x)))


def test_a_part_that_reads_buffers_is_not_kept_whole() -> None:
    found = fxelastic.partition(Part(Flags(True)).eval(), example_inputs=torch.randn(2, 6))
    assert not found.opaque


class Decides(nn.Module):
    """Decides by a buffer and by something else."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("flags", torch.tensor([True, False]))
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "data":
            decision = (x.sum() > 0) & self.flags[0]
        elif self.how == "parameter":
            decision = self.weight > 0
        elif self.how == "random":
            decision = torch.rand(()) * self.flags[0] > 0.5
        else:
            copy = self.flags.clone()
            copy[0] = x.sum() > 0
            decision = copy[0]
        return x + 1 if decision else x - 1


@pytest.mark.parametrize("how", ["data", "parameter", "random", "written"])
def test_other_decisions_are_refused(how: str) -> None:
    with pytest.raises(CaptureError, match="control flow depends on the values"):
        fxelastic.partition(Decides(how).eval(), example_inputs=torch.randn(2, 6))


def test_the_model_stays_as_it_was() -> None:
    model = Flags(True).eval()
    before = dict(vars(model))
    fxelastic.partition(model, example_inputs=torch.randn(2, 6))
    assert dict(vars(model)) == before
