"""Graph modules for parts of a model, which follow their weights to a device or never train.

Capture writes the model's device into operators that make a tensor from nothing:
``arange(n, device=x.device)`` in the model is ``arange(n, device='cpu')`` in the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate


class MovableGraphModule(fx.GraphModule):
    """A graph module whose operators move with its weights in ``to``, ``cuda``, ``to_empty``.

    A pickle holds its operators. That of a `torch.fx.GraphModule` holds generated code, which torch
    runs on proxies to get the operators back: this fails for a tensor of a size that varies.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the attributes and the operators."""
        attributes = {k: v for k, v in self.__dict__.items() if k not in ("_graph", "_code")}
        operators = [
            (
                node.op,
                node.name,
                _packed(node.target),
                *map_aggregate((node.args, node.kwargs), _packed),
            )
            for node in self.graph.nodes
        ]
        return _unpickled, (attributes, operators, type(self).__name__)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MovableGraphModule:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        move_operators(self, fn)
        return self


class FrozenGraphModule(MovableGraphModule):
    """A graph module that never trains: it stays in eval mode, and its parameters get no gradients.

    A call passes gradients on to its operands. The result may differ from the model's in the last
    bits: torch chooses kernels by what requires a gradient, even under ``no_grad`` (it folds a
    matrix product or not). `as_model` computes exactly what the model does.

    ``meta["trained"]`` lists the parameters, including those of submodules, that require gradients
    in the model.
    """

    def train(self, mode: bool = True) -> FrozenGraphModule:
        """Stay in eval mode, whatever the mode."""
        super().train(False)
        return self

    def as_model(self, *operands: Any) -> Any:
        """Run over weights that require gradients where the model's own weights do.

        The weights are views made for this call, so a backward pass leaves no gradient in them.
        """
        trained = {
            name: self.get_parameter(name).detach().requires_grad_()
            for name in self.meta.get("trained", ())
        }
        if not trained:
            return self(*operands)
        # The generated forward reads its weights from the object that it gets as self. The module
        # itself stays unchanged, since other threads may call it at the same time.
        weights = SimpleNamespace()
        for node in self.graph.nodes:
            if node.op in ("get_attr", "call_module"):
                target = str(node.target)
                value = trained.get(target)
                _set(weights, target, self._as_model(target, trained) if value is None else value)
        return type(self).forward(weights, *operands)

    def _as_model(self, target: str, trained: dict[str, torch.Tensor]) -> Any:
        value: Any = reduce(getattr, target.split("."), self)
        prefix = f"{target}."
        inside = {k.removeprefix(prefix): v for k, v in trained.items() if k.startswith(prefix)}
        if not isinstance(value, nn.Module) or not inside:
            return value
        return lambda *operands: torch.func.functional_call(value, inside, operands)


@dataclass(frozen=True)
class _NodeName:
    """Stands for a node in a pickle."""

    name: str


@dataclass(frozen=True)
class _OperatorName:
    """Stands for one of torch's operators in a pickle."""

    namespace: str
    name: str
    overload: str


def _packed(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return _NodeName(value.name)
    if isinstance(value, torch._ops.OpOverload):
        namespace, name = value._schema.name.split("::")
        return _OperatorName(namespace, name, value._overloadname)
    return value


def _unpickled(
    attributes: dict[str, Any], operators: list[tuple[Any, ...]], class_name: str
) -> MovableGraphModule:
    graph, nodes = fx.Graph(), dict[str, fx.Node]()

    def unpacked(value: Any) -> Any:
        if isinstance(value, _NodeName):
            return nodes[value.name]
        if isinstance(value, _OperatorName):
            packet = getattr(getattr(torch.ops, value.namespace), value.name)
            return getattr(packet, value.overload)
        return value

    for op, name, target, args, kwargs in operators:
        args, kwargs = map_aggregate((args, kwargs), unpacked)
        nodes[name] = graph.create_node(op, unpacked(target), args, kwargs, name)
    root = nn.Module()
    root.__dict__.update(attributes)
    return MovableGraphModule(root, graph, class_name=class_name)


def _set(owner: SimpleNamespace, target: str, value: object) -> None:
    *path, name = target.split(".")
    for part in path:
        if not hasattr(owner, part):
            setattr(owner, part, SimpleNamespace())
        owner = getattr(owner, part)
    setattr(owner, name, value)


def move_operators(module: fx.GraphModule, fn: Callable[[Tensor], Tensor]) -> None:
    """Make a graph's operators compute on the device that a function moves its weights to.

    Args:
        module: The graph module, changed in place. Its weights stay where they are.
        fn: The function that moves weights (see `torch.nn.Module._apply`). It is called with an
            empty tensor on each device that the graph names.
    """
    moved: dict[torch.device, torch.device] = {}

    def follow(value: Any) -> Any:
        if not isinstance(value, torch.device):
            return value
        if value not in moved:
            moved[value] = fn(torch.empty(0, device=value)).device
        return moved[value]

    for node in module.graph.nodes:
        node.args, node.kwargs = map_aggregate((node.args, node.kwargs), follow)
    if any(old != new for old, new in moved.items()):
        module.recompile()
