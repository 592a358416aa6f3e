"""An interval of blocks as a module of its own that can learn."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxelastic.ir.branch import Crossings
from fxelastic.ir.movable import MovableGraphModule
from fxelastic.ir.operators import VIEWS, attribute
from fxelastic.ir.partition import Partition

_BATCH_NORM = torch.ops.aten.batch_norm.default
_DROPOUTS = (torch.ops.aten.dropout.default, torch.ops.aten.feature_dropout.default)


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """A batch norm over any number of dimensions that obeys ``train()`` and ``eval()``.

    A batch with fewer than two values a channel has no statistics: in training, too, it is
    normalised with the running ones, which stay as they are.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``(N, C, ...)``."""
        if self.training and self.track_running_stats and input.numel() <= input.shape[1]:
            return F.batch_norm(
                *(input, self.running_mean, self.running_var, self.weight, self.bias),
                eps=self.eps,
            )
        normalised: Tensor = super().forward(input)
        return normalised

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept what the captured operator accepted."""


@dataclass(frozen=True, eq=False)
class Trainable:
    """A copy of an interval of blocks.

    Attributes:
        module: Called with the inputs and then the contexts; returns the output, or a tuple of
            several. Its weights are copies; those that are parameters require gradients.
        inputs: Names of the stream values that it reads.
        context: Names of the context values that it reads.
        outputs: Names of the values that it computes for later blocks.
    """

    module: fx.GraphModule
    inputs: tuple[str, ...]
    context: tuple[str, ...]
    outputs: tuple[str, ...]


def trainable(
    partition: Partition,
    start: int,
    stop: int,
    crossings: Crossings | None = None,
    *,
    share: bool = False,
) -> Trainable:
    """Copy an interval of blocks as a module with weights of its own.

    A captured graph has eval mode and the example's strides baked in. In the copy, batch norms are
    modules that obey ``train()``, dropout that is off is gone, and views are reshapes.

    Args:
        partition: The blocks.
        start: The first block.
        stop: The block after the last one.
        crossings: The partition's, where they are known already.
        share: Leave the weights' memory that of the model, for a copy that is only looked at.

    Returns:
        The copy, in eval mode. Its nodes keep their names and metadata.
    """
    blocks = partition.blocks[start:stop]
    made = {name for block in blocks for name in block.nodes}
    read = [name for block in blocks for name in block.inputs if name not in made]
    inputs = tuple(dict.fromkeys(read))
    read = [name for block in blocks for name in block.context if name not in made]
    context = tuple(name for name in dict.fromkeys(read) if name not in inputs)
    outputs = (crossings or Crossings(partition)).outputs(start, stop)
    nodes = {node.name: node for node in partition.graph.nodes}
    module = _copied(
        partition.graph_module,
        [nodes[name] for name in (*inputs, *context)],
        [nodes[name] for block in blocks for name in block.nodes],
        [nodes[name] for name in outputs],
        share,
    )
    return Trainable(module, inputs, context, outputs)


def _copied(
    source: fx.GraphModule,
    operands: Sequence[fx.Node],
    operators: Sequence[fx.Node],
    results: Sequence[fx.Node],
    share: bool,
) -> fx.GraphModule:
    graph, own = fx.Graph(), _OwnWeights(source, share)
    copies: dict[fx.Node, fx.Node] = {}
    for node in operands:
        copies[node] = graph.placeholder(node.name)
        copies[node].meta = dict(node.meta)
    for node in operators:
        read: Any = node.args[0] if node.args else None
        norm = own.batch_norm(node) if node.target is _BATCH_NORM else None
        if node.target in _DROPOUTS and not node.args[2]:
            copies[node] = copies[read]
            continue
        if norm is not None:
            copies[node] = graph.create_node("call_module", norm, (copies[read],), name=node.name)
            copies[node].meta = dict(node.meta)
            continue
        for operand in node.all_input_nodes:
            if operand.op == "get_attr" and operand not in copies:
                own.take(str(operand.target))
                copies[operand] = graph.node_copy(operand)
        if node.op == "call_module":
            own.take(str(node.target))
        copies[node] = graph.node_copy(node, copies.__getitem__)
        if node.target in VIEWS:
            copies[node].target = torch.ops.aten.reshape.default
    values = tuple(copies[node] for node in results)
    graph.output(values[0] if len(values) == 1 else values)
    return MovableGraphModule(own.root, graph, class_name="Trainable").eval()


class _OwnWeights:
    """Copies of a model's weights, under the model's own names."""

    def __init__(self, source: fx.GraphModule, share: bool) -> None:
        self.root = nn.Module()
        self._source = source
        self._share = share

    def _copy(self, value: Tensor) -> Tensor:
        return value.detach() if self._share else value.detach().clone()

    def take(self, target: str) -> None:
        """Copy a parameter, buffer, constant or opaque module."""
        value = attribute(self._source, target)
        owner, name = self._owner(target)
        if isinstance(value, nn.Parameter):
            learns = value.is_floating_point() or value.is_complex()
            owner.register_parameter(name, nn.Parameter(self._copy(value), learns))
        elif isinstance(value, Tensor):
            owner.register_buffer(name, self._copy(value))
        elif isinstance(value, nn.Module):
            owner.add_module(name, copy.deepcopy(value).requires_grad_())
        else:
            setattr(owner, name, value)

    def batch_norm(self, node: fx.Node) -> str | None:
        """The name of a module that does what a captured batch norm does.

        None where it has no statistics, or where they or the weights are computed.
        """
        _, weight, bias, mean, variance, training, momentum, eps, *_ = node.args
        tensors = [self._tensor(value) for value in (weight, bias, mean, variance)]
        computed = any(
            value is not None and tensor is None
            for value, tensor in zip((weight, bias), tensors, strict=False)
        )
        if training or computed or tensors[2] is None or tensors[3] is None:
            return None
        like: dict[str, Any] = {"device": tensors[2].device, "dtype": tensors[2].dtype}
        norm = BatchNorm(len(tensors[2]), float(eps), float(momentum), affine=False, **like)  # type: ignore[arg-type]
        norm.affine = tensors[0] is not None
        for name, value in zip(("weight", "bias"), tensors, strict=False):
            if value is not None:
                norm.register_parameter(name, nn.Parameter(self._copy(value)))
        for name, value in zip(("running_mean", "running_var"), tensors[2:], strict=True):
            norm.register_buffer(name, self._copy(value) if value is not None else None)
        assert isinstance(mean, fx.Node)
        path = str(mean.target).rpartition(".")[0]
        target = f"{path}.{node.name}" if path else node.name
        owner, name = self._owner(target)
        owner.add_module(name, norm)
        return target

    def _tensor(self, value: object) -> Tensor | None:
        if not isinstance(value, fx.Node) or value.op != "get_attr":
            return None
        result = attribute(self._source, str(value.target))
        return result if isinstance(result, Tensor) else None

    def _owner(self, target: str) -> tuple[nn.Module, str]:
        *path, name = target.split(".")
        owner = self.root
        for part in path:
            child = owner._modules.get(part)
            if child is None:
                child = nn.Module()
                owner.add_module(part, child)
            owner = child
        return owner, name
