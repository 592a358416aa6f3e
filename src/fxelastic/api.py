"""The public functions: they compose the passes and the backends' data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fxelastic.backends import fusion_rules
from fxelastic.ir.partition import Partition
from fxelastic.passes import capture, check_gamma, partition_graph


def partition(
    model: nn.Module,
    gamma: float = 0.1,
    example_inputs: Any = None,
    *,
    batched: str | Sequence[str] | None = None,
    fusion: str = "onnxruntime",
) -> Partition:
    """Capture a model and cut it into basic blocks.

    Args:
        model: Any ``nn.Module``; it is not changed.
        gamma: Most parameters of a basic block, as a share of the model's, in (0, 1].
        example_inputs: A tensor, a tuple of positional inputs, a dict of keyword inputs or a
            pair ``(tuple, dict)``. Inferred from the model if None.
        batched: Names of the inputs that hold samples in their first dimension, for example
            ``("x", "mask")``. All other inputs keep the example's shape and are passed whole. By
            default these are the inputs whose first sizes the model ties to each other; the
            partition's ``batched`` lists them.
        fusion: The fusion rules that cuts respect: ``"onnxruntime"``, ``"none"``, or a name
            registered under the entry-point group ``fxelastic.fusion_rules``.

    Returns:
        The partition, verified.

    Raises:
        UsageError: An argument has the wrong type or value.
        CaptureError: The model can't be captured, or its inputs can't be inferred.
        PartitionError: The result breaks an invariant (a bug in this package).

    Source: AdaptiveNet, section 4.1.
    """
    check_gamma(gamma)
    rules = fusion_rules(fusion)
    return partition_graph(capture(model, example_inputs, batched), gamma, rules)
