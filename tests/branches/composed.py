"""Branches over any interval that compute what the interval's blocks compute."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fxelastic.ir import Partition
from fxelastic.ir.branch import Branch
from fxelastic.ir.liveness import Liveness
from fxelastic.spec import BranchSpec, branch_id


class Composed(nn.Module):
    """Runs blocks one after the other."""

    def __init__(self, partition: Partition, branch: tuple[int, int], values: Any) -> None:
        super().__init__()
        self._reads, self._gives = values
        self._blocks = partition.blocks[slice(*branch)]
        self.parts = nn.ModuleList(partition.modules[block.name] for block in self._blocks)

    def forward(self, *operands: torch.Tensor) -> Any:
        values = dict(zip(self._reads, operands, strict=True))
        for block, module in zip(self._blocks, self.parts, strict=True):
            result = module(*(values[name] for name in (*block.inputs, *block.context)))
            several = len(block.outputs) > 1
            values.update(zip(block.outputs, result if several else (result,), strict=True))
        given = tuple(values[name] for name in self._gives)
        return given if len(given) > 1 else given[0]


def compose(
    partition: Partition, start: int, stop: int, liveness: Liveness | None = None
) -> Branch | None:
    """One branch for an interval; None where nothing reads what it computes."""
    liveness = liveness or Liveness(partition)
    blocks = partition.blocks[start:stop]
    live = set(liveness.live(start))
    inputs, context = (
        tuple(dict.fromkeys(n for b in blocks for n in names(b) if n in live))
        for names in (lambda b: b.inputs, lambda b: b.context)
    )
    context = tuple(name for name in context if name not in inputs)
    outputs = liveness.outputs(start, stop)
    if not outputs:
        return None
    return Branch(
        BranchSpec(branch_id("composed", start, stop), "composed", start, stop, 0, 0),
        Composed(partition, (start, stop), ((*inputs, *context), outputs)),
        inputs,
        outputs,
        context,
    )


def all_composed(partition: Partition, spans: tuple[int, ...]) -> Iterator[Branch]:
    """A branch for each interval of these lengths."""
    n_blocks, liveness = len(partition.blocks), Liveness(partition)
    for start in range(n_blocks):
        for stop in (start + span for span in spans if start + span <= n_blocks):
            branch = compose(partition, start, stop, liveness)
            if branch is not None:
                yield branch
