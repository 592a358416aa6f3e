"""What one node of a captured graph is: its operator and family, its operands, its parameters.

Families of operators are sets of names as `operator_name` gives them.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

from fxelastic.ir.part_names import name_of


def _aten(*names: str) -> frozenset[str]:
    return frozenset(f"aten.{name}" for name in names)


CONVOLUTIONS = _aten("conv1d", "conv2d", "conv3d")
TRANSPOSED_CONVOLUTIONS = _aten("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
#: Products of two matrices, or of batches of them.
PRODUCTS = _aten("matmul", "mm", "bmm")
RECURRENT = _aten("lstm", "gru", "rnn_tanh", "rnn_relu")
#: Operators that sum over products; FLOPs count these alone.
MATRIX_OPERATORS = frozenset(
    {
        *CONVOLUTIONS,
        *TRANSPOSED_CONVOLUTIONS,
        *PRODUCTS,
        *RECURRENT,
        *_aten("convolution", "linear", "addmm", "baddbmm", "bilinear", "einsum"),
        "aten.scaled_dot_product_attention",
    }
)

#: Functions of one element that keep shape and dtype.
ACTIVATIONS = _aten(
    *("relu", "relu6", "hardtanh", "leaky_relu", "elu", "gelu", "silu", "hardswish"),
    *("hardsigmoid", "sigmoid", "tanh", "mish", "softplus", "selu", "celu"),
)

#: Norms that take statistics over the last dimensions.
LAYER_NORMS = _aten("layer_norm", "rms_norm")
#: Norms with a scale for each channel, which is dimension 1.
CHANNEL_NORMS = _aten("batch_norm", "instance_norm", "group_norm")
NORMS = CHANNEL_NORMS | LAYER_NORMS

#: Operators that give other sizes to the same elements in the same order.
RESHAPES = _aten("view", "reshape", "_unsafe_view", "flatten", "unflatten")
#: Operators that return the elements that they read.
COPIES = _aten("alias", "clone", "contiguous", "detach")
#: Dropouts whose third argument says whether they drop.
DROPOUTS = _aten("dropout", "feature_dropout")

#: Operators that need the strides of the capture; `aten.reshape` takes any strides. A branch
#: reshapes instead: another branch may compute its operands, or another device.
VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)

OPERATORS = ("call_function", "call_module", "call_method")


def is_operator(node: fx.Node) -> bool:
    """Whether the node computes something: placeholders, parameters and the output do not."""
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


def is_matrix_operator(node: fx.Node) -> bool:
    """Whether the operator sums over products."""
    return operator_name(node) in MATRIX_OPERATORS


def is_idle_dropout(node: fx.Node) -> bool:
    """Whether the node is a dropout that drops nothing, as all are in eval mode."""
    return operator_name(node) in DROPOUTS and not node.args[2]


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An operator's argument, whether it is passed by position or by name."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def groups_of(node: fx.Node) -> Any:
    """The number of groups of a convolution."""
    return argument(node, 6, "groups", 1)


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
    for i, written in enumerate(schema.arguments):
        if written.alias_info is None or not written.alias_info.is_write:
            continue
        operand = node.kwargs.get(written.name, node.args[i] if i < len(node.args) else None)
        operands = operand if isinstance(operand, (list, tuple)) else (operand,)
        yield from (item for item in operands if isinstance(item, fx.Node))


def node_parameters(node: fx.Node, module: nn.Module) -> Mapping[str, nn.Parameter]:
    """Parameters that an operator reads directly, by the user's own names.

    Args:
        node: A node of the graph of ``module``.
        module: The graph module that holds the parameters.

    Returns:
        Name → parameter: the parameters of a called module, then those of ``get_attr`` operands
        in operand order.
    """
    found: dict[str, nn.Parameter] = {}
    called = [node] if node.op == "call_module" else []
    for source in (*called, *(x for x in node.all_input_nodes if x.op == "get_attr")):
        target = str(source.target)
        value = attribute(module, target)
        if isinstance(value, nn.Parameter):
            found[name_of(target)] = value
        elif isinstance(value, nn.Module):
            for name, parameter in value.named_parameters():
                found[f"{name_of(target)}.{name}"] = parameter
    return found


def attribute(module: nn.Module, target: str) -> object:
    """The parameter, buffer, constant or submodule that a ``get_attr`` target names."""
    value: object = module
    for name in target.split("."):
        value = getattr(value, name)
    return value


def owner_of(root: nn.Module, target: str) -> tuple[nn.Module, str]:
    """The module that holds a dotted name, and the last part of the name.

    Modules on the way that ``root`` lacks are added to it.
    """
    *path, name = target.split(".")
    owner = root
    for part in path:
        child = owner._modules.get(part)
        if child is None:
            child = nn.Module()
            owner.add_module(part, child)
        owner = child
    return owner, name


def attach(root: nn.Module, target: str, value: object, *, persistent: bool = True) -> None:
    """Add a parameter, buffer, module or constant to a module under a dotted name, by reference.

    Args:
        root: The module.
        target: The name.
        value: What to add.
        persistent: Whether a tensor that is not a parameter is part of the state dict.
    """
    owner, name = owner_of(root, target)
    if isinstance(value, nn.Parameter):
        owner.register_parameter(name, value)
    elif isinstance(value, nn.Module):
        owner.add_module(name, value)
    elif isinstance(value, torch.Tensor):
        owner.register_buffer(name, value, persistent=persistent)
    else:
        setattr(owner, name, value)
