"""What all rules need: an operator's arguments, and a way to fix what it mixes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import fx

from fxelastic.branches.pruning.labels import Labels
from fxelastic.ir.operators import operator_name

if TYPE_CHECKING:
    from fxelastic.branches.pruning.analysis import Analysis


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument, given by position or by name."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def first_operand(node: fx.Node) -> fx.Node:
    """The first argument, which is a node."""
    operand = node.args[0]
    assert isinstance(operand, fx.Node)
    return operand


def dimension(d: int, rank: int) -> int:
    """A dimension counted from the front."""
    return d + rank if d < 0 else d


def mixes(a: Analysis, node: fx.Node, dims: Sequence[Labels]) -> None:
    """Fix dimensions: to remove one of their channels would change the others."""
    a.channels.fix_dims(dims, f"{operator_name(node).removeprefix('aten.')} mixes the channels")
