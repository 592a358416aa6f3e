"""The analysis of a block's channels: follows its graph and applies each operator's rule."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from fxelastic.branches.pruning.channels import Analysis, Dims, PruningPolicy
from fxelastic.branches.pruning.rules import RULES
from fxelastic.branches.trainable import BatchNorm
from fxelastic.ir.operators import attribute, operator_name
from fxelastic.spec.cache import Cache


def analysed(
    module: fx.GraphModule,
    stream: frozenset[str],
    policy: PruningPolicy,
    caches: Sequence[Cache] = (),
) -> Analysis:
    """Analyse a block.

    Args:
        module: The block, with shapes at its nodes.
        stream: Names of the operands whose channels are fixed. The branch selects the channels of
            the other operands, the contexts, itself.
        policy: How choices are made.
        caches: The caches that the block extends: past and present may lose channels together.
    """
    a = Analysis(module, policy, caches=frozenset(cache.past for cache in caches))
    growing = {name: c.dim for c in caches for name in (c.past, c.present)}
    weights: dict[str, Dims] = {}
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if node.op == "output":
            for result in node.all_input_nodes:
                dims = a.dims.get(result, ())
                if result.name in growing and dims:
                    dims = (dims[growing[result.name]],)
                a.channels.fix_dims(dims)
        elif node.op == "placeholder":
            if isinstance(value, torch.Tensor):
                a.dims[node] = a.channels.fresh(value.shape)
                if node.name in stream:
                    a.channels.fix_dims(a.dims[node])
        elif node.op == "get_attr":
            a.held.add(node)
            tensor = attribute(module, str(node.target))
            if isinstance(tensor, torch.Tensor):
                known = weights.get(str(node.target))
                a.dims[node] = known or a.channels.fresh(tensor.shape)
                weights[str(node.target)] = a.dims[node]
        else:
            _apply_rule(a, node)
    return a


def _apply_rule(a: Analysis, node: fx.Node) -> None:
    if node.all_input_nodes and a.held.issuperset(node.all_input_nodes):
        a.held.add(node)
    value = node.meta.get("val")
    if not isinstance(value, (torch.Tensor, tuple, list)):
        _number(a, node)
        return
    rule = RULES.get(operator_name(node))
    if node.op == "call_module":
        called = a.module.get_submodule(str(node.target))
        rule = RULES["module:batch_norm"] if isinstance(called, BatchNorm) else None
    elif rule is None and _is_pointwise(node):
        rule = RULES["pointwise"]
    elif rule is None and not node.all_input_nodes:
        rule = RULES["constant"]
    dims = None
    if rule is not None:
        try:
            dims = rule(a, node)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            dims = None  # the rule does not know this form of the operator
    if dims is None:
        a.freeze(node, f"{_readable(node)} is unknown to the analysis")
    elif isinstance(dims, list):
        a.parts[node] = dims
    elif isinstance(value, torch.Tensor) and [len(labels) for labels in dims] == a.shape(node):
        a.dims[node] = dims
    else:
        a.freeze(node, f"{_readable(node)} is unknown to the analysis in this form")


def _number(a: Analysis, node: fx.Node) -> None:
    """Fix the dimension whose size is read. Other numbers have no channels."""
    for operand in node.all_input_nodes:
        dims = a.dims.get(operand, ())
        if operator_name(node) == "aten.sym_size":
            dims = (dims[int(node.args[1])],)  # type: ignore[arg-type]
        a.channels.fix_dims(dims, f"a number is read from {_readable(operand)}")


def _is_pointwise(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return torch.Tag.pointwise in tags and isinstance(node.meta.get("val"), torch.Tensor)


def _readable(node: fx.Node) -> str:
    kind = "the opaque module " if node.op == "call_module" else ""
    return f"{kind}{operator_name(node).removeprefix('module:')}"
