"""A kind as another package may have it: its branches are modules of Python code, not graphs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxelastic.branches.propagation import is_feature
from fxelastic.ir.branch import Branch, Refusal
from fxelastic.ir.liveness import Liveness
from fxelastic.ir.partition import Partition
from fxelastic.spec import BranchSpec, branch_id

KIND = "plain"


class PlainStudent(nn.Module):
    """Layers in a container, a buffer, and a forward that looks at shapes and flags."""

    def __init__(self, shape: list[int], n_layers: int) -> None:
        super().__init__()
        self.over_channels = len(shape) > 2
        width = shape[1] if self.over_channels else shape[-1]
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(n_layers))
        self.norm = nn.BatchNorm1d(width)
        self.register_buffer("scale", torch.full((width,), 0.5))
        self.options = {"activation": "relu", "residual": True}

    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(2).transpose(1, 2) if self.over_channels else x
        for i, layer in enumerate(self.layers):
            y = layer(y)
            if i + 1 < len(self.layers):
                y = getattr(torch, self.options["activation"])(y)
        y = y * self.scale
        y = self.norm(y.transpose(1, 2) if y.dim() == 3 else y).reshape(x.shape)
        return x + y if self.options["residual"] else y


@dataclass(frozen=True)
class Plain:
    """A student for each block that keeps its shape."""

    n_layers: int = 2

    def make(self, partition: Partition, seed: int = 0) -> Iterator[Branch | Refusal]:
        values = {node.name: node.meta.get("val") for node in partition.graph.nodes}
        liveness = Liveness(partition)
        for i, block in enumerate(partition.blocks):
            outputs = liveness.outputs(i, i + 1)
            if block.input is None or len(outputs) != 1:
                continue
            given, wanted = values[block.input], values[outputs[0]]
            if not is_feature(given) or given.dim() < 2 or given.dtype != torch.float32:
                continue
            # The first size is the batch; a width that depends on it has no layer.
            sizes = [given.shape[1 if given.dim() > 2 else -1], *wanted.shape[1:]]
            if str(given.shape) != str(wanted.shape) or not all(type(n) is int for n in sizes):
                yield Refusal("it changes the shape", KIND, i, i + 1)
                continue
            with torch.random.fork_rng():
                torch.manual_seed(seed + i)
                module = PlainStudent([1, *map(int, given.shape[1:])], self.n_layers).eval()
            n_params = sum(parameter.numel() for parameter in module.parameters())
            flops = 2 * sum(layer.weight.numel() for layer in module.layers)
            spec = BranchSpec(branch_id(KIND, i, i + 1), KIND, i, i + 1, n_params, flops)
            yield Branch(spec, module, (block.input,), outputs)
