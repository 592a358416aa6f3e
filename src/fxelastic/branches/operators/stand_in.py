"""Write the operators that stand in for a layer into its graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxelastic.branches.operators.layers import Layer
from fxelastic.branches.operators.moments import Moments
from fxelastic.ir.operators import attach
from fxelastic.ir.part_names import free_name

_ATEN = torch.ops.aten
_CONVOLUTIONS = {1: _ATEN.conv1d.default, 2: _ATEN.conv2d.default, 3: _ATEN.conv3d.default}


#: Parameters that the branches of one block share, by layer and name.
Shared = dict[tuple[str, str], nn.Parameter]


class StandIn:
    """The operators in place of a layer, written before it, and the weights that they read.

    Attributes:
        layer: The layer.
    """

    def __init__(self, layer: Layer, operator: str, shared: Shared) -> None:
        """Begin; `finish` removes the layer.

        Args:
            layer: The layer.
            operator: The name of the operator, part of the names of weights.
            shared: What the branches of the block share so far.
        """
        self.layer = layer
        self._graph = layer.module.graph
        self._path = str(layer.node.args[1].target).rpartition(".")[0]  # type: ignore[union-attr]
        self._operator = operator
        self._shared = shared
        self._n_tensors = 0

    def map(
        self,
        value: fx.Node,
        weight: Tensor | fx.Node,
        bias: Tensor | None = None,
        *,
        dims: int | None = None,
        stride: Sequence[int] = (),
        padding: Sequence[int] = (),
        dilation: Sequence[int] = (),
        groups: int = 1,
    ) -> fx.Node:
        """Add a convolution, or a linear map if the weight has no kernel.

        Args:
            value: What it reads.
            weight: ``[n_out, n_in / groups, *kernel]``, or a node that computes it.
            bias: ``[n_out]``, or None.
            dims: The number of dimensions of the kernel; the weight's where None.
            stride: For each dimension of the kernel; 1 if empty.
            padding: Likewise; 0 if empty.
            dilation: Likewise; 1 if empty.
            groups: The number of groups.
        """
        if isinstance(weight, Tensor):
            dims, weight = weight.dim() - 2, self.weight(weight)
        operands = (value, weight, None if bias is None else self.weight(bias))
        if not dims:
            assert groups == 1
            return self._call(_ATEN.linear.default, *operands)
        geometry = (
            list(stride) or [1] * dims,
            list(padding) or [0] * dims,
            list(dilation) or [1] * dims,
        )
        return self._call(_CONVOLUTIONS[dims], *operands, *geometry, groups)

    def pointwise(self, value: fx.Node, matrix: Tensor, bias: Tensor | None = None) -> fx.Node:
        """Add a map ``[n_out, n_in]`` of the channels at each position."""
        kernel = (1,) * len(self.layer.kernel)
        return self.map(value, matrix.reshape(*matrix.shape, *kernel), bias)

    def prefix(self, name: str, whole: Callable[[], Tensor], n: int) -> fx.Node:
        """Add the first rows of a parameter that the branches of the block share.

        Args:
            name: Tells the parameters of a layer apart.
            whole: Computes the parameter for the first branch, which has most rows.
            n: The number of rows.
        """
        key = self.layer.node.name, name
        if key not in self._shared:
            self._shared[key] = nn.Parameter(whole().to(self.layer.weight.dtype).contiguous())
        parameter = self._shared[key]
        node = self._attach(parameter)
        return node if n == len(parameter) else self._call(_ATEN.slice.Tensor, node, 0, 0, n)

    def product(self, left: str, right: str, n: int) -> Tensor:
        """What two factors of `prefix` amount to, as a matrix in float64.

        Args:
            left: The name of the factor ``[n, n_out]``.
            right: The name of the factor ``[n, ...]``.
            n: The number of rows.
        """
        outer, inner = (
            self._shared[self.layer.node.name, name].detach()[:n].double().flatten(1)
            for name in (left, right)
        )
        return outer.mT @ inner

    def reshaped(
        self,
        value: fx.Node,
        parts: Sequence[int],
        order: Sequence[int],
        shape: Sequence[int],
    ) -> fx.Node:
        """Split the dimensions of a weight, permute them, and give the result a shape."""
        split = self._call(_ATEN.reshape.default, value, list(parts))
        permuted = self._call(_ATEN.permute.default, split, list(order))
        return self._call(_ATEN.reshape.default, permuted, list(shape))

    def spatial(self, value: fx.Node, weight: Tensor | fx.Node, *, groups: int = 1) -> fx.Node:
        """Add a convolution with the layer's kernel, stride, padding and dilation.

        Args:
            value: What it reads.
            weight: ``[n_out, n_in / groups, taps]``, or a node that computes it in its own shape.
            groups: The number of groups.
        """
        layer = self.layer
        if isinstance(weight, Tensor):
            weight = weight.reshape(*weight.shape[:2], *layer.kernel)
        if not layer.kernel:
            return self.map(value, weight, dims=0)
        return self.map(
            value,
            weight,
            dims=len(layer.kernel),
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=groups,
        )

    def sampled(self, value: fx.Node, matrix: Tensor) -> fx.Node:
        """Add a pointwise map ``[n_out, n_in]`` at the middle taps of the layer's positions."""
        layer = self.layer
        size = [d * (k // 2) for k, d in zip(layer.kernel, layer.dilation, strict=True)]
        # A negative padding would crop; a kernel of one tap with less padding reads the middle.
        crop = [m - p for m, p in zip(size, layer.padding, strict=True)]
        if any(crop):
            for i, n in enumerate(crop):
                if n:
                    value = self._call(_ATEN.slice.Tensor, value, 2 + i, n, -n, 1)
        kernel = (1,) * len(layer.kernel)
        return self.map(value, matrix.reshape(*matrix.shape, *kernel), stride=layer.stride)

    def add_per_channel(self, value: fx.Node, bias: Tensor) -> fx.Node:
        """Add a parameter ``[n_out]`` to each position."""
        shape = (-1, *(1,) * len(self.layer.kernel))
        return self._call(_ATEN.add.Tensor, value, self.weight(bias.reshape(shape)))

    def shifted_bias(self, known: Moments, residual: Callable[[], Tensor]) -> Tensor | None:
        """The layer's bias, with the mean of what a stand-in's weights leave out.

        Args:
            known: The layer's moments.
            residual: Returns the layer's weights without those that the stand-in realises,
                ``[n_out, n_in * taps]``. Without data it is not called.
        """
        bias = self.layer.bias
        if known.mean is None:
            return bias
        mean = residual().double() @ known.mean.repeat_interleave(self.layer.taps)
        return mean if bias is None else bias.double() + mean

    def shuffle(self, value: fx.Node, groups: int, n: int) -> fx.Node:
        """Reorder channels from ``[groups, n / groups]`` to ``[n / groups of each group]``.

        Args:
            value: A value with ``n`` channels, in ``groups`` groups of ``groups`` parts each.
            groups: The number of groups.
            n: The number of channels.
        """
        parts = torch.arange(n).reshape(groups, groups, n // groups**2)
        order = parts.transpose(0, 1).reshape(-1)
        return self.select(value, order)

    def select(self, value: fx.Node, order: Tensor) -> fx.Node:
        """Take channels in the given order."""
        return self._call(_ATEN.index_select.default, value, self.layer.channel, self.buffer(order))

    def cat(self, values: Sequence[fx.Node]) -> fx.Node:
        """Join the channels of values."""
        return self._call(_ATEN.cat.default, list(values), self.layer.channel)

    def weight(self, value: Tensor) -> fx.Node:
        """Add a parameter of the layer's dtype."""
        return self._attach(nn.Parameter(value.to(self.layer.weight.dtype).contiguous()))

    def buffer(self, value: Tensor) -> fx.Node:
        """Add a tensor that does not learn."""
        return self._attach(value.to(self.layer.weight.device))

    def finish(self, result: fx.Node) -> None:
        """Put the result in place of the layer's, and remove the layer and its weights."""
        node = self.layer.node
        node.replace_all_uses_with(result)
        operands = node.all_input_nodes
        self._graph.erase_node(node)
        for operand in operands:
            if operand.op == "get_attr" and not operand.users:
                self._graph.erase_node(operand)
        self.layer.module.delete_all_unused_submodules()
        _drop_unread(self.layer.module)

    def _attach(self, value: Tensor) -> fx.Node:
        owner = self.layer.module.get_submodule(self._path)
        name = free_name(owner, f"{self._operator}_{self._n_tensors}")
        self._n_tensors += 1
        target = f"{self._path}.{name}" if self._path else name
        attach(self.layer.module, target, value)
        with self._graph.inserting_before(self.layer.node):
            return self._graph.get_attr(target)

    def _call(self, target: Any, *args: Any) -> fx.Node:
        with self._graph.inserting_before(self.layer.node):
            return self._graph.call_function(target, args)


def _drop_unread(module: fx.GraphModule) -> None:
    """Remove parameters and buffers that no node reads."""
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    called = {str(node.target) for node in module.graph.nodes if node.op == "call_module"}
    for path, owner in list(module.named_modules()):
        if any(path == name or path.startswith(f"{name}.") for name in called):
            continue
        for store in (owner._parameters, owner._buffers):
            for name in list(store):
                if (f"{path}.{name}" if path else name) not in read:
                    del store[name]
