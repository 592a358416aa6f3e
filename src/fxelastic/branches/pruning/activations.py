"""The mean magnitude of each channel's values on calibration data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxelastic.branches.options import Arguments
from fxelastic.branches.original import Original
from fxelastic.branches.pruning.channels import FIXED, Analysis
from fxelastic.branches.trainable import Trainable
from fxelastic.ir.branch import Branch
from fxelastic.ir.operators import MATRIX_OPERATORS, RECURRENT, operator_name
from fxelastic.ir.partition import Partition
from fxelastic.ir.supernet import Supernet

#: Operators whose operands are activations: channels that a product sums over.
_PRODUCTS = MATRIX_OPERATORS - RECURRENT - {"aten.scaled_dot_product_attention"}


def activations(
    partition: Partition,
    blocks: Mapping[tuple[int, int], tuple[Trainable, Analysis]],
    batches: Iterable[Arguments],
) -> dict[tuple[int, int], dict[int, float]]:
    """Measure the values that products sum over, in a run of the model.

    Args:
        partition: The blocks.
        blocks: Copies of some of the blocks, and the analyses of their channels.
        batches: Arguments of calls of the model.

    Returns:
        For each of these runs and each of its channels' labels the mean magnitude of the
        channel's values, summed over the operators that read it.
    """
    model = Supernet(partition, (b for b in Original().make(partition) if isinstance(b, Branch)))
    recorders = {
        i: _MagnitudeRecorder(copied, analysis) for i, (copied, analysis) in blocks.items()
    }
    n_batches = 0
    with torch.no_grad():
        for args, kwargs in batches:
            n_batches += 1
            values = model.bind(args, kwargs)
            for i, branch in enumerate(model.path()):
                for (start, _), recorder in recorders.items():
                    if start == i:
                        recorder.observe(values)
                model.run_branch(branch, values, as_model=True)
    return {
        i: {label: total / n_batches for label, total in recorder.totals.items()}
        for i, recorder in recorders.items()
    }


class _MagnitudeRecorder(fx.Interpreter):
    """Runs a block's copy and adds up magnitudes by label."""

    def __init__(self, copied: Trainable, analysis: Analysis) -> None:
        super().__init__(copied.module.eval())
        self._copied = copied
        self._analysis = analysis
        self._summed = {
            int(label)
            for labels in analysis.summed
            for label in analysis.channels.roots(labels)
            if label != FIXED
        }
        self.totals: dict[int, float] = {}

    def observe(self, values: Mapping[str, Any]) -> None:
        self.run(*(values[name] for name in (*self._copied.inputs, *self._copied.context)))

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        # Weights are not activations. A value counts once for each product that reads it.
        reads = sum(operator_name(user) in _PRODUCTS for user in n.users)
        flows = isinstance(result, Tensor) and n not in self._analysis.held
        # A value without rows has no mean.
        if reads and flows and result.is_floating_point() and result.numel():
            self._add(self._analysis.dims.get(n, ()), result, reads)
        return result

    def _add(self, dims: Sequence[Any], value: Tensor, reads: int) -> None:
        for d, labels in enumerate(dims):
            if len(labels) != value.shape[d]:
                continue
            roots = self._analysis.channels.roots(labels).tolist()
            if not self._summed.intersection(roots):
                continue
            rest = tuple(i for i in range(value.dim()) if i != d)
            means = value.abs().double().mean(dim=rest) if rest else value.abs()
            for label, mean in zip(roots, means.tolist(), strict=True):
                if label in self._summed:
                    self.totals[label] = self.totals.get(label, 0.0) + reads * float(mean)
