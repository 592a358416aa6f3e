"""Distinguish the data stream from its context (masks, rotary tables, sizes).

A value is *stream* if it depends on a user input through an operator with parameters. Operators
from an input to the first such operator (a normalisation, a reshape) are stream as well, so that
they belong to the stem. All other values are *context*.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from fxelastic.ir.operators import (
    attribute,
    is_number,
    is_operator,
    is_tensor,
    node_parameters,
    operator_name,
)
from fxelastic.passes.caches import CacheNodes, find_caches

#: Operators without weights that combine or reshape values.
_MIXING = frozenset(
    f"aten.{name}"
    for name in (
        *("add", "sub", "mul", "div", "where", "maximum", "minimum", "masked_fill", "clamp"),
        *("slice", "select", "expand", "unsqueeze", "squeeze", "view", "reshape", "permute"),
        *("transpose", "contiguous", "clone", "to", "type_as"),
    )
)


@dataclass(frozen=True)
class Flow:
    """The captured graph's operators, divided into stream and context.

    Attributes:
        stream: Operators of the data stream, in graph order.
        operands: For each of them, the stream values and model inputs that it reads.
        attached: For a stream operator, the context operators that only it reads, in graph
            order; they move with it.
        shared: All other context operators, in graph order.
        parameters: For each operator, the parameters that it and its attached operators read:
            name → number of elements.
        readers: For each stream value, the stream operators that read it, directly or through an
            attached operator such as a size, and the output node.
        mixtures: Context operators that depend on both an input and parameters, such as sums of
            masks and learned tables.
        caches: Inputs that results extend. The readers of such a result do not include the output
            node, so that a block may return it beside its own output.
    """

    stream: tuple[fx.Node, ...]
    operands: Mapping[fx.Node, tuple[fx.Node, ...]]
    attached: Mapping[fx.Node, tuple[fx.Node, ...]]
    shared: tuple[fx.Node, ...]
    parameters: Mapping[fx.Node, Mapping[str, int]]
    readers: Mapping[fx.Node, tuple[fx.Node, ...]]
    mixtures: frozenset[fx.Node]
    caches: tuple[CacheNodes, ...] = ()


def analyse_flow(graph_module: fx.GraphModule) -> Flow:
    """Classify every operator of a functional graph."""
    return _Analysis(graph_module).result()


class _Analysis:
    def __init__(self, module: fx.GraphModule) -> None:
        self._module = module
        self._nodes = list(module.graph.nodes)
        self._own: dict[fx.Node, dict[str, int]] = {}
        self._user: set[fx.Node] = set()  # depends on a user input
        self._learned: set[fx.Node] = set()  # depends on parameters, and on no user input
        self._deep: set[fx.Node] = set()  # depends on a user input through parameters
        self._mixed: set[fx.Node] = set()  # a context of an input and a learned table
        self._sizes: set[fx.Node] = set()
        self._forward()
        self._data = self._feeding()
        self._pre_context = self._context_sources()

    def _forward(self) -> None:
        for node in self._nodes:
            if node.op == "placeholder":
                self._user.add(node)
            elif node.op == "get_attr":
                if _is_learned(attribute(self._module, str(node.target))):
                    self._learned.add(node)
            elif is_operator(node):
                self._classify(node)

    def _classify(self, node: fx.Node) -> None:
        operands = node.all_input_nodes
        if self._is_size(node, operands):
            self._sizes.add(node)
            return
        own = {
            name: parameter.numel()
            for name, parameter in node_parameters(node, self._module).items()
        }
        self._own[node] = own
        learned = bool(own) or any(operand in self._learned for operand in operands)
        if any(operand in self._user for operand in operands):
            self._user.add(node)
            mixed = learned or any(operand in self._mixed for operand in operands)
            if any(operand in self._deep for operand in operands):
                self._deep.add(node)
            elif mixed and not own and operator_name(node) in _MIXING:
                self._mixed.add(node)
            elif mixed:
                self._deep.add(node)
        elif learned:
            self._learned.add(node)

    def _is_size(self, node: fx.Node, operands: list[fx.Node]) -> bool:
        if not is_number(node) or free_unbacked_symbols(node.meta["val"]):
            # A count of elements is a result like any other.
            return False
        return node.target is torch.ops.aten.sym_size.int or (
            bool(operands) and all(operand in self._sizes for operand in operands)
        )

    def _feeding(self) -> set[fx.Node]:
        """Inputs and values computed from them that lead to the first layer with weights."""
        data: set[fx.Node] = set()
        for node in reversed(self._nodes):
            if node not in self._user or node in self._deep:
                continue
            for reader in node.users:
                if reader in data or (reader in self._deep and self._enters(node, reader)):
                    data.add(node)
                    break
        return data

    def _enters(self, node: fx.Node, reader: fx.Node) -> bool:
        """Whether the reader is a first layer and the node is its data.

        If an operator reads several inputs (indices and offsets of an embedding bag), the first of
        them is its data.
        """
        operands = [operand for operand in reader.all_input_nodes if operand in self._user]
        return operands[0] is node and not any(operand in self._deep for operand in operands)

    def _context_sources(self) -> set[fx.Node]:
        """Values before the first layer from which a context is computed; they are context too."""
        context: set[fx.Node] = set()
        for node in reversed(self._nodes):
            if node not in self._user or node in self._deep or not is_operator(node):
                continue
            if node not in self._data or any(reader in context for reader in node.users):
                context.add(node)
                if not is_tensor(node):
                    # A tuple can't cross a boundary, so its results are context with it.
                    context |= {r for r in node.users if r.target is operator.getitem}
        return context

    def _in_stream(self, node: fx.Node) -> bool:
        if node in self._deep:
            return True
        return node in self._data and node not in self._pre_context

    def result(self) -> Flow:
        stream = [node for node in self._nodes if is_operator(node) and self._in_stream(node)]
        operands = {node: self._stream_operands(node) for node in stream}
        owner = self._owners(set(stream), operands)
        attached: dict[fx.Node, list[fx.Node]] = {}
        shared: list[fx.Node] = []
        for node, reader in owner.items():
            if reader is None:
                shared.append(node)
            else:
                attached.setdefault(reader, []).append(node)
        position = {node: i for i, node in enumerate(self._nodes)}
        parameters: dict[fx.Node, Mapping[str, int]] = {
            node: dict(self._own.get(node, {})) for node in (*stream, *shared)
        }
        for reader, nodes in attached.items():
            nodes.sort(key=position.__getitem__)
            merged: dict[str, int] = {}
            for node in nodes:
                merged |= self._own.get(node, {})
            parameters[reader] = merged | dict(parameters[reader])
        shared.sort(key=position.__getitem__)
        caches = tuple(c for c in find_caches(self._module.graph) if self._in_stream(c.present))
        presents = {cache.present for cache in caches}
        readers = {
            node: tuple(
                dict.fromkeys(
                    owner.get(reader) or reader
                    for reader in node.users
                    if reader.op != "output" or node not in presents
                )
            )
            for node in stream
        }
        return Flow(
            tuple(stream),
            operands,
            {reader: tuple(nodes) for reader, nodes in attached.items()},
            tuple(shared),
            parameters,
            readers,
            frozenset(self._mixed),
            caches,
        )

    def _stream_operands(self, node: fx.Node) -> tuple[fx.Node, ...]:
        found = [operand for operand in node.all_input_nodes if self._in_stream(operand)]
        if node in self._deep and not any(operand in self._deep for operand in found):
            # A first layer: one input is its data, the others are contexts.
            entering = [o for o in found if o.op != "placeholder" or self._enters(o, node)]
            found = entering or found
        return tuple(found)

    def _owners(
        self, stream: set[fx.Node], operands: Mapping[fx.Node, tuple[fx.Node, ...]]
    ) -> dict[fx.Node, fx.Node | None]:
        """For each context operator, the only stream operator that needs it, or None."""
        owner: dict[fx.Node, fx.Node | None] = {}
        for node in reversed(self._nodes):
            if not is_operator(node) or node in stream:
                continue
            readers = {reader if reader in stream else owner.get(reader) for reader in node.users}
            reader = readers.pop() if len(readers) == 1 else None
            # A join must stay free of parameters to be glue.
            if reader is not None and node in self._learned and len(operands[reader]) > 1:
                reader = None
            owner[node] = reader
        for node in self._nodes:
            # A tuple can't cross a boundary, so its results stay with it.
            if owner.get(node, node) is None and not is_tensor(node):
                for reader in node.users:
                    if reader.target is operator.getitem:
                        owner[reader] = None
        return owner


def _is_learned(value: object) -> bool:
    if isinstance(value, nn.Module):
        return next(value.parameters(), None) is not None
    return isinstance(value, nn.Parameter)
