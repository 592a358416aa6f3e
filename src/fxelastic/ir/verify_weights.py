"""Which parameters each block's operators read, told apart by identity."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import fx

from fxelastic.ir.part_names import name_of
from fxelastic.ir.verify_layout import Layout

if TYPE_CHECKING:
    from fxelastic.ir.partition import Partition


@dataclass(frozen=True)
class Weights:
    """The parameters that the graph's operators read, told apart by identity.

    Attributes:
        by_name: Every name by which one is read. Tied parameters may have several.
        reads: For each block, identity → parameter, in order of first use.
        readers: For each block, the operators that read one.
        first: Identity → index of the first block that reads it.
    """

    by_name: dict[str, torch.nn.Parameter] = field(default_factory=dict)
    reads: list[dict[int, torch.nn.Parameter]] = field(default_factory=list)
    readers: list[list[fx.Node]] = field(default_factory=list)
    first: dict[int, int] = field(default_factory=dict)


def read_weights(partition: Partition, layout: Layout) -> Weights:
    """Collect the parameters that operators read, as operands or as parts of a module called."""
    held: dict[fx.Node, list[tuple[str, torch.nn.Parameter]]] = {}
    for node in layout.nodes.values():
        if node.op in ("get_attr", "call_module"):
            held[node] = list(_parameters(partition.graph_module, str(node.target)))
    weights = Weights(reads=[{} for _ in partition.blocks], readers=[[] for _ in partition.blocks])
    for node in layout.order:
        index = layout.owner[node]
        sources = [value for value in node.all_input_nodes if value.op == "get_attr"]
        for source in (*sources, node):
            for name, parameter in held.get(source, ()):
                weights.by_name[name] = parameter
                weights.reads[index].setdefault(id(parameter), parameter)
                weights.first.setdefault(id(parameter), index)
                if node not in weights.readers[index][-1:]:
                    weights.readers[index].append(node)
    return weights


def _parameters(root: torch.nn.Module, target: str) -> Iterator[tuple[str, torch.nn.Parameter]]:
    value: object = root
    for name in target.split("."):
        value = getattr(value, name)
    if isinstance(value, torch.nn.Parameter):
        yield name_of(target), value
    elif isinstance(value, torch.nn.Module):
        yield from value.named_parameters(prefix=name_of(target), remove_duplicate=False)
