"""Branches with the same graph are converted once, and nothing else is taken for the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import fx, nn

from fxelastic.backends.onnxruntime.conversion import convert
from fxelastic.backends.onnxruntime.pieces import FreeSize, Piece, templates


class Unit(nn.Module):
    """Weights of each kind: a parameter, one that is used twice, buffers, a module's."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(4, 4, generator=generator))
        self.other = nn.Parameter(torch.randn(4, 4, generator=generator))
        self.register_buffer("scale", torch.rand(4, generator=generator))
        self.register_buffer("order", torch.randperm(4, generator=generator))
        self.norm = nn.BatchNorm1d(4)
        # What training leaves: another count in each branch.
        self.norm.num_batches_tracked.fill_(seed)
        self.norm.running_mean.fill_(seed / 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(x @ self.weight) @ self.other
        return self.norm(x * self.scale)[:, self.order] @ self.weight


class _Leaves(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def graph_of(module: nn.Module) -> fx.GraphModule:
    traced = fx.GraphModule(module, _Leaves().trace(module))
    assert isinstance(traced.eval(), fx.GraphModule)
    return traced


def piece_of(module: nn.Module, name: str = "a", width: int = 4) -> Piece:
    return Piece(name, module, ("x",), (f"y_{name}",), (torch.ones(2, width),), ((FreeSize(0),),))


def units() -> list[Piece]:
    return [piece_of(graph_of(Unit(seed)), f"unit{seed}") for seed in range(3)]


def test_alike_but_for_weights_is_one_template() -> None:
    (found,) = templates(units())
    assert [piece.name for piece in found.pieces] == ["unit0", "unit1", "unit2"]
    assert found.weights[0] == found.weights[1] == found.weights[2]
    assert {"weight", "other", "scale", "order", "norm.running_mean"} <= set(found.weights[0])


def test_each_copy_has_its_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    converted = []
    export = torch.export.export

    def counted(module: nn.Module, *args: object, **kwargs: object) -> object:
        converted.append(len(list(module.pieces)))  # type: ignore[arg-type]
        return export(module, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.export, "export", counted)
    pieces = units()
    models = convert(pieces).models
    assert converted == [1]
    x = torch.randn(5, 4)
    for piece in pieces:
        session = ort.InferenceSession(ir.to_proto(models[piece.name]).SerializeToString())
        assert [value.name for value in session.get_outputs()] == list(piece.outputs)
        with torch.no_grad():
            expected = piece.module(x).numpy()
        (got,) = session.run(None, {"x": x.numpy()})
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_weights_that_several_templates_share_are_filled_in_for_each() -> None:
    """The exporter may know a weight by the name that it has in another piece."""
    shared = nn.Parameter(torch.randn(4, 4))
    pieces = []
    for i, (kind, factor) in enumerate((k, f) for k in ("shared", "own") for f in (2.0, 3.0)):
        module = nn.Sequential(Products(tied=False), Times(factor))
        module[0].a = shared if kind == "shared" else nn.Parameter(torch.randn(4, 4))
        pieces.append(piece_of(graph_of(module), f"{kind}{i}"))
    assert [len(found.pieces) for found in templates(pieces)] == [2, 2]
    models = convert(pieces).models
    x = torch.randn(3, 4)
    for piece in pieces:
        session = ort.InferenceSession(ir.to_proto(models[piece.name]).SerializeToString())
        with torch.no_grad():
            expected = piece.module(x).numpy()
        (got,) = session.run(None, {"x": x.numpy()})
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


class Times(nn.Module):
    def __init__(self, factor: object) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor  # type: ignore[operator]


class Products(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.ones(4, 4))
        self.b = self.a if tied else nn.Parameter(torch.ones(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.a @ self.b


class Calls(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        part: torch.Tensor = self.part(x)
        return part


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_pre_hook(lambda m, x: (x[0] + 1,))
    return module


def with_forward(module: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    module.forward = forward
    return module


def with_constant(tensor: torch.Tensor) -> fx.GraphModule:
    """A graph that reads a tensor which is no buffer."""
    graph = graph_of(Times(tensor))
    (name,) = dict(graph.named_buffers())
    delattr(graph, name)
    setattr(graph, name, tensor)
    assert not dict(graph.named_buffers())
    return graph


UNLIKE: dict[str, Callable[[], tuple[nn.Module, nn.Module]]] = {
    "type of a constant": lambda: (Times(1), Times(1.0)),
    "a truth value": lambda: (Times(1), Times(True)),
    "a constant": lambda: (Times(2.0), Times(3.0)),
    "the sign of zero": lambda: (Times(0.0), Times(-0.0)),
    "elements of a constant tensor": lambda: (
        *(with_constant(torch.ones(4)), with_constant(torch.zeros(4))),
    ),
    "tied weights": lambda: (Products(tied=True), Products(tied=False)),
    "a module's type": lambda: (Calls(nn.ReLU()), Calls(nn.GELU())),
    "a module's option": lambda: (Calls(nn.ELU(1.0)), Calls(nn.ELU(0.5))),
    "a missing weight": lambda: (Calls(nn.Linear(4, 4)), Calls(nn.Linear(4, 4, bias=False))),
    "a hook": lambda: (Calls(nn.ReLU()), Calls(hooked(nn.ReLU()))),
    "hooks, for they can't be compared": lambda: (
        *(Calls(hooked(nn.ReLU())), Calls(hooked(nn.ReLU()))),
    ),
    "functions of their own": lambda: (
        *(Calls(with_forward(nn.ReLU(), lambda x: x + 1)), Calls(with_forward(nn.ReLU(), abs))),
    ),
    "a weight's size": lambda: (Calls(nn.Linear(4, 4)), Calls(nn.Linear(4, 3))),
    "what is trained": lambda: (
        *(Products(tied=False), Products(tied=False).requires_grad_(False)),
    ),
}


@pytest.mark.parametrize("difference", UNLIKE)
def test_anything_else_is_a_template_of_its_own(difference: str) -> None:
    first, second = UNLIKE[difference]()
    graphs = [m if isinstance(m, fx.GraphModule) else graph_of(m) for m in (first, second)]
    pieces = [piece_of(graph, name) for graph, name in zip(graphs, "ab", strict=True)]
    assert [len(found.pieces) for found in templates(pieces)] == [1, 1]


def test_modules_without_a_graph_are_never_alike() -> None:
    pieces = [piece_of(Times(2.0), "a"), piece_of(Times(2.0), "b")]
    assert len(templates(pieces)) == 2


def test_operands_of_other_sizes_are_not_alike() -> None:
    module = graph_of(Times(2.0))
    assert len(templates([piece_of(module, "a", 4), piece_of(module, "b", 5)])) == 2
    assert len(templates([piece_of(module, "a"), piece_of(module, "b")])) == 1
