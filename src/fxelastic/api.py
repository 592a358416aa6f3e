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
    dynamic_shapes: Any = None,
    fusion: str = "onnxruntime",
) -> Partition:
    """Capture a model and cut it into basic blocks.

    Args:
        model: Any ``nn.Module``; it is not changed.
        gamma: Most parameters of a basic block, as a share of the model's, in (0, 1].
        example_inputs: A tensor, a tuple of positional inputs, a dict of keyword inputs or a
            pair ``(tuple, dict)``. Inferred from the model if None.
        batched: Names of the inputs that hold samples, for example ``("x", "mask")``. They hold
            them in their first dimension, unless ``dynamic_shapes`` calls another one ``"batch"``.
            All other inputs keep the example's shape and are passed whole. By default the samples
            are found by running the model; the partition's ``batch_dims`` says where they are.
        dynamic_shapes: The dimensions that vary besides the batch, as ``torch.export`` takes them,
            or with names: ``{"input_ids": {1: "seq"}}``. ``Dim("seq", min=1, max=512)`` gives a
            range, ``Dim.AUTO`` lets a dimension vary if the model allows it, and ``Dim.STATIC`` in
            dimension 0 means that an input holds no samples. A size called ``"batch"``,
            ``"batch_size"`` or ``"N"`` counts samples.
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
    traced = capture(model, example_inputs, batched, dynamic_shapes)
    return partition_graph(traced, gamma, rules)
