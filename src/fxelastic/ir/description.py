"""Describe what a module computes apart from its weights, to compare it with another module."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, MappingProxyType

import torch
from torch import fx, nn

from fxelastic.ir.operators import attribute

_PLAIN = (
    *(type(None), bool, int, float, complex, str),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
    # Operators, and functions such as operator.add: each equals only itself.
    *(torch._ops.OpOverload, FunctionType, BuiltinFunctionType),
)
_REGISTRIES = vars(nn.Module()).keys() - {"training"}
_HOOKS = tuple(name for name in _REGISTRIES if name.endswith("_hooks"))


@dataclass(frozen=True)
class Description:
    """What a module computes.

    Attributes:
        key: Equal for modules that compute the same if their weights are equal.
        weights: Names of the parameters and buffers, in the same order for all modules of a key.
    """

    key: Hashable
    weights: tuple[str, ...]


def describe(module: nn.Module) -> Description | None:
    """Describe a module.

    A description compares operators, types, plain attributes, and the dtypes, sizes and strides of
    weights.

    Args:
        module: The module. The description of a graph module is of its graph, that of any other
            module is of its class and attributes.

    Returns:
        The description; None if the module can't be compared because it has hooks or holds
        anything but modules, tensors and plain values.
    """
    found = _Describer(module)
    try:
        key = found.graph(module) if isinstance(module, fx.GraphModule) else found.module(module)
    except _UnknownError:
        return None
    return Description(key, tuple(found.weights))


class _UnknownError(Exception):
    """Something that can't be compared."""


class _Describer:
    """Describes a module without its weights, and collects the names of the weights."""

    def __init__(self, root: nn.Module) -> None:
        self.weights: list[str] = []
        self._root = root
        self._slots: dict[int, int] = {}
        # These become inputs of a captured graph; other tensors are constants in it.
        self._state = {
            **dict(root.named_parameters(remove_duplicate=False)),
            **dict(root.named_buffers(remove_duplicate=False)),
        }

    def graph(self, module: fx.GraphModule) -> Hashable:
        if _hooked(module):
            raise _UnknownError
        position = {node: i for i, node in enumerate(module.graph.nodes)}
        return tuple(self._node(node, position) for node in position)

    def _node(self, node: fx.Node, position: Mapping[fx.Node, int]) -> Hashable:
        if node.op == "placeholder":
            return node.op
        if node.op in ("get_attr", "call_module"):
            target = self._attribute(str(node.target))
        else:
            target = _plain(node.target)
        return node.op, target, _plain((node.args, node.kwargs), position)

    def _attribute(self, name: str) -> Hashable:
        value = attribute(self._root, name)
        if isinstance(value, torch.Tensor):
            return self._tensor(name, value)
        if isinstance(value, nn.Module):
            return self.module(value, name)
        raise _UnknownError

    def _tensor(self, name: str, tensor: torch.Tensor) -> Hashable:
        """A weight by its place among the weights; any other tensor by its elements."""
        if tensor.layout is not torch.strided or type(tensor) not in (torch.Tensor, nn.Parameter):
            raise _UnknownError
        kind = (tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.requires_grad)
        if name not in self._state:
            elements = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            return kind, hashlib.sha256(elements.numpy().tobytes()).digest()
        if id(tensor) not in self._slots:
            self._slots[id(tensor)] = len(self.weights)
            self.weights.append(name)
        return kind, self._slots[id(tensor)]

    def module(self, module: nn.Module, name: str = "") -> Hashable:
        if _hooked(module):
            raise _UnknownError
        own = {key: value for key, value in vars(module).items() if key not in _REGISTRIES}
        tensors = [
            (key, value if value is None else self._tensor(_join(name, key), value))
            for key, value in (*module._parameters.items(), *module._buffers.items())
        ]
        parts = [
            (key, part if part is None else self.module(part, _join(name, key)))
            for key, part in module._modules.items()
        ]
        return type(module), _plain(own), tuple(tensors), tuple(parts)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _hooked(module: nn.Module) -> bool:
    return any(getattr(module, name) for name in _HOOKS)


def _plain(value: object, position: Mapping[fx.Node, int] = MappingProxyType({})) -> Hashable:
    """A value of constants and nodes in a form that also compares types: 1, 1.0 and True differ.

    Args:
        value: The value.
        position: A number for each node.
    """
    if isinstance(value, (tuple, list)):
        return tuple(_plain(item, position) for item in value)
    if isinstance(value, dict):
        return tuple((_plain(key), _plain(item, position)) for key, item in value.items())
    if isinstance(value, slice):
        return slice, _plain((value.start, value.stop, value.step), position)
    if isinstance(value, fx.Node):
        return fx.Node, position[value]
    if isinstance(value, float):
        # As text, since nan differs from itself and -0.0 equals 0.0.
        return float, repr(value)
    if isinstance(value, _PLAIN):
        return type(value), value
    raise _UnknownError
