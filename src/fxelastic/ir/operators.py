"""What the passes need to know about one node: its operator, its operands, its parameters."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping

import torch
from torch import fx

from fxelastic.ir.part_names import name_of

#: Operators that need strides as they were when captured, where `aten.reshape` takes any. A graph
#: module that stands for a part of the model reshapes: what comes before it may be another branch,
#: or run on another device, and its results lie otherwise in memory.
VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)

OPERATORS = ("call_function", "call_module", "call_method")


def is_operator(node: fx.Node) -> bool:
    """Whether the node computes something (is no placeholder, parameter or output)."""
    return node.op in OPERATORS


def operator_name(node: fx.Node) -> str:
    """The operator without its overload: ``aten.conv2d``, ``getitem``, ``module:LSTMCell``."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return f"{target.namespace}.{target._opname}"
    if node.op == "call_module":
        return f"module:{target}"
    name = getattr(target, "__name__", str(target))
    return name.rstrip("_") if target in (operator.and_, operator.or_) else name


def is_tensor(node: fx.Node) -> bool:
    """Whether the node's value is one tensor, so that a block boundary may lie on it."""
    return isinstance(node.meta.get("val"), torch.Tensor)


def is_number(node: fx.Node) -> bool:
    """Whether the node's value is a number, as the sizes of dynamic dimensions are."""
    return isinstance(
        node.meta.get("val"),
        (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool),
    )


def mutated_operands(node: fx.Node) -> Iterator[fx.Node]:
    """Operands that the operator writes to, by its schema."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    schema = node.target._schema
    if not schema.is_mutable:
        return
    for i, argument in enumerate(schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        operand = node.kwargs.get(argument.name, node.args[i] if i < len(node.args) else None)
        operands = operand if isinstance(operand, (list, tuple)) else (operand,)
        yield from (item for item in operands if isinstance(item, fx.Node))


def node_parameters(node: fx.Node, module: torch.nn.Module) -> Mapping[str, torch.nn.Parameter]:
    """Parameters that an operator reads directly, by the user's own names.

    Args:
        node: A node of the graph of ``module``.
        module: The graph module that holds the parameters.

    Returns:
        Name → parameter, in operand order: those of ``get_attr`` operands and, for a
        ``call_module`` node, those of the module called.
    """
    found: dict[str, torch.nn.Parameter] = {}
    if node.op == "call_module":
        prefix = str(node.target)
        for name, parameter in module.get_submodule(prefix).named_parameters():
            found[f"{name_of(prefix)}.{name}"] = parameter
    for operand in node.all_input_nodes:
        if operand.op == "get_attr":
            value = attribute(module, str(operand.target))
            if isinstance(value, torch.nn.Parameter):
                found[name_of(str(operand.target))] = value
            elif isinstance(value, torch.nn.Module):
                for name, parameter in value.named_parameters():
                    found[f"{name_of(str(operand.target))}.{name}"] = parameter
    return found


def attribute(module: torch.nn.Module, target: str) -> object:
    """The parameter, buffer, constant or submodule that a ``get_attr`` target names."""
    value: object = module
    for name in target.split("."):
        value = getattr(value, name)
    return value
