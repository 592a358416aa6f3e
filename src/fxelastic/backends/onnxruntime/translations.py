"""Operators that the exporter does not know, written in ONNX.

Mixtures of experts multiply each token by the matrix of its expert, with tokens sorted by expert.
transformers has its own operator for this, and torch's can only be traced for bfloat16, which
onnxruntime can't multiply. Of torch's sorts the exporter knows only the unstable one, though ONNX's
sort is stable.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from onnxscript import opset18

from fxelastic.backends.onnxruntime import recurrent

# Its types are for compiled functions; these are traced.
op: Any = opset18


def translations() -> dict[Any, Callable[..., Any]]:
    """The table for torch.onnx.export, with the operators that are registered in this process."""
    found: dict[Any, Callable[..., Any]] = {operator.floordiv: floor_division}
    for (namespace, name, overload), function in _TRANSLATIONS.items():
        packet = getattr(getattr(torch.ops, namespace), name, None)
        if packet is not None:
            found[getattr(packet, overload)] = function
    return found


def grouped_matmul(rows: Any, matrices: Any, ends: Any) -> Any:
    """Rows times the matrix of their group, a product for each group.

    Args:
        rows: ``(S, K)``, sorted by group.
        matrices: ``(groups, K, N)``.
        ends: ``(groups,)``: the end of each group's rows. Rows after the last give 0.

    Returns:
        ``(S, N)``.
    """
    n_groups, _, width = map(int, matrices.shape)
    first = op.Constant(value_ints=[0])
    stops = op.Cast(ends, to=7)
    products = []
    start = first
    for i in range(n_groups):
        stop = op.Slice(stops, op.Constant(value_ints=[i]), op.Constant(value_ints=[i + 1]))
        own = op.Slice(rows, start, stop, first)
        matrix = op.Gather(matrices, op.Constant(value_int=i), axis=0)
        products.append(op.MatMul(own, matrix))
        start = stop
    n_rows = op.Shape(rows, start=0, end=1)
    rest = op.Concat(op.Sub(n_rows, start), op.Constant(value_ints=[width]), axis=0)
    zero = op.CastLike(op.Constant(value_floats=[0.0]), rows)
    return op.Concat(*products, op.Expand(zero, rest), axis=0)


def stable_sort(
    value: Any, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Any, Any]:
    """A sort that keeps the order of equal elements.

    Args:
        value: Any tensor.
        stable: Torch's argument; the result is stable in any case.
        dim: The dimension to sort along.
        descending: Whether the largest comes first.

    Returns:
        The sorted elements, and their indices.
    """
    axis = dim % max(len(value.shape), 1)
    length = op.Shape(value, start=axis, end=axis + 1)
    result: tuple[Any, Any] = op.TopK(value, length, axis=axis, largest=int(descending), sorted=1)
    return result


def floor_division(number: Any, divisor: Any) -> Any:
    """Division of sizes that rounds down, as Python does; ONNX rounds towards zero."""
    return op.Div(op.Sub(number, op.Mod(number, divisor)), divisor)


def n_elements(value: Any) -> Any:
    """The number of elements of a tensor whose sizes data choose."""
    return op.Size(value)


_TRANSLATIONS: Mapping[tuple[str, str, str], Callable[..., Any]] = {
    **recurrent.TRANSLATIONS,
    ("aten", "sort", "stable"): stable_sort,
    ("aten", "sym_numel", "default"): n_elements,
    ("transformers", "grouped_mm_fallback", "default"): grouped_matmul,
}
