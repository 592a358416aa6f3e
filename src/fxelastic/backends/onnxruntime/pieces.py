"""What the ONNX exporter is given: modules side by side, each with inputs of its own."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim

from fxelastic.backends.description import device_names
from fxelastic.backends.onnxruntime.lowering import lowered
from fxelastic.errors import InternalError
from fxelastic.ir.branch import Branch
from fxelastic.ir.signature import batch_dims
from fxelastic.ir.supernet import Supernet


@dataclass(frozen=True)
class Piece:
    """A module to convert.

    Attributes:
        name: The branch's id.
        module: Takes tensors, returns a tensor or a tuple of them; in eval mode.
        inputs: Names of its operands.
        outputs: Names of its results.
        examples: Its operands. A batch of at least 2: torch.export treats a size of 1 as a
            constant.
        dynamic: For each operand, the dimensions whose size depends on the batch.
    """

    name: str
    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    examples: tuple[torch.Tensor, ...]
    dynamic: tuple[tuple[int, ...], ...]


def branch_pieces(supernet: Supernet, values: Mapping[str, Any]) -> list[Piece]:
    """Every branch as a piece, fed with what the model's own blocks compute.

    Args:
        supernet: The branches; neither they nor their modes change.
        values: Every value that crosses a cut, by its name in the graph.

    Returns:
        A piece for each branch; its inputs and outputs have their names on a device.

    Raises:
        InternalError: A branch reads a value that is not a tensor.
    """
    nodes = {node.name: node for node in supernet.partition.graph.nodes}
    on_device = device_names(supernet.partition)
    pieces = []
    for branch in supernet.branches.values():
        names = (*branch.inputs, *branch.context)
        for name in names:
            if not isinstance(values[name], torch.Tensor):
                raise InternalError(
                    f"branch {branch.id!r} reads {name!r}, which is not a tensor",
                    expected="tensors between blocks",
                    got=type(values[name]).__name__,
                )
        pieces.append(
            Piece(
                branch.id,
                eval_module(branch),
                tuple(on_device[name] for name in names),
                tuple(on_device[name] for name in branch.outputs),
                # The exporter would make one input of a tensor that is passed twice.
                tuple(values[name].detach().clone() for name in names),
                tuple(batch_dims(nodes[name].meta.get("val")) for name in names),
            )
        )
    return pieces


def eval_module(branch: Branch) -> nn.Module:
    """A branch's module in eval mode; a copy that shares its weights where it is training."""
    module = branch.module
    if not any(part.training for part in module.modules()):
        return module
    shared = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in shared}).eval()


class SideBySide(nn.Module):
    """Pieces that share nothing but the call: operands one after the other in, results out."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        """Hold the pieces' modules, of operators that can be converted."""
        super().__init__()
        self.pieces = nn.ModuleList([_lowered(piece) for piece in pieces])
        self._n_inputs = [len(piece.inputs) for piece in pieces]
        # Set as it is: .eval() would walk through modules that are in eval mode already.
        self.training = False

    def forward(self, *operands: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Call each piece with its own operands."""
        results: list[torch.Tensor] = []
        for piece, count in zip(self.pieces, self._n_inputs, strict=True):
            result = piece(*operands[:count])
            results += [result] if isinstance(result, torch.Tensor) else result
            operands = operands[count:]
        return tuple(results)


def _lowered(piece: Piece) -> nn.Module:
    """The piece's module with operators that can't be converted replaced; itself if it has none."""
    if isinstance(piece.module, (fx.GraphModule, nn.Identity)):
        return lowered(piece.module)
    graph_module = _graph_module(piece)
    found = lowered(graph_module)
    return piece.module if found is graph_module else found


class _Held(nn.Module):
    """Holds a module whose parts may have names that a graph module needs, such as ``graph``."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.held = module
        self.training = False  # not .eval(), which would change the module inside

    def forward(self, *operands: torch.Tensor) -> Any:
        return self.held(*operands)


def _graph_module(piece: Piece) -> fx.GraphModule:
    """A module of Python code as a graph over its weights."""
    shapes = tuple(dict.fromkeys(dims, Dim.AUTO) for dims in piece.dynamic)
    with torch.no_grad():
        program = torch.export.export(
            _Held(piece.module),
            piece.examples,
            dynamic_shapes={"operands": shapes} if shapes else None,
            strict=False,
        )
    exported = program.module()
    assert isinstance(exported, fx.GraphModule)
    for node in list(exported.graph.nodes):
        # Drop the checks of the inputs: the export of all pieces makes its own.
        if node.op == "call_module" and not node.users:
            exported.graph.erase_node(node)
    graph = fx.Graph()
    graph.output(graph.graph_copy(exported.graph, {}))
    return fx.GraphModule(exported, graph)
