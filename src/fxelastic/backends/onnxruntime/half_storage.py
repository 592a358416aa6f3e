"""Weights that files hold as 16-bit floats; onnxruntime converts them when it opens a file."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from fxelastic.ir.branch import Branch
from fxelastic.ir.supernet import Supernet
from fxelastic.spec.storage import Storage

#: Smaller tensors, such as those of norms, keep their precision.
_LEAST_BYTES = 1024
#: A tensor whose rounding changes more than this share of its squares keeps its precision: one with
#: numbers that 16 bits can't hold.
_MOST_LOST = 1e-6


def rounded(supernet: Supernet) -> Supernet:
    """A supernet whose new branches have weights that 16 bits hold without a loss.

    Args:
        supernet: The supernet; it does not change.
    """
    # One memo, so that weights that branches share stay shared.
    memo: dict[int, Any] = {}
    branches = [
        branch if branch.frozen else replace(branch, module=copy.deepcopy(branch.module, memo))
        for branch in supernet.branches.values()
    ]
    for branch in branches:
        if not branch.frozen:
            _round(branch.module)
    return Supernet(supernet.partition, branches, supernet.skips).eval()


@torch.no_grad()
def _round(module: nn.Module) -> None:
    for value in (*module.parameters(), *module.buffers()):
        if value.dtype != torch.float32 or value.dim() < 2 or value.nbytes < _LEAST_BYTES:
            continue
        found = value.half().float()
        lost = (found - value).double().square().sum()
        if lost <= _MOST_LOST * value.double().square().sum():
            value.copy_(found)


@torch.no_grad()
def measured(supernet: Supernet, half: Supernet, values: Mapping[str, Any]) -> Storage:
    """What rounding costs.

    Args:
        supernet: The supernet.
        half: The supernet that `rounded` made of it.
        values: The values that the model's own blocks compute for some inputs, by name.
    """
    worst, error = "", 0.0
    for name, branch in supernet.branches.items():
        if branch.frozen:
            continue
        operands = [values[operand] for operand in (*branch.inputs, *branch.context)]
        pairs = zip(
            _results(branch, operands), _results(half.branches[name], operands), strict=True
        )
        found = max((_error(*pair) for pair in pairs), default=0.0)
        if found >= error:
            worst, error = name, found
    return Storage("fp16", error, worst)


def _results(branch: Branch, operands: list[Any]) -> list[Tensor]:
    result = branch.module.eval()(*operands)
    return [result] if isinstance(result, Tensor) else list(result)


def _error(expected: Tensor, actual: Tensor) -> float:
    """The mean squared difference, relative to the variance of the expected numbers."""
    if not expected.is_floating_point() or expected.numel() < 2:
        return 0.0
    expected, actual = expected.double(), actual.double()
    finite = expected.isfinite() & actual.isfinite()
    if not finite.any():
        return 0.0
    variance = expected[finite].var(correction=0).clamp_min(1e-30)
    return float((expected - actual)[finite].square().mean() / variance)


def store_halves(graph: ir.Graph) -> int:
    """Store the float32 tensors of a graph in 16 bits where these hold them without a loss.

    Args:
        graph: The graph, changed in place: a Cast restores the numbers.

    Returns:
        By how many bytes its tensors are smaller.
    """
    saved = 0
    casts = []
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.nbytes < _LEAST_BYTES:
            continue
        numbers = tensor.numpy()
        with np.errstate(over="ignore"):
            half = numbers.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), numbers):
            continue
        stored = ir.Value(
            name=f"{name}_fp16",
            shape=ir.Shape(list(numbers.shape)),
            type=ir.TensorType(ir.DataType.FLOAT16),
            const_value=ir.tensor(half, name=f"{name}_fp16"),
        )
        cast = ir.node("Cast", [stored], {"to": int(ir.DataType.FLOAT)}, num_outputs=1)
        (restored,) = cast.outputs
        restored.name, restored.shape, restored.type = f"{name}_fp32", value.shape, value.type
        ir.convenience.replace_all_uses_with(value, restored)
        del graph.initializers[name]
        graph.register_initializer(stored)
        casts.append(cast)
        saved += tensor.nbytes // 2
    if casts and len(graph):
        graph.insert_before(graph[0], casts)
    return saved
