"""Find the operators of a branch that the exporter can't convert.

The exporter decomposes operators before it looks for a conversion, so its message may name a part
that is not in the model, such as ``prims.lgamma``, or no operator.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from fxelastic.backends.onnxruntime.pieces import Piece, free_sizes
from fxelastic.ir.operators import operator_name


def names_operator(name: str, module: nn.Module) -> bool:
    """Whether an operator, such as ``aten.lgamma.default``, is in a module's graph."""
    graph = module.graph if isinstance(module, fx.GraphModule) else fx.Graph()
    return any(str(node.target) == name for node in graph.nodes)


def refused_operators(piece: Piece, convert: Callable[[Piece], object]) -> list[str]:
    """Operators that can't be converted alone, in the order of the graph.

    Args:
        piece: The branch; the result is empty if it is not a graph module.
        convert: Converts a piece; raises an error if it can't.

    Returns:
        ATen names, ``aten.lgamma``.
    """
    module = piece.module
    if not isinstance(module, fx.GraphModule):
        return []
    tried: set[str] = set()
    refused: dict[str, None] = {}

    class Trial(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            name = operator_name(n)
            if isinstance(n.target, torch._ops.OpOverload) and name not in refused:
                operands = {node: self.env[node] for node in n.all_input_nodes}
                kind = f"{n.target} {fx.map_arg((n.args, n.kwargs), lambda m: _kind(operands[m]))}"
                if kind not in tried:
                    tried.add(kind)
                    alone = _alone(n, operands, result)
                    if alone is not None and not _converts(alone, convert):
                        refused[name] = None
            return result

    with torch.no_grad():
        Trial(module).run(*piece.examples)
    return list(refused)


def _alone(node: fx.Node, operands: Mapping[fx.Node, Any], result: Any) -> Piece | None:
    """One operator as a piece; None if it returns no tensor."""
    graph = fx.Graph()
    tensors = {m: value for m, value in operands.items() if isinstance(value, torch.Tensor)}
    given = {m: graph.placeholder(m.name) if m in tensors else operands[m] for m in operands}
    copied = graph.node_copy(node, lambda m: given[m])
    results = (result,) if isinstance(result, torch.Tensor) else result
    if not isinstance(results, (tuple, list)):
        return None
    taken = [
        copied if results is not result else graph.call_function(operator.getitem, (copied, i))
        for i, value in enumerate(results)
        if isinstance(value, torch.Tensor)
    ]
    if not taken:
        return None
    graph.output(tuple(taken))
    return Piece(
        node.name,
        fx.GraphModule(nn.Module(), graph),
        tuple(m.name for m in tensors),
        tuple(f"{node.name}_{i}" for i in range(len(taken))),
        tuple(value.detach().clone() for value in tensors.values()),
        tuple(free_sizes(m.meta.get("val")) for m in tensors),
    )


def _converts(piece: Piece, convert: Callable[[Piece], object]) -> bool:
    try:
        convert(piece)
    except Exception:  # noqa: BLE001 - the exporter raises dozens of types
        return False
    return True


def _kind(value: Any) -> str:
    return f"{value.dtype}[{value.dim()}]" if isinstance(value, torch.Tensor) else str(value)
