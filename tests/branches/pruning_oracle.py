"""What a pruned branch has to compute: the whole block without the removed contributions.

The block's copy keeps every channel; but where a product sums over a removed one, its weights are
zero. That says which channels were removed, and nothing of how.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fxelastic.branches.interval import Interval, NoBranchError
from fxelastic.branches.pruned import changes_statistics, prunable, prune
from fxelastic.branches.pruning.channels import Analysis
from fxelastic.branches.pruning.selection import importance_by_weight
from fxelastic.branches.trainable import Trainable, trainable
from fxelastic.ir.liveness import Liveness
from fxelastic.ir.operators import attribute
from fxelastic.ir.partition import Partition


@dataclass(frozen=True)
class PrunedBlock:
    """A pruned copy of a block, with what was removed from it."""

    partition: Partition
    block: int
    stop: int
    copied: Trainable
    analysis: Analysis
    labels: frozenset[int]
    lines: list[str]

    @property
    def approximate(self) -> bool:
        return changes_statistics(self.analysis, self.labels)

    def masked(self, operands: list[Any]) -> Tensor:
        """The whole block's result where nothing is read from removed channels."""
        with torch.no_grad():
            return self._masked_block(*operands)

    @cached_property
    def _masked_block(self) -> nn.Module:
        whole = trainable(self.partition, self.block, self.stop, Liveness(self.partition))
        module = whole.module.eval()
        dims = {str(n.target): d for n, d in self.analysis.dims.items() if n.op == "get_attr"}
        for target, dim in self.analysis.contractions:
            roots = self.analysis.channels.roots(dims[target][dim])
            mask = torch.tensor([int(label) not in self.labels for label in roots])
            weight = attribute(module, target)
            shape = [1] * weight.dim()
            shape[dim] = -1
            weight.data.mul_(mask.view(shape))
        return module


def pruned_block(
    partition: Partition, block: int, ratio: float, span: int = 0
) -> PrunedBlock | str:
    """Prune a block, or a run of blocks; the reason if it can't be pruned."""
    stop = block + span + 1
    interval = Interval(partition, Liveness(partition), "pruned", block, stop)
    try:
        read = prunable(interval)
        found = prune(interval, read, ratio, importance_by_weight(read.analysis))
    except NoBranchError as e:
        return str(e)
    return PrunedBlock(partition, block, stop, *found)
