"""A partition as a graph of its blocks, for networkx and for Graphviz."""

from __future__ import annotations

from collections.abc import Iterator

import networkx

from fxelastic.ir.block import Block, BlockGraph
from fxelastic.ir.table import percent
from fxelastic.ir.values import Values, ValueType, block_outputs, one_line, stream_inputs

COLOURS = {
    "basic": "#cfe2f3",
    "oversize": "#f4cccc",
    "glue": "#d9ead3",
    "context": "#fff2cc",
}

#: A block by its index; an input of the model, or its result, by a text.
_Key = int | str


def to_networkx(partition: BlockGraph) -> networkx.MultiDiGraph:
    """The blocks of a partition as a graph.

    All attributes are strings, numbers and booleans, so that every writer of networkx takes them.

    Args:
        partition: Any partition.

    Returns:
        A graph with these nodes and edges, in the order of execution:

        - each block by its index, with the attributes ``name``, ``kind``, ``n_params``, ``share``
          (of P0), ``flops``, ``n_operators``, ``path`` and ``reason``;
        - each input of the model as ``"input NAME"`` and its result as ``"result"``, with ``name``
          and ``kind`` (``"input"`` or ``"result"``);
        - each value that a block or the result reads as an edge from where it is computed, with
          the value's name in the graph as the key and the attributes ``value`` (the same name),
          ``dtype``, ``shape`` (as text, ``"[N, 64]"``) and ``context`` (whether the block reads it
          as a context).
    """
    graph = networkx.MultiDiGraph(name=partition.model_name)
    for name in partition.signature.names:
        graph.add_node(f"input {name}", name=name, kind="input")
    for i, block in enumerate(partition.blocks):
        graph.add_node(
            i,
            name=block.name,
            kind=block.kind,
            n_params=block.n_params,
            share=block.n_params / partition.n_params if partition.n_params else 0.0,
            flops=block.flops,
            n_operators=len(block.nodes),
            path=block.path,
            reason=block.reason,
        )
    values = Values(partition)
    if values.results():
        graph.add_node("result", name="result", kind="result")
    for source, reader, name, context in _edges(partition, values):
        kind = values.type(name)
        shape = f"[{', '.join(kind.shape)}]"
        facts = {"value": name, "dtype": kind.dtype, "shape": shape, "context": context}
        graph.add_edge(source, reader, key=name, **facts)
    return graph


def _edges(partition: BlockGraph, values: Values) -> Iterator[tuple[_Key, _Key, str, bool]]:
    """Source, reader, value and whether it is a context, in the order of the readers.

    A result that no block computes (a parameter that the model returns) has no edge.
    """
    origin: dict[str, _Key] = {name: values.source(name) for name in partition.signature.inputs}
    for i, block in enumerate(partition.blocks):
        origin.update(dict.fromkeys(block_outputs(block), i))
    reads: list[tuple[str, _Key, bool]] = []
    for i, block in enumerate(partition.blocks):
        reads += [(name, i, False) for name in stream_inputs(block)]
        reads += [(name, i, True) for name in block.context]
    reads += [(name, "result", False) for name in values.results()]
    for name, reader, context in reads:
        if name in origin:
            yield origin[name], reader, name, context


def to_dot(partition: BlockGraph) -> str:
    """Draw the blocks of a partition.

    Args:
        partition: Any partition.

    Returns:
        Source for ``dot``: one node for each block, coloured by kind, and one for each argument
        and result of the model. Edges carry the value's shape; edges of context values are
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
    if values.results():
        lines.append(_node("result", "result", shape="ellipse", fillcolor="white"))

    def named(key: _Key) -> str:
        return key if isinstance(key, str) else f"block {partition.blocks[key].name}"

    for source, reader, name, context in _edges(partition, values):
        lines.append(_edge(named(source), named(reader), values.type(name), dashed=context))
    return "\n".join([*lines, "}"]) + "\n"


def _label(block: Block, p0: int) -> list[str]:
    kind = [] if block.kind == "basic" else [block.kind]
    size = [f"{block.n_params:,} ({percent(block.n_params, p0)} %)"] if block.n_params else []
    return [one_line(block.name), *kind, *size]


def _node(name: str, label: str, **attributes: str) -> str:
    pairs = {"label": label, **attributes}
    text = ", ".join(f"{key}={_quote(value)}" for key, value in pairs.items())
    return f"  {_quote(name)} [{text}];"


def _edge(source: str, reader: str, type_: ValueType, *, dashed: bool) -> str:
    style = ', style="dashed"' if dashed else ""
    label = _quote(str(type_).removeprefix("float32"))
    return f"  {_quote(source)} -> {_quote(reader)} [label={label}{style}];"


def _quote(text: str) -> str:
    """A quoted string of the DOT language. Backslashes are doubled: they start its escapes."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
