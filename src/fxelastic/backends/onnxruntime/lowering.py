"""Lowering: replace operators that the exporter can't convert or onnxruntime rounds differently.

The exporter can't convert attention over other than four dimensions (windows, or no heads), equal
parts of a batch, or the subtraction of integers from a fraction, and it ignores the projection of
an LSTM. Nearest neighbours of n elements differ: torch takes element ``floor(i * (n / m))``,
onnxruntime ``floor(i / (m / n))``, both in 32-bit floating point. Among the sizes up to 64, 132
pairs differ, such as 14 to 8. The package `decompositions` has further replacements.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxelastic.backends.onnxruntime.decompositions import DECOMPOSITIONS

_ATEN = torch.ops.aten
_ATTENTION: Any = _ATEN.scaled_dot_product_attention.default


def lowered(module: nn.Module) -> nn.Module:
    """Replace such operators; returns the module itself if it has none.

    Args:
        module: Any module, which is not changed. Only the graph of a graph module is lowered.

    Returns:
        A module over the same weights, under the same names, that computes the same.
    """
    if not isinstance(module, fx.GraphModule):
        return module
    if not any(node.target in _LOWERED for node in module.graph.nodes):
        return module
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    for node in graph.nodes:
        node.target = _LOWERED.get(node.target, node.target)
    return fx.GraphModule(module, graph)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *args: Any,
    **kw: Any,
) -> Tensor:
    """Attention over any number of dimensions, computed over four.

    Args:
        query: ``(..., heads, L, E)``, or without heads.
        key: ``(..., heads, S, E)``.
        value: ``(..., heads, S, Ev)``.
        attn_mask: None, or a tensor that broadcasts to ``(..., heads, L, S)``.
        args: The operator's other arguments, which don't depend on dimensions.
        kw: Further arguments by name.

    Returns:
        ``(..., heads, L, Ev)``.
    """
    tensors = [query, key, value]
    n = max(tensor.dim() for tensor in tensors)
    if n == 4:
        result: Tensor = _ATTENTION(query, key, value, attn_mask, *args, **kw)
        return result
    if n < 4:
        missing = (1,) * (4 - n)
        four = [tensor.reshape(*missing, *tensor.shape) for tensor in tensors]
        result = _ATTENTION(*four, attn_mask, *args, **kw)
        return result.reshape(result.shape[4 - n :])
    batch = torch.broadcast_shapes(*(tensor.shape[:-3] for tensor in tensors))
    four = [_flat(tensor, batch) for tensor in tensors]
    # A mask of fewer dimensions is the same for the whole batch.
    mask = attn_mask if attn_mask is None or attn_mask.dim() < 4 else _flat(attn_mask, batch)
    result = _ATTENTION(*four, mask, *args, **kw)
    return result.reshape(*batch, *result.shape[1:])


def _flat(tensor: Tensor, batch: Sequence[Any]) -> Tensor:
    return tensor.expand(*batch, *tensor.shape[-3:]).flatten(0, len(batch) - 1)


def nearest(
    value: Tensor, output_size: Sequence[int] | None, scale_factors: Sequence[float] | None
) -> Tensor:
    """Nearest neighbours for given sizes; by index if onnxruntime would take others.

    Args:
        value: ``(N, C, ...)``.
        output_size: The new sizes, or None for factors.
        scale_factors: Factors, or None.

    Returns:
        ``(N, C, *output_size)``.
    """
    before = value.shape[2:]
    if output_size is None or not all(isinstance(n, int) for n in (*before, *output_size)):
        return _upsampled(value, output_size, scale_factors)
    rows = [_of_torch(n, m) for n, m in zip(before, output_size, strict=True)]
    if rows == [_of_onnxruntime(n, m) for n, m in zip(before, output_size, strict=True)]:
        return _upsampled(value, output_size, scale_factors)
    for dim, taken in enumerate(rows, start=2):
        if taken != list(range(value.shape[dim])):
            value = value.index_select(dim, torch.tensor(taken, device=value.device))
    return value


def chunk(value: Tensor, chunks: int, dim: int = 0) -> Sequence[Tensor]:
    """Equal parts; by slices if the size is symbolic, which the exporter can't convert.

    Args:
        value: Any tensor.
        chunks: Number of parts, the last of which may be smaller.
        dim: The dimension to divide.

    Returns:
        The parts.
    """
    size = value.shape[dim]
    if isinstance(size, int):
        parts: Sequence[Tensor] = _ATEN.chunk.default(value, chunks, dim)
        return parts
    step = (size + chunks - 1) // chunks
    ends = [step * i for i in range(1, chunks)]
    bounds = zip([0, *ends], [*ends, size], strict=True)
    return [_ATEN.slice.Tensor(value, dim, start, end) for start, end in bounds]


def masked_select(value: Tensor, mask: Tensor) -> Tensor:
    """The elements under a mask, by an index, which the exporter converts.

    Args:
        value: Any tensor.
        mask: The elements to select; broadcast with ``value``.

    Returns:
        One dimension, in order.
    """
    value, mask = torch.broadcast_tensors(value, mask)
    return value[mask]


def tensor_split(value: Tensor, sections: int, dim: int = 0) -> Sequence[Tensor]:
    """Parts whose sizes differ by at most 1; by slices if the size is symbolic."""
    size = value.shape[dim]
    if isinstance(size, int):
        parts: Sequence[Tensor] = _ATEN.tensor_split.sections(value, sections, dim)
        return parts
    ends: list[Any] = [0]
    for i in range(sections):
        ends.append(ends[-1] + (size + sections - 1 - i) // sections)
    bounds = itertools.pairwise(ends)
    return [_ATEN.slice.Tensor(value, dim, start, end) for start, end in bounds]


def subtracted_from(value: Tensor, other: float, alpha: float = 1) -> Tensor:
    """A number minus a tensor, which is first converted to the result's dtype.

    Args:
        value: Any tensor.
        other: The number.
        alpha: How many times it is subtracted.

    Returns:
        ``other - alpha * value``.
    """
    dtype = torch.result_type(value, other)
    result: Tensor = _ATEN.rsub.Scalar(value.to(dtype), other, alpha)
    return result


def _upsampled(value: Tensor, sizes: Any, factors: Any) -> Tensor:
    names = (_ATEN.upsample_nearest1d, _ATEN.upsample_nearest2d, _ATEN.upsample_nearest3d)
    result: Tensor = names[value.dim() - 3].vec(value, sizes, factors)
    return result


def _of_torch(n: int, m: int) -> list[int]:
    """The elements of n that torch takes for m results."""
    found = np.floor(np.arange(m, dtype=np.float32) * (np.float32(n) / np.float32(m)))
    return [min(int(i), n - 1) for i in found]


def _of_onnxruntime(n: int, m: int) -> list[int]:
    """The elements of n that onnxruntime takes for m results."""
    found = np.floor(np.arange(m, dtype=np.float32) / (np.float32(m) / np.float32(n)))
    return [min(int(i), n - 1) for i in found]


_LOWERED: Mapping[Any, Callable[..., Any]] = {
    **DECOMPOSITIONS,
    _ATTENTION: attention,
    _ATEN.chunk.default: chunk,
    _ATEN.masked_select.default: masked_select,
    _ATEN.rsub.Scalar: subtracted_from,
    _ATEN.tensor_split.sections: tensor_split,
    _ATEN.upsample_nearest1d.vec: nearest,
    _ATEN.upsample_nearest2d.vec: nearest,
    _ATEN.upsample_nearest3d.vec: nearest,
}
