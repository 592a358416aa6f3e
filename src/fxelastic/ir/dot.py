"""A partition as a Graphviz digraph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxelastic.ir.table import percent
from fxelastic.ir.values import (
    Values,
    ValueType,
    block_outputs,
    one_line,
    stream_inputs,
)

if TYPE_CHECKING:
    from fxelastic.ir.block import Block
    from fxelastic.ir.partition import Partition

COLOURS = {
    "basic": "#cfe2f3",
    "oversize": "#f4cccc",
    "glue": "#d9ead3",
    "context": "#fff2cc",
}


def to_dot(partition: Partition) -> str:
    """Draw the blocks of a partition.

    Args:
        partition: Any partition.

    Returns:
        Source for ``dot``: one node for each block, coloured by kind, and one for each argument
        and result of the model. Edges carry the value's shape; those of context values are
        dashed. The same partition gives the same bytes.
    """
    values = Values(partition)
    lines = [
        f"digraph {_quote(partition.model_name or 'model')} {{",
        '  graph [rankdir="TB"];',
        '  node [fontname="Helvetica", shape="box", style="filled,rounded"];',
        '  edge [fontname="Helvetica", fontsize="10"];',
    ]
    for name in partition.signature.names:
        lines.append(_node(f"input {name}", name, shape="ellipse", fillcolor="white"))
    for block in partition.blocks:
        label = "\n".join(_label(block, partition.n_params))
        lines.append(_node(f"block {block.name}", label, fillcolor=COLOURS[block.kind]))
    results = values.results()
    if results:
        lines.append(_node("result", "result", shape="ellipse", fillcolor="white"))
    origin = {name: values.source(name) for name in partition.signature.inputs}
    for block in partition.blocks:
        origin.update((name, f"block {block.name}") for name in block_outputs(block))
    for block in partition.blocks:
        for name in stream_inputs(block):
            lines += _edge(origin, name, f"block {block.name}", values.type(name), dashed=False)
        for name in block.context:
            lines += _edge(origin, name, f"block {block.name}", values.type(name), dashed=True)
    for name in results:
        lines += _edge(origin, name, "result", values.type(name), dashed=False)
    return "\n".join([*lines, "}"]) + "\n"


def _label(block: Block, p0: int) -> list[str]:
    kind = [] if block.kind == "basic" else [block.kind]
    size = [f"{block.n_params:,} ({percent(block.n_params, p0)} %)"] if block.n_params else []
    return [one_line(block.name), *kind, *size]


def _node(name: str, label: str, **attributes: str) -> str:
    pairs = {"label": label, **attributes}
    text = ", ".join(f"{key}={_quote(value)}" for key, value in pairs.items())
    return f"  {_quote(name)} [{text}];"


def _edge(
    origin: dict[str, str], value: str, reader: str, type_: ValueType, *, dashed: bool
) -> list[str]:
    """One edge, or none for a value that no block computes (a parameter that is a result)."""
    if value not in origin:
        return []
    style = ', style="dashed"' if dashed else ""
    label = _quote(str(type_).removeprefix("float32"))
    return [f"  {_quote(origin[value])} -> {_quote(reader)} [label={label}{style}];"]


def _quote(text: str) -> str:
    """A quoted string of the DOT language. Backslashes are doubled: they start its escapes."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
