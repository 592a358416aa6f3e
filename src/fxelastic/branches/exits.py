"""Early exits: a small head computes the model's result from the features after a block."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxelastic.branches.cut_features import dims_of_space, latest
from fxelastic.branches.diversity import MeasuredCuts, measured_cuts
from fxelastic.branches.interval import Interval, NoBranchError
from fxelastic.branches.options import Arguments, counts
from fxelastic.branches.propagation import graph_flops, is_feature, same_kind, sizes
from fxelastic.branches.trainable import Trainable
from fxelastic.errors import UsageError
from fxelastic.ir.block import REPLACEABLE
from fxelastic.ir.branch import Branch, Refusal
from fxelastic.ir.graph_modules import MovableGraphModule
from fxelastic.ir.graph_symbols import one_sample
from fxelastic.ir.liveness import Liveness
from fxelastic.ir.operators import attach
from fxelastic.ir.partition import Partition
from fxelastic.spec import EXIT
from fxelastic.spec.options import check_count

_ATEN = torch.ops.aten
_CONVOLUTIONS = {1: _ATEN.conv1d.default, 2: _ATEN.conv2d.default, 3: _ATEN.conv3d.default}
# With "auto", exits follow the blocks at which these shares of the FLOPs are done.
_SHARES = (0.25, 0.5, 0.75)
# An exit saves at least this share of the FLOPs of the blocks that it replaces.
_SAVED = 0.1
# The most parameters of a head's convolution, as a share of the model's.
_WIDE = 0.01
_LEAST_WIDTH = 8
_EPS = 1e-5


@dataclass(frozen=True)
class Exit:
    """A head for the features after a block, in place of all later blocks.

    If the features have the form that the model's own last blocks read, the head is a copy of
    these. Otherwise it pools: features with dimensions of space go through a convolution of stride
    2 and global pooling, tokens through pooling and a norm, and then both through a linear map.
    The convolution has as many channels as a hundredth of the model's parameters allows.

    Attributes:
        at: The numbers of blocks that run before an exit; or ``"auto"``: with calibration data,
            the cuts that are worth an exit by `measured_cuts`; without, after the blocks at which a
            quarter, half and three quarters of the FLOPs are done.
        every: An exit after each so many blocks instead; 0 for ``at``.
        calibration: Positional and keyword arguments of some calls of the model; those of
            `fxelastic.expand` by default.

    Raises:
        UsageError: An option is out of range.

    Source: AdaScale, section III-A2; Teerapittayanon et al., BranchyNet, ICPR 2016.
    """

    at: str | Sequence[int] = "auto"
    every: int = 0
    calibration: tuple[Arguments, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        """Check the options."""
        if isinstance(self.at, str) and self.at != "auto":
            raise UsageError(
                f"at must be 'auto' or numbers of blocks, got {self.at!r}",
                expected="'auto', or a sequence such as (2, 5)",
                got=repr(self.at),
            )
        if self.at != "auto":
            object.__setattr__(self, "at", counts("at", self.at))
        check_count("every", self.every, 0)

    def make(self, partition: Partition, seed: int = 0) -> Iterator[Branch | Refusal]:
        """Make the exits.

        Args:
            partition: The partition to make them for.
            seed: Seed of the linear maps' weights.

        Yields:
            A branch for each position, or the reason why there is none.

        Raises:
            UsageError: The model has no block of such a number.
        """
        liveness = Liveness(partition)
        n_blocks = len(partition.blocks)
        for start in self._positions(partition):
            interval = Interval(partition, liveness, EXIT, start, n_blocks)
            generator = torch.Generator().manual_seed(seed)
            yield interval.attempt(partial(_exit, generator=generator))

    def _positions(self, partition: Partition) -> list[int]:
        n_blocks = len(partition.blocks)
        if self.every:
            own = [i for i, block in enumerate(partition.blocks) if block.kind in REPLACEABLE]
            return [i + 1 for i in own[self.every - 1 :: self.every] if i + 1 < n_blocks]
        if self.at == "auto":
            measured = _measured(partition, self.calibration)
            return _after_shares(partition) if measured is None else list(measured.worth_an_exit())
        wrong = [position for position in self.at if int(position) >= n_blocks]
        if wrong:
            raise UsageError(
                f"there is no exit after {wrong[0]} blocks",
                expected=f"from 1 to {n_blocks - 1}: the model has {n_blocks} blocks",
                got=f"at={self.at!r}",
            )
        return sorted({int(position) for position in self.at})


def _measured(partition: Partition, batches: Sequence[Arguments]) -> MeasuredCuts | None:
    """The cuts by calibration data; None without data, or if none of them can be measured."""
    if not batches:
        return None
    found = measured_cuts(partition, ((args, kwargs, None) for args, kwargs in batches))
    return found if found.cuts else None


def _after_shares(partition: Partition) -> list[int]:
    """The positions at which the shares of `_SHARES` of the FLOPs are done, without repetition."""
    flops = [block.flops for block in partition.blocks]
    total, done = max(1, sum(flops)), 0
    found: dict[int, None] = {}
    wanted = list(_SHARES)
    for i, own in enumerate(flops[:-1]):
        done += own
        while wanted and done >= wanted[0] * total:
            wanted.pop(0)
            found[i + 1] = None
    return list(found)


def _exit(interval: Interval, *, generator: torch.Generator) -> Branch:
    if interval.caches:
        raise NoBranchError("later blocks extend caches, which an exit would leave unfilled")
    name = latest(interval)
    results = [interval.partition.value(output) for output in interval.outputs]
    if not results or not all(map(is_feature, results)):
        raise NoBranchError("its results are indices or flags")
    # New weights are drawn on the CPU, whatever torch's default device is.
    with torch.device("cpu"):
        copied, note = _own_head(interval, name) or _pooled(interval, name, generator)
    problem = interval.misfit(copied, results[0])
    if problem:
        raise NoBranchError(f"the head would not fit: {problem}")
    one = one_sample(interval.partition.symbols)
    flops = sum(block.flops for block in interval.blocks)
    if graph_flops(copied.module, one) > (1 - _SAVED) * flops:
        raise NoBranchError("its head would cost as much as the blocks that it replaces")
    return interval.branch(copied, approximate=True, note=note)


def _own_head(interval: Interval, name: str) -> tuple[Trainable, str] | None:
    """A copy of the model's last blocks, if they read a value of this form.

    A result may be what they read, such as the last hidden state of an encoder.
    """
    partition, liveness = interval.partition, interval.liveness
    value = partition.value(name)
    for start in range(interval.stop - 1, interval.start, -1):
        tail = Interval(partition, liveness, EXIT, start, interval.stop)
        n_params = sum(block.n_params for block in tail.blocks)
        if len(tail.inputs) != 1 or not n_params:
            continue
        if not {*tail.outputs, *tail.inputs} >= set(interval.outputs):
            continue
        if not same_kind(partition.value(tail.inputs[0]), value):
            return None
        copied = tail.copy()
        graph = copied.module.graph
        (read,) = (node for node in graph.nodes if node.name == copied.inputs[0])
        given: Any = graph.output_node().args[0]
        several = given if isinstance(given, tuple) else (given,)
        known = {copied.inputs[0]: read, **dict(zip(copied.outputs, several, strict=True))}
        wanted = tuple(known[output] for output in interval.outputs)
        graph.output_node().args = (wanted if len(wanted) > 1 else wanted[0],)
        read.target = name
        names = ", ".join(block.name for block in tail.blocks)
        own = Trainable(copied.module, (name,), copied.context, interval.outputs)
        return own, f"a copy of {names}"
    return None


def _pooled(interval: Interval, name: str, generator: torch.Generator) -> tuple[Trainable, str]:
    """A head that pools, for results ``(batch, n)``."""
    if len(interval.outputs) != 1:
        raise NoBranchError("it has several results, and the last blocks read other features")
    value = interval.partition.value(name)
    result = interval.partition.value(interval.outputs[0])
    n_out = result.shape[-1] if result.dim() else 0
    if result.dim() != 2 or not isinstance(n_out, int):
        raise NoBranchError(
            f"the result has {result.dim()} dimensions, and pooled features have two"
        )
    if sizes(result)[0] != sizes(value)[0] or value.dim() < 2:
        raise NoBranchError("the features and the result have different numbers of samples")
    dims = dims_of_space(interval, value)
    channels = value.shape[1 if dims or value.dim() == 2 else -1]
    if not isinstance(channels, int):
        raise NoBranchError("the number of the features' channels varies")
    width = min(channels, int(_WIDE * interval.partition.n_params) // (channels * 3**dims))
    head = _Head(value, name, generator)
    read = head.read
    note = "linear"
    if dims and width >= _LEAST_WIDTH:
        read = head.convolution(read, channels, width, dims)
        note = f"convolution to {width} channels, pooling, linear"
        channels = width
    elif value.dim() > 2:
        note = "pooling, linear" if dims else "pooling, norm, linear"
    if dims:
        read = head.call(_ATEN.mean.dim, read, list(range(2, 2 + dims)))
    elif value.dim() > 2:
        read = head.call(_ATEN.mean.dim, read, list(range(1, value.dim() - 1)))
        read = head.norm(read, channels)
    module = head.finished(head.linear(read, channels, n_out))
    return Trainable(module, (name,), (), interval.outputs), note


class _Head:
    """The graph of a head, built from its input to its result."""

    def __init__(self, value: Tensor, name: str, generator: torch.Generator) -> None:
        self._device, self._dtype = value.device, value.dtype
        self._root, self._graph = nn.Module(), fx.Graph()
        self._generator = generator
        self.read = self._graph.placeholder(name)

    def call(self, operator: Any, *operands: Any) -> fx.Node:
        return self._graph.call_function(operator, operands)

    def _weight(self, name: str, value: Tensor) -> fx.Node:
        attach(self._root, name, nn.Parameter(value.to(self._device, self._dtype)))
        return self._graph.get_attr(name)

    def convolution(self, read: fx.Node, n_in: int, n_out: int, dims: int) -> fx.Node:
        """Stride 2 and kernel 3, with an activation; begins as orthonormal mixtures of channels."""
        mixed = torch.eye(n_in)
        if n_out < n_in:
            drawn = torch.randn(n_in, n_out, generator=self._generator, dtype=torch.float64)
            mixed = torch.linalg.qr(drawn).Q.mT.float()
        weight = torch.zeros((n_out, n_in, 3**dims))
        weight[:, :, 3**dims // 2] = mixed
        weight = weight.reshape((n_out, n_in, *(3,) * dims))
        operands = (
            self._weight("convolution.weight", weight),
            self._weight("convolution.bias", torch.zeros(n_out)),
        )
        found = self.call(_CONVOLUTIONS[dims], read, *operands, [2] * dims, [1] * dims)
        return self.call(_ATEN.relu.default, found)

    def norm(self, read: fx.Node, n: int) -> fx.Node:
        weight = self._weight("norm.weight", torch.ones(n))
        bias = self._weight("norm.bias", torch.zeros(n))
        return self.call(_ATEN.layer_norm.default, read, [n], weight, bias, _EPS)

    def linear(self, read: fx.Node, n_in: int, n_out: int) -> fx.Node:
        drawn = torch.randn(n_out, n_in, generator=self._generator) / math.sqrt(n_in)
        weight = self._weight("linear.weight", drawn)
        return self.call(
            _ATEN.linear.default, read, weight, self._weight("linear.bias", torch.zeros(n_out))
        )

    def finished(self, result: fx.Node) -> fx.GraphModule:
        self._graph.output(result)
        return MovableGraphModule(self._root, self._graph, class_name="Exit").eval()
