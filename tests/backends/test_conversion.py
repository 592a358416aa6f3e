"""What the exporter can't convert is told branch by branch, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic.errors import ExportError
from fxelastic.ir.branch import Branch


@torch.library.custom_op("fxelastic_tests::no_onnx", mutates_args=())
def no_onnx(x: Tensor) -> Tensor:
    return x + 1


@no_onnx.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Table(nn.Module):
    """A table made from a weight alone, for two layers: a branch that reads nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 4))
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        table = self.table.softmax(-1)
        x = torch.relu(self.layers[0](x)) @ table
        x = torch.ops.fxelastic_tests.no_onnx(self.layers[1](x))
        return torch.relu(self.layers[2](x)) @ table


def test_only_branches_with_an_unknown_operator_are_named(tmp_path: Path) -> None:
    supernet = fxelastic.expand(Table().eval(), 0.4, example_inputs=torch.randn(2, 4))
    without = [branch.spec.id for branch in supernet.branches.values() if not branch.inputs]
    assert without
    with pytest.raises(ExportError) as caught:
        fxelastic.export(supernet, tmp_path / "bundle")
    named = [line for line in str(caught.value).splitlines() if "@" in line]
    failing = [branch.id for branch in supernet.branches.values() if calls_it(branch)]
    assert failing
    assert len(named) == 1
    assert f"{', '.join(failing)}: torch.onnx" in named[0]
    assert "arg names" not in str(caught.value)
    assert "torch.onnx has no conversion for fxelastic_tests.no_onnx" in named[0]
    assert caught.value.fix == "replace fxelastic_tests.no_onnx"


def calls_it(branch: Branch) -> bool:
    graphs = [m.graph for m in branch.module.modules() if isinstance(m, torch.fx.GraphModule)]
    return any("fxelastic_tests" in str(node.target) for graph in graphs for node in graph.nodes)
