"""The layers of a block that operators replace: convolutions without groups, and linear maps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from fxelastic.ir.operators import CONVOLUTIONS, argument, attribute, groups_of, operator_name


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution or a linear map with a weight of its own.

    Attributes:
        module: The graph module that it belongs to.
        node: Its operator.
        weight: ``[n_out, n_in, *kernel]``; a linear map has no kernel.
        bias: ``[n_out]``, or None.
        stride: For each dimension of the kernel.
        padding: Likewise.
        dilation: Likewise.
    """

    module: fx.GraphModule
    node: fx.Node
    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()

    @property
    def n_out(self) -> int:
        """The number of output channels."""
        return self.weight.shape[0]

    @property
    def n_in(self) -> int:
        """The number of input channels."""
        return self.weight.shape[1]

    @property
    def kernel(self) -> tuple[int, ...]:
        """The sizes of the kernel."""
        return tuple(self.weight.shape[2:])

    @property
    def taps(self) -> int:
        """The number of positions in the kernel."""
        return math.prod(self.kernel)

    @property
    def n_positions_in(self) -> int:
        """The number of input positions for each output position."""
        return math.prod(self.stride)

    @property
    def matrix(self) -> Tensor:
        """The weight as ``[n_out, n_in, taps]`` in float64."""
        return self.weight.double().reshape(self.n_out, self.n_in, self.taps)

    @property
    def operand(self) -> fx.Node:
        """The value that it reads."""
        operand = self.node.args[0]
        assert isinstance(operand, fx.Node)
        return operand

    @property
    def channel(self) -> int:
        """The dimension of its channels."""
        return 1 if self.kernel else -1


def layers(module: fx.GraphModule) -> Iterator[Layer]:
    """The layers of a copied block whose weights nothing else reads, in execution order.

    Args:
        module: A copy as `fxelastic.branches.trainable.trainable` makes it.
    """
    read = [n.target for n in module.graph.nodes if n.op == "get_attr" for _ in n.users]
    for node in module.graph.nodes:
        name = operator_name(node)
        if name != "aten.linear" and name not in CONVOLUTIONS:
            continue
        weight, bias = (_tensor(module, argument(node, i + 1, key)) for i, key in _OPERANDS)
        if weight is None or read.count(node.args[1].target) != 1:
            continue
        if not weight.is_floating_point() or (bias is None and argument(node, 2, "bias")):
            continue
        given = [argument(node, i, key) for i, key in _GEOMETRY]
        if name == "aten.linear":
            yield Layer(module, node, weight, bias)
        elif groups_of(node) == 1 and not isinstance(given[1], str):
            dims = weight.dim() - 2
            if node.args[0].meta["val"].dim() != dims + 2:
                continue  # a single sample without a batch
            stride, padding, dilation = (
                _sizes(v, dims, default) for v, default in zip(given, (1, 0, 1), strict=True)
            )
            yield Layer(module, node, weight, bias, stride, padding, dilation)


_OPERANDS = tuple(enumerate(("weight", "bias")))
_GEOMETRY = ((3, "stride"), (4, "padding"), (5, "dilation"))


def _tensor(module: fx.GraphModule, operand: Any) -> Tensor | None:
    if not isinstance(operand, fx.Node) or operand.op != "get_attr":
        return None
    value = attribute(module, str(operand.target))
    return value.detach() if isinstance(value, nn.Parameter) else None


def _sizes(value: Any, dims: int, default: int) -> tuple[int, ...]:
    given = (
        (default,)
        if value is None
        else tuple(value)
        if isinstance(value, (list, tuple))
        else (value,)
    )
    return tuple(int(v) for v in given) * (dims if len(given) == 1 else 1)
