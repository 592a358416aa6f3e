"""Dense: a small densely connected network in place of a block of equal sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxelastic.branches.caches import with_empty_caches
from fxelastic.branches.interval import Interval, NoBranchError, intervals
from fxelastic.branches.operators.layers import layers
from fxelastic.branches.operators.operator import MOST, rank_of, suffix
from fxelastic.branches.options import shares
from fxelastic.branches.propagation import graph_flops, is_feature, same_kind
from fxelastic.branches.trainable import Trainable
from fxelastic.errors import UsageError
from fxelastic.ir.branch import Branch, Refusal
from fxelastic.ir.graph_modules import MovableGraphModule
from fxelastic.ir.graph_symbols import one_sample
from fxelastic.ir.operators import attach
from fxelastic.ir.partition import Partition

_ATEN = torch.ops.aten
_CONVOLUTIONS = {1: _ATEN.conv1d.default, 2: _ATEN.conv2d.default, 3: _ATEN.conv3d.default}


@dataclass(frozen=True)
class Dense:
    """A few narrow layers, each of which reads all before it, added to the block's input.

    It begins as an identity: the last map is zero until calibration fits it or training moves it.

    Attributes:
        ratios: Shares of the channels that each layer adds; each makes one branch.
        n_layers: The number of layers.

    Raises:
        UsageError: A share is not in (0, 1), or there are no layers.

    Source: Huang et al., DenseNet, CVPR 2017; AdaScale, section III-A1, connectivity.
    """

    ratios: Sequence[float] = (0.25,)
    n_layers: int = 2

    def __post_init__(self) -> None:
        """Check the options."""
        object.__setattr__(self, "ratios", shares("ratios", self.ratios))
        if (
            isinstance(self.n_layers, bool)
            or not isinstance(self.n_layers, int)
            or self.n_layers < 1
        ):
            raise UsageError(
                f"n_layers must be at least 1, got {self.n_layers!r}",
                expected="an integer of at least 1",
                got=repr(self.n_layers),
            )

    def make(self, partition: Partition, seed: int = 0) -> Iterator[Branch | Refusal]:
        """Make the branches.

        Args:
            partition: The partition to make them for.
            seed: Seed of the layers' weights.

        Yields:
            A branch for each block and share, or the reason why there is none.
        """
        for interval in intervals(partition, "dense"):
            for ratio in self.ratios:
                generator = torch.Generator().manual_seed(seed)
                yield interval.attempt(partial(self._branch, ratio=ratio, generator=generator))

    def _branch(self, interval: Interval, *, ratio: float, generator: torch.Generator) -> Branch:
        operand, result = interval.ends()
        if not same_kind(operand, result):
            raise NoBranchError("input and output differ in shape or dtype")
        if not is_feature(result):
            raise NoBranchError("input and output are indices or flags")
        copied = interval.copy(share=True)
        problem = interval.misfit(copied, result)
        if problem:
            raise NoBranchError(f"its shapes can't be derived: {problem}")
        flops = graph_flops(copied.module, one_sample(interval.partition.symbols))
        found = [layer for layer in layers(copied.module) if layer.weight.dtype == result.dtype]
        if not found:
            raise NoBranchError("it has no convolution without groups and no linear map")
        dims = len(found[0].kernel)
        if dims and operand.dim() != dims + 2:
            raise NoBranchError(f"its input has {operand.dim()} dimensions")
        n: Any = operand.shape[1] if dims else operand.shape[-1]
        if not isinstance(n, int):
            raise NoBranchError("the number of its channels varies")
        module = _network(n, rank_of(n, ratio), self.n_layers, dims, found[0].weight, generator)
        outputs = copied.outputs[: len(copied.outputs) - len(interval.caches)]
        branch = Trainable(module, interval.inputs, (), outputs)
        branch, cache = with_empty_caches(interval, branch, interval.caches)
        problem = interval.misfit(branch, result, cache=cache)
        if problem:
            raise NoBranchError(f"the layers would not fit: {problem}")
        share = graph_flops(module, one_sample(interval.partition.symbols)) / max(1, flops)
        if share > MOST:
            raise NoBranchError(f"it would keep {100 * share:.0f} % of its work")
        return interval.branch(
            branch,
            variant=suffix(ratio),
            approximate=True,
            note=f"{self.n_layers} layers of {rank_of(n, ratio)} channels",
            cache=cache,
        )


def _network(
    n: int, growth: int, n_layers: int, dims: int, like: Tensor, generator: torch.Generator
) -> fx.GraphModule:
    """The layers as a graph; ``dims`` is 0 for linear maps of the last dimension."""
    root, graph = nn.Module(), fx.Graph()
    value = graph.placeholder("x")
    kernel = (3,) * dims

    def weight(name: str, drawn: Tensor) -> fx.Node:
        attach(root, name, nn.Parameter(drawn.to(like.device, like.dtype)))
        return graph.get_attr(name)

    def layer(read: fx.Node, name: str, drawn: Tensor) -> fx.Node:
        bias = weight(f"{name}.bias", torch.zeros(len(drawn), device="cpu"))
        operands = (read, weight(f"{name}.weight", drawn), bias)
        if not dims:
            return graph.call_function(_ATEN.linear.default, operands)
        padding = [drawn.shape[2] // 2] * dims
        return graph.call_function(_CONVOLUTIONS[dims], (*operands, [1] * dims, padding))

    def joined(values: list[fx.Node]) -> fx.Node:
        if len(values) == 1:
            return values[0]
        return graph.call_function(_ATEN.cat.default, (values, 1 if dims else -1))

    values = [value]
    for i in range(n_layers):
        n_in = n + i * growth
        shape = (growth, n_in, *kernel)
        scale = math.sqrt(2 / (n_in * 3**dims))
        drawn = torch.randn(shape, generator=generator, device="cpu") * scale
        result = layer(joined(values), f"layers.{i}", drawn)
        values.append(graph.call_function(_ATEN.relu.default, (result,)))
    last = torch.zeros((n, n_layers * growth, *(1,) * dims), device="cpu")
    change = layer(joined(values[1:]), "last", last)
    graph.output(graph.call_function(_ATEN.add.Tensor, (value, change)))
    return MovableGraphModule(root, graph, class_name="Trainable").eval()
