"""Parts, parameters and buffers may have any name that torch.export takes."""

from __future__ import annotations

import copy
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, fx, nn

import fxelastic
from fxelastic import edge
from fxelastic.ir.graph_modules import FrozenGraphModule
from tests.lanes import EXHAUSTIVE

# Whatever a graph module has besides what every module has, on the class and on the instance.
_TAKEN = sorted(set(dir(FrozenGraphModule(nn.Module(), fx.Graph()))) - set(dir(nn.Module())))
_ODD = ["class", "lambda", "user__graph", "a b", 'a"b', "a\\b", "ﬁ", "_constants", "0"]
_OWN = ["partition", "branches", "space", "skips", "branch_modules", "subnet", "save", "arch"]
NAMES = [*_TAKEN, *_ODD, *_OWN, "_opaque_0", "projection_in", "kept_x_1", "arguments", "result"]


class Net(nn.Module):
    """A chain that reads a part, a parameter or a buffer of each name, by turns."""

    def __init__(self, names: list[str], turn: int) -> None:
        super().__init__()
        self.kinds = {
            name: ("part", "parameter", "buffer")[(i + turn) % 3] for i, name in enumerate(names)
        }
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        for name, kind in self.kinds.items():
            if kind == "part":
                self.add_module(name, nn.Linear(8, 8))
            elif kind == "parameter":
                self.register_parameter(name, nn.Parameter(torch.rand(8) + 0.5))
            else:
                self.register_buffer(name, torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        for name, kind in self.kinds.items():
            if kind == "part":
                x = torch.relu(self._modules[name](x))  # type: ignore[misc]
            else:
                x = x * (self._parameters if kind == "parameter" else self._buffers)[name]
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


@pytest.mark.parametrize("turn", range(3))
def test_a_name_that_a_graph_module_has_for_itself_works(turn: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Net(NAMES, turn).eval(), torch.randn(4, 8)
    with torch.no_grad():
        expected = model(x)
    supernet = fxelastic.expand(model, 0.5, example_inputs=x)
    arch = supernet.space.sample(1, seed=1)[0]
    partition = supernet.partition
    with torch.no_grad():
        assert torch.equal(supernet(x), expected)
        assert torch.equal(partition(x), expected)
        assert torch.equal(supernet.subnet(arch)(x), supernet(x, arch=arch))
        assert torch.equal(copy.deepcopy(supernet)(x), expected)
    own = {name for name, _ in model.named_parameters()}
    assert set(partition.parameters) == own
    assert {name for block in partition.blocks for name in block.params} == own
    assert not partition.unused_params
    if turn and not EXHAUSTIVE:
        return
    fxelastic.distill(supernet, [x], steps=1)
    supernet.save(tmp_path / "supernet.safetensors")
    supernet.load(tmp_path / "supernet.safetensors")
    bundle = fxelastic.export(supernet, tmp_path / "bundle", n_subnets=1)
    assembled = edge.assemble(bundle, bundle.space.original, tmp_path / "whole.onnx")
    weights = [
        w.name for w in onnx.load(str(assembled), load_external_data=False).graph.initializer
    ]
    assert not [name for name in weights if "user__" in name.replace("user__graph", "")]
    session = onnxruntime.InferenceSession(str(assembled), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(result), expected)


def test_a_parameter_that_nothing_reads_keeps_its_name() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    for name in ("graph", "class", "meta", "code"):
        model.register_parameter(name, nn.Parameter(torch.ones(1)))
    model.forward = lambda x: model[1](model[0](x)) * model.code  # type: ignore[method-assign]
    partition = fxelastic.partition(model, 1.0, example_inputs=torch.randn(2, 8))
    assert partition.unused_params == ("graph", "class", "meta")


@pytest.mark.parametrize("name", ["graph", "class", 'a"b', "user__graph", "µ"])
def test_a_part_below_the_outermost_may_have_the_name(name: str) -> None:
    parts = nn.ModuleDict({name: nn.Linear(8, 8), "other": nn.Linear(8, 8)})

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = parts

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.parts["other"](self.parts[name](x)))

    model, x = nn.Sequential(Inner(), nn.Linear(8, 2)).eval(), torch.randn(4, 8)
    supernet = fxelastic.expand(model, 0.5, example_inputs=x)
    assert torch.equal(supernet(x), model(x))
    assert f"0.parts.{name}.weight" in supernet.partition.parameters
