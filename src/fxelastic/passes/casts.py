"""Drop conversions that convert nothing.

``x.to(float32)`` of a float32 tensor returns ``x`` itself, and the tracer then calls every later
use of ``x`` by the conversion's name: a norm's cast would take the place of the residual stream,
with the module path of the norm.
"""

from __future__ import annotations

from torch import fx

from fxelastic.ir.operators import is_tensor, operator_name

_CONVERSIONS = ("aten.to", "aten.type_as", "aten._to_copy")


def drop_idle_casts(graph: fx.Graph) -> None:
    """Replace conversions to the same dtype, device and layout by their operand, in place."""
    for node in list(graph.nodes):
        if node.op != "call_function" or operator_name(node) not in _CONVERSIONS:
            continue
        source = node.args[0]
        if not isinstance(source, fx.Node) or not (is_tensor(source) and is_tensor(node)):
            continue
        if _same(source, node) and not _copies(node):
            node.replace_all_uses_with(source)
            graph.erase_node(node)


def _same(source: fx.Node, node: fx.Node) -> bool:
    before, after = source.meta["val"], node.meta["val"]
    return bool(
        before.dtype == after.dtype
        and before.device == after.device
        and before.layout == after.layout
        and before.stride() == after.stride()
    )


def _copies(node: fx.Node) -> bool:
    """Whether the caller asked for a copy, or for a memory format."""
    if node.kwargs.get("memory_format") is not None or node.kwargs.get("copy"):
        return True
    arguments = node.target._schema.arguments  # type: ignore[union-attr]
    given = dict(zip((argument.name for argument in arguments), node.args, strict=False))
    return bool(given.get("copy")) or given.get("memory_format") is not None
