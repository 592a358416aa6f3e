"""The model's own blocks as branches that train, for a network that is not trained yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxelastic.branches.original import original_branch
from fxelastic.ir.branch import Branch
from fxelastic.ir.graph_modules import MovableGraphModule
from fxelastic.ir.liveness import Liveness
from fxelastic.ir.operators import VIEWS, attribute
from fxelastic.ir.part_names import free_name
from fxelastic.ir.partition import Partition, extract

_ATEN = torch.ops.aten
# Operators that compute something else in training, and which argument says so. A captured graph
# is fixed to eval mode.
_NORMS: Mapping[Any, int] = {_ATEN.batch_norm.default: 5, _ATEN.instance_norm.default: 5}
_MODES: Mapping[Any, int] = {
    **dict.fromkeys((_ATEN.dropout.default, _ATEN.feature_dropout.default), 2),
    **dict.fromkeys((_ATEN.alpha_dropout.default, _ATEN.feature_alpha_dropout.default), 2),
    _ATEN.rrelu.default: 3,
    **dict.fromkeys((_ATEN.lstm.input, _ATEN.gru.input), 6),
    **dict.fromkeys((_ATEN.rnn_tanh.input, _ATEN.rnn_relu.input), 6),
}
_MOMENTUM = 6


def training_originals(partition: Partition) -> list[Branch]:
    """A branch for each block, over the partition's own parameters, in execution order.

    Training one of them trains the partition: whatever else refers to these parameters sees the
    new values, such as frozen originals. Parameters that require no gradients stay as they are. In
    training mode, norms with running statistics, dropouts and recurrent layers compute what the
    model's layers do.

    Args:
        partition: The blocks.
    """
    liveness = Liveness(partition)
    return [
        original_branch(partition, liveness, i, _learning(extract(partition, block)))
        for i, block in enumerate(partition.blocks)
    ]


class TrainingMode(nn.Module):
    """An operator of which one argument says whether the module is in training mode."""

    def __init__(self, operator: Any, flag: int) -> None:
        """Wrap an operator.

        Args:
            operator: The operator.
            flag: The position of the argument.
        """
        super().__init__()
        self._operator = operator
        self._flag = flag

    def forward(self, *operands: Any) -> Any:
        """Call the operator with all of its arguments; that of the flag is replaced."""
        given = list(operands)
        given[self._flag] = self.training
        return self._operator(*given)


class TrainingNorm(TrainingMode):
    """A norm whose running statistics follow the batches in training mode.

    A batch with fewer than two values per channel has no statistics. Even in training, such a batch
    is normalised with the running statistics and doesn't change them.

    Attributes:
        running_mean: The statistics that the operator reads and writes; the same tensor.
        running_var: Likewise.
        n_batches: Batches so far, for statistics that are means over all batches.
    """

    running_mean: Tensor
    running_var: Tensor
    n_batches: Tensor

    def __init__(self, operator: Any, flag: int, mean: Tensor, variance: Tensor) -> None:
        """Wrap an operator over running statistics."""
        super().__init__(operator, flag)
        self.register_buffer("running_mean", mean)
        self.register_buffer("running_var", variance)
        self.register_buffer("n_batches", torch.zeros((), dtype=torch.int64))

    def forward(self, *operands: Any) -> Any:
        """Call the operator with all of its arguments; that of the flag is replaced."""
        given = list(operands)
        values: Tensor = given[0]
        given[self._flag] = self.training and values.numel() > values.shape[1]
        if given[self._flag]:
            self.n_batches += 1
            # A layer with momentum=None, a mean over all batches, is captured with 0.
            if not given[_MOMENTUM]:
                given[_MOMENTUM] = 1 / int(self.n_batches)
        return self._operator(*given)


def _learning(block: fx.GraphModule) -> MovableGraphModule:
    """The block with operators that obey ``train()`` and ``eval()``."""
    for node in block.graph.nodes:
        if node.target in VIEWS:
            node.target = _ATEN.reshape.default
        if node.op != "call_function":
            continue
        flag = _NORMS.get(node.target)
        if flag is not None and not node.args[flag]:
            mean, variance = (_tensor(block, node.args[i]) for i in (3, 4))
            if mean is not None and variance is not None:
                _replace(block, node, TrainingNorm(node.target, flag, mean, variance))
        elif node.target in _MODES:
            _replace(block, node, TrainingMode(node.target, _MODES[node.target]))
    return MovableGraphModule(block, block.graph, class_name="Original").eval()


def _replace(block: fx.GraphModule, node: fx.Node, module: nn.Module) -> None:
    name = free_name(block, "mode")
    block.add_module(name, module)
    node.op, node.target = "call_module", name


def _tensor(block: fx.GraphModule, value: object) -> Tensor | None:
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return None
    found = attribute(block, str(value.target))
    return found if isinstance(found, Tensor) else None
