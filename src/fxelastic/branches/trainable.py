"""An interval of blocks as a trainable module."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxelastic.branches.folding import Folded, folded_weights
from fxelastic.ir.graph_modules import MovableGraphModule
from fxelastic.ir.liveness import Liveness
from fxelastic.ir.operators import VIEWS, attach, attribute, is_idle_dropout
from fxelastic.ir.part_names import free_name
from fxelastic.ir.partition import Partition

_BATCH_NORM = torch.ops.aten.batch_norm.default


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """A batch norm over any number of dimensions that obeys ``train()`` and ``eval()``.

    A batch with fewer than two values per channel has no statistics. Even in training, such a batch
    is normalised with the running statistics and doesn't change them.
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
        """Accept any input that the captured operator accepts."""


@dataclass(frozen=True, eq=False)
class Trainable:
    """A copy of an interval of blocks.

    Attributes:
        module: Takes the inputs and then the contexts, and returns the output or a tuple of
            several. Its weights are copies; its parameters require gradients.
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
    liveness: Liveness | None = None,
    *,
    share: bool = False,
) -> Trainable:
    """Copy an interval of blocks as a module with its own weights.

    A captured graph is fixed to eval mode and the example's strides. In the copy, batch norms are
    modules that obey ``train()``, idle dropouts are gone, and views are reshapes. Weights that the
    blocks compute from parameters alone are parameters (`fxelastic.branches.folding`).

    Args:
        partition: The blocks.
        start: The first block.
        stop: The block after the last one.
        liveness: The partition's liveness, if it is known already.
        share: Share the weights' memory with the model, for a copy that is only analysed.

    Returns:
        The copy, in eval mode. Its nodes keep their names and metadata.
    """
    blocks = partition.blocks[start:stop]
    made = {name for block in blocks for name in block.nodes}
    read = [name for block in blocks for name in block.inputs if name not in made]
    inputs = tuple(dict.fromkeys(read))
    read = [name for block in blocks for name in block.context if name not in made]
    context = tuple(name for name in dict.fromkeys(read) if name not in inputs)
    outputs = (liveness or Liveness(partition)).outputs(start, stop)
    nodes = partition.nodes
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
    folded = folded_weights(source, operators)
    operators = _read(operators, results, folded)
    graph, own = fx.Graph(), _OwnWeights(source, share, folded, operators)
    copies: dict[fx.Node, fx.Node] = {}
    for node in operands:
        copies[node] = graph.placeholder(node.name)
        copies[node].meta = dict(node.meta)

    def take_weights(nodes: Sequence[fx.Node]) -> None:
        for node in nodes:
            if node not in copies and (node.op == "get_attr" or node in folded):
                copies[node] = graph.get_attr(own.take(node))
                copies[node].meta = dict(node.meta)

    for node in operators:
        if node in folded:
            continue
        read: Any = node.args[0] if node.args else None
        norm = own.batch_norm(node) if node.target is _BATCH_NORM else None
        if is_idle_dropout(node):
            take_weights([read])
            copies[node] = copies[read]
            continue
        if norm is not None:
            take_weights([read])
            copies[node] = graph.create_node("call_module", norm, (copies[read],), name=node.name)
            copies[node].meta = dict(node.meta)
            continue
        take_weights(node.all_input_nodes)
        if node.op == "call_module":
            own.take(node)
        copies[node] = graph.node_copy(node, copies.__getitem__)
        if node.target in VIEWS:
            copies[node].target = torch.ops.aten.reshape.default
    take_weights(results)
    values = tuple(copies[node] for node in results)
    graph.output(values[0] if len(values) == 1 else values)
    return MovableGraphModule(own.root, graph, class_name="Trainable").eval()


def _read(
    operators: Sequence[fx.Node], results: Sequence[fx.Node], folded: Mapping[fx.Node, Folded]
) -> list[fx.Node]:
    """The operators without those that only compute folded weights."""
    read = set(results)
    for node in reversed(operators):
        if node in read and node not in folded:
            read.update(node.all_input_nodes)
    return [node for node in operators if node in read]


def _distinct(folded: Mapping[fx.Node, Folded], operators: Sequence[fx.Node]) -> dict[fx.Node, str]:
    """Names for the folded weights, different from all names that the operators read."""
    names: dict[fx.Node, str] = {}
    taken = [
        str(node.target)
        for reader in operators
        if reader not in folded
        for node in (reader, *reader.all_input_nodes)
        if node.op in ("get_attr", "call_module")
    ]
    for node, weight in folded.items():
        name, n = weight.target, 1
        while any(f"{other}.".startswith(f"{name}.") for other in taken):
            name, n = f"{weight.target}_{n}", n + 1
        names[node] = name
        taken.append(name)
    return names


class _OwnWeights:
    """Copies of a model's weights under the model's own names, and folded weights."""

    def __init__(
        self,
        source: fx.GraphModule,
        share: bool,
        folded: Mapping[fx.Node, Folded],
        operators: Sequence[fx.Node],
    ) -> None:
        self.root = nn.Module()
        self._source = source
        self._share = share
        self._folded = folded
        self._names = _distinct(folded, operators)

    def _copy(self, value: Tensor) -> Tensor:
        return value.detach() if self._share else value.detach().clone()

    def take(self, node: fx.Node) -> str:
        """Add a copy of a parameter, buffer, constant or opaque module, or a folded weight.

        Returns:
            Its name.
        """
        folded = self._folded.get(node)
        target = self._names[node] if folded is not None else str(node.target)
        if folded is not None:
            attach(self.root, target, folded.value)
            return target
        value = attribute(self._source, target)
        if isinstance(value, nn.Parameter):
            learns = value.is_floating_point() or value.is_complex()
            value = nn.Parameter(self._copy(value), learns)
        elif isinstance(value, Tensor):
            value = self._copy(value)
        elif isinstance(value, nn.Module):
            value = copy.deepcopy(value).requires_grad_()
        attach(self.root, target, value)
        return target

    def batch_norm(self, node: fx.Node) -> str | None:
        """Add a module for a captured batch norm.

        Returns:
            Its name; None if the norm has no statistics, or computes them or its weights.
        """
        _, weight, bias, mean, variance, training, momentum, eps, *_ = node.args
        if not isinstance(mean, fx.Node) or mean.op != "get_attr":
            return None
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
        path = str(mean.target).rpartition(".")[0]
        # Free in the source as well, whose part of that name may be copied later.
        name = free_name(self._source.get_submodule(path), node.name)
        target = f"{path}.{name}" if path else name
        attach(self.root, target, norm)
        return target

    def _tensor(self, value: object) -> Tensor | None:
        if isinstance(value, fx.Node) and value in self._folded:
            return self._folded[value].value
        if not isinstance(value, fx.Node) or value.op != "get_attr":
            return None
        result = attribute(self._source, str(value.target))
        return result if isinstance(result, Tensor) else None
