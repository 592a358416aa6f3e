"""Pieces that differ in their weights alone: one conversion serves them all.

Networks repeat their units, and a supernet repeats them for each branch kind, so that many of its
graphs are the same. The conversion, whose price is that of the graph, is done for one of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from torch import fx

from fxelastic.backends.onnxruntime.pieces import Piece
from fxelastic.ir.description import describe


@dataclass(frozen=True)
class Template:
    """Pieces with the same graph over the same sizes.

    Attributes:
        pieces: The pieces; the first is the one to convert.
        weights: For each piece the names of its weights, in an order that all of them share.
    """

    pieces: tuple[Piece, ...]
    weights: tuple[tuple[str, ...], ...]

    @property
    def first(self) -> Piece:
        """The piece to convert."""
        return self.pieces[0]


def templates(pieces: Sequence[Piece]) -> list[Template]:
    """Group the pieces that differ in their weights alone.

    What is not known to be alike is not: a module whose forward isn't a graph, or that holds
    anything but tensors and plain values, has a template of its own.

    Args:
        pieces: The modules to convert.

    Returns:
        Every piece in one template; templates in the order of their first pieces.
    """
    groups: dict[Hashable, list[tuple[Piece, tuple[str, ...]]]] = defaultdict(list)
    for i, piece in enumerate(pieces):
        # Only graphs share a conversion; the exporter traces any other module by itself.
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
