"""Find out which channels of a block go together, operator by operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from fxelastic.branches.pruning.labels import Channels, Dims, Labels, fixed
from fxelastic.branches.pruning.rules import RULES
from fxelastic.branches.trainable import BatchNorm
from fxelastic.ir.operators import attribute, operator_name


@dataclass(frozen=True)
class Policy:
    """What the analysis takes for a channel where an operator leaves a choice.

    Attributes:
        factor: Which factor of a split dimension keeps its labels; see `reshaping.reshaped`.
        whole_groups: Whether a grouped convolution loses whole groups, or the same number of
            channels in each.
        approximate: Whether channels may go that a layer norm takes its statistics over. These
            are then those of the others: the branch no longer computes what the block does
            without the channels' contributions, but nearly.
    """

    factor: int = -2
    whole_groups: bool = True
    approximate: bool = False


@dataclass
class Analysis:
    """What is known of a block's channels; rules read it and add to it.

    Attributes:
        module: The block, with shapes at its nodes (``meta["val"]``, numbers only).
        policy: How choices are made.
        channels: Which labels are the same.
        dims: The labels of each tensor node.
        parts: The labels of each result of an operator with several.
        norms: The labels of the channels of each batch norm, by its target.
        held: Tensors that depend on the block's weights alone.
        contractions: The weights' dimensions over which products sum: (target, dimension).
        summed: The labels over which products with weights sum.
        normalised: The labels over which norms take statistics, where the policy allows that.
    """

    module: fx.GraphModule
    policy: Policy = Policy()
    channels: Channels = field(default_factory=Channels)
    dims: dict[fx.Node, Dims] = field(default_factory=dict)
    parts: dict[fx.Node, list[Dims]] = field(default_factory=dict)
    norms: dict[str, Any] = field(default_factory=dict)
    held: set[fx.Node] = field(default_factory=set)
    contractions: list[tuple[str, int]] = field(default_factory=list)
    summed: list[Labels] = field(default_factory=list)
    normalised: list[Labels] = field(default_factory=list)

    def run(self, stream: frozenset[str]) -> None:
        """Follow the graph from its operands to its result.

        Args:
            stream: Names of the operands whose channels are fixed. Those of the other operands,
                the contexts, are selected from inside the branch.
        """
        weights: dict[str, Dims] = {}
        for node in self.module.graph.nodes:
            value = node.meta.get("val")
            if node.op == "output":
                for result in node.all_input_nodes:
                    self.channels.fix_dims(self.dims.get(result, ()))
            elif node.op == "placeholder":
                if isinstance(value, torch.Tensor):
                    fresh = self.channels.fresh(value.shape)
                    if node.name in stream:
                        self.channels.fix_dims(fresh)
                    self.dims[node] = fresh
            elif node.op == "get_attr":
                self.held.add(node)
                tensor = attribute(self.module, str(node.target))
                if isinstance(tensor, torch.Tensor):
                    known = weights.get(str(node.target))
                    self.dims[node] = known or self.channels.fresh(tensor.shape)
                    weights[str(node.target)] = self.dims[node]
            else:
                self._operator(node, value)

    def _operator(self, node: fx.Node, value: Any) -> None:
        if node.all_input_nodes and self.held.issuperset(node.all_input_nodes):
            self.held.add(node)
        if not isinstance(value, (torch.Tensor, tuple, list)):
            self._number(node)
            return
        rule = RULES.get(operator_name(node))
        if node.op == "call_module":
            called = self.module.get_submodule(str(node.target))
            rule = RULES["module:batch_norm"] if isinstance(called, BatchNorm) else None
        elif rule is None and _is_pointwise(node):
            rule = RULES["pointwise"]
        elif rule is None and not node.all_input_nodes:
            rule = RULES["constant"]
        dims = None
        if rule is not None:
            try:
                dims = rule(self, node)
            except (AttributeError, IndexError, KeyError, TypeError, ValueError):
                dims = None  # a form of the operator that the rule does not know
        if dims is None:
            self.freeze(node, f"{_readable(node)} is not known to the analysis")
        elif isinstance(dims, list):
            self.parts[node] = dims
        else:
            if isinstance(value, torch.Tensor) and [len(labels) for labels in dims] == self.shape(
                node
            ):
                self.dims[node] = dims
            else:
                self.freeze(node, f"{_readable(node)} is not known to the analysis in this form")

    def _number(self, node: fx.Node) -> None:
        """A size read from a tensor: the dimension stays. Other numbers have no channels."""
        for operand in node.all_input_nodes:
            dims = self.dims.get(operand, ())
            if operator_name(node) == "aten.sym_size":
                dims = (dims[int(node.args[1])],)  # type: ignore[arg-type]
            self.channels.fix_dims(dims, f"a number is read from {_readable(operand)}")

    def freeze(self, node: fx.Node, reason: str) -> None:
        """Fix everything that an operator reads; its results are fixed, too."""
        for operand in node.all_input_nodes:
            for dims in (self.dims.get(operand, ()), *self.parts.get(operand, ())):
                self.channels.fix_dims(dims, reason)
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            self.dims[node] = tuple(fixed(int(size)) for size in value.shape)
        elif isinstance(value, (tuple, list)):
            self.parts[node] = [
                tuple(fixed(int(size)) for size in item.shape)
                if isinstance(item, torch.Tensor)
                else ()
                for item in value
            ]

    def of_copy(self, module: fx.GraphModule) -> Analysis:
        """The same, of a copy of the block."""
        nodes = {node.name: node for node in module.graph.nodes}
        return replace(
            self,
            module=module,
            dims={nodes[node.name]: dims for node, dims in self.dims.items()},
            parts={nodes[node.name]: parts for node, parts in self.parts.items()},
            held={nodes[node.name] for node in self.held},
        )

    def shape(self, node: fx.Node) -> list[int]:
        """A tensor's sizes."""
        return [int(size) for size in node.meta["val"].shape]


def analysed(module: fx.GraphModule, stream: frozenset[str], policy: Policy) -> Analysis:
    """Analyse a block; see `Analysis.run`."""
    result = Analysis(module, policy)
    result.run(stream)
    return result


def _is_pointwise(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return torch.Tag.pointwise in tags and isinstance(node.meta.get("val"), torch.Tensor)


def _readable(node: fx.Node) -> str:
    kind: Mapping[str, str] = {"call_module": "the opaque module "}
    return f"{kind.get(node.op, '')}{operator_name(node).removeprefix('module:')}"
