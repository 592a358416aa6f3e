"""The modules that the ONNX exporter converts, side by side, each with its own inputs.

Networks repeat their units, and a supernet repeats them for each kind of branches, so many graphs
differ in their weights alone. They form a template: the exporter converts one of them, which takes
most of the time, and the others are copies with their own weights.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.export import Dim

from fxelastic.backends.description import device_names
from fxelastic.backends.onnxruntime.lowering import lowered
from fxelastic.errors import InternalError
from fxelastic.ir.branch import Branch
from fxelastic.ir.description import describe
from fxelastic.ir.signature import batch_dims
from fxelastic.ir.supernet import Supernet


class FreeSize(NamedTuple):
    """A size of an operand that may vary: ``factor * variable + offset``.

    Attributes:
        dim: The dimension.
        variable: torch's symbol; empty if the size is not a linear function of a single symbol.
        factor: See above.
        offset: See above.
    """

    dim: int
    variable: str = ""
    factor: int = 1
    offset: int = 0

    def of(self, roots: Mapping[str, Dim]) -> Any:
        """The size for torch.export: declared if its variable is, else inferred."""
        if self.variable not in roots:
            return Dim.AUTO
        size: Any = roots[self.variable]
        size = size * self.factor if self.factor != 1 else size
        return size + self.offset if self.offset else size


def free_sizes(value: Any) -> tuple[FreeSize, ...]:
    """The sizes of a captured value that may vary."""
    return tuple(_free_size(dim, value.shape[dim].node.expr) for dim in batch_dims(value))


def _free_size(dim: int, expression: Any) -> FreeSize:
    variables = expression.free_symbols
    # Others may not be defined at 0, such as a remainder.
    if len(variables) == 1 and expression.is_polynomial(*variables):
        (variable,) = variables
        offset = expression.subs(variable, 0)
        factor = expression.coeff(variable)
        whole = factor.is_Integer and factor > 0 and offset.is_Integer
        if whole and expression == factor * variable + offset:
            return FreeSize(dim, str(variable), int(factor), int(offset))
    return FreeSize(dim)


@dataclass(frozen=True)
class Piece:
    """A module to convert.

    Attributes:
        name: The branch's id.
        module: Takes tensors and returns a tensor or a tuple of tensors; in eval mode.
        inputs: Names of its operands.
        outputs: Names of its results.
        examples: Its operands, with a batch of at least 2, since torch.export treats a size of 1 as
            a constant.
        dynamic: For each operand, its sizes that may vary.
    """

    name: str
    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    examples: tuple[torch.Tensor, ...]
    dynamic: tuple[tuple[FreeSize, ...], ...]

    def torch_sizes(self, name: str) -> list[dict[int, Any]]:
        """What torch.export takes as ``dynamic_shapes`` for the operands.

        A size such as ``4*h``, of a model that takes multiples of 4, is declared as such, since
        torch can't infer it. All others are inferred.

        Args:
            name: Tells the sizes of several pieces in one call apart.
        """
        sizes = [size for operand in self.dynamic for size in operand]
        declared = {s.variable for s in sizes if (s.factor, s.offset) != (1, 0)}
        roots = {variable: Dim(f"_{variable}_{name}") for variable in declared}
        return [{size.dim: size.of(roots) for size in operand} for operand in self.dynamic]


def branch_pieces(supernet: Supernet, values: Mapping[str, Any]) -> list[Piece]:
    """Every branch as a piece, with the values of the model's own blocks as operands.

    Args:
        supernet: The branches; they and their modes don't change.
        values: Every value that crosses a cut, by its name in the graph.

    Returns:
        A piece for each branch; its inputs and outputs have their names on a device.

    Raises:
        InternalError: A branch reads a value that is not a tensor.
    """
    on_device = device_names(supernet.partition)
    pieces = []
    for branch in supernet.branches.values():
        names, operands = (*branch.inputs, *branch.context), branch.operands(values)
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
                # Clones, since the exporter makes a single input of a tensor that is passed twice.
                tuple(operand.detach().clone() for operand in operands),
                tuple(free_sizes(supernet.partition.value(name)) for name in names),
            )
        )
    return pieces


def eval_module(branch: Branch) -> nn.Module:
    """A branch's module in eval mode; a copy that shares its weights if it is in train mode."""
    module = branch.module
    if not any(part.training for part in module.modules()):
        return module
    shared = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in shared}).eval()


class SideBySide(nn.Module):
    """Independent pieces in one call, which takes and returns their tensors one after another."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        """Hold the pieces' modules, with operators that can be converted."""
        super().__init__()
        self.pieces = nn.ModuleList([_lowered(piece) for piece in pieces])
        self._n_inputs = [len(piece.inputs) for piece in pieces]
        # Not .eval(), which would visit modules that are in eval mode already.
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
    """The piece's module, with replacements for operators that can't be converted."""
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
        self.training = False  # not .eval(), which would change the held module

    def forward(self, *operands: torch.Tensor) -> Any:
        return self.held(*operands)


def _graph_module(piece: Piece) -> fx.GraphModule:
    """The graph of a module of Python code, over its weights."""
    shapes = tuple(piece.torch_sizes(""))
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
        # Checks of the inputs; the export of all pieces makes its own.
        if node.op == "call_module" and not node.users:
            exported.graph.erase_node(node)
    graph = fx.Graph()
    graph.output(graph.graph_copy(exported.graph, {}))
    return fx.GraphModule(exported, graph)


@dataclass(frozen=True)
class Template:
    """Pieces with the same graph over the same sizes.

    Attributes:
        pieces: The pieces; the first is the one to convert.
        weights: For each piece, the names of its weights, in the same order for all pieces.
    """

    pieces: tuple[Piece, ...]
    weights: tuple[tuple[str, ...], ...]

    @property
    def first(self) -> Piece:
        """The piece to convert."""
        return self.pieces[0]


def templates(pieces: Sequence[Piece]) -> list[Template]:
    """Group the pieces that differ in their weights alone.

    A module that can't be compared (its forward is not a graph, or it holds anything but tensors
    and plain values) forms its own template.

    Args:
        pieces: The modules to convert.

    Returns:
        Templates in the order of their first pieces; each piece is in one of them.
    """
    groups: dict[Hashable, list[tuple[Piece, tuple[str, ...]]]] = defaultdict(list)
    for i, piece in enumerate(pieces):
        # Only graphs share a conversion; the exporter traces other modules itself.
        graph = isinstance(piece.module, fx.GraphModule)
        description = describe(piece.module) if graph else None
        key: Hashable = (description.key, _operands(piece)) if description else i
        groups[key].append((piece, description.weights if description else ()))
    return [
        Template(tuple(piece for piece, _ in group), tuple(names for _, names in group))
        for group in groups.values()
    ]


def _operands(piece: Piece) -> Hashable:
    sizes = tuple((x.dtype, tuple(x.shape), x.stride()) for x in piece.examples)
    return sizes, piece.dynamic, len(piece.outputs)
