"""Inputs of a model at any batch size, and what its blocks compute for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from fxelastic.errors import ExportError
from fxelastic.ir.partition import Partition
from fxelastic.ir.signature import batch_dims
from fxelastic.ir.supernet import Supernet


def batch_size(partition: Partition) -> int:
    """The example inputs' batch size; 1 where no size of them depends on the batch.

    Where the model fixes it, it is the first size of the first input that holds samples.
    """
    for node, example in zip(_placeholders(partition), partition.example, strict=True):
        for dim in batch_dims(node.meta.get("val")):
            return int(example.shape[dim])
    if partition.dynamic_batch or not partition.batched:
        return 1
    first = partition.example[partition.signature.names.index(partition.batched[0])]
    return int(first.shape[0])


def make_inputs(
    partition: Partition, n_samples: int, seed: int, *, own: bool = False
) -> dict[str, Any]:
    """Random inputs like the example's.

    Floating-point inputs get the example's mean and spread. Others (token ids, masks) can't be
    made up: their samples are the example's own, in turn.

    Args:
        partition: The model.
        n_samples: The batch size; that of the example where the model fixes it.
        seed: The same seed gives the same inputs.
        own: Take the example's own samples, in turn, for floating-point inputs too.

    Returns:
        The model's inputs by name.
    """
    if len(partition.example) != len(partition.signature.inputs):
        raise ExportError(
            "the partition was made without example inputs",
            expected="a supernet that fxelastic.expand made",
            got=f"{len(partition.example)} example inputs",
        )
    generator = torch.Generator().manual_seed(seed)
    inputs: dict[str, Any] = {}
    for node, example in zip(_placeholders(partition), partition.example, strict=True):
        value = example
        if isinstance(value, torch.Tensor):
            value = value.detach()
            for dim in batch_dims(node.meta.get("val")):
                rows = torch.arange(n_samples, device=value.device) % value.shape[dim]
                value = value.index_select(dim, rows)
            if not own and value.is_floating_point() and bool(value.isfinite().all()):
                value = _like(value, generator)
        inputs[node.name] = value
    return inputs


def _like(value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    wide = value.double()
    spread = float(wide.std(correction=0)) if value.numel() else 0.0
    noise = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.device)
    return (
        (float(wide.mean()) + (spread or 1.0) * noise).to(value.dtype) if value.numel() else value
    )


def teacher_values(supernet: Supernet, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Run the model and keep every value that crosses a cut.

    Args:
        supernet: The supernet; its originals run.
        inputs: The model's inputs by name.

    Returns:
        Inputs and values by name. Nothing that a branch could write to is shared with a caller.
    """
    parameter = next(supernet.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    values = {
        name: value.to(device).clone() if isinstance(value, torch.Tensor) else value
        for name, value in inputs.items()
    }
    with torch.no_grad():
        for branch in supernet.path():
            result = branch.module(*(values[name] for name in (*branch.inputs, *branch.context)))
            results = (result,) if len(branch.outputs) == 1 else result
            values.update(zip(branch.outputs, results, strict=True))
    return values


def _placeholders(partition: Partition) -> list[fx.Node]:
    return [node for node in partition.graph.nodes if node.op == "placeholder"]
