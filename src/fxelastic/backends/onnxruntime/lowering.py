"""Operators that the exporter refuses, or that onnxruntime rounds otherwise, by others.

Attention over other than four dimensions (windows, or no heads) is refused, and so are equal parts
of a batch, and integers that are taken from a fraction. The projection of an LSTM is left out.
Nearest neighbours of n elements are not the same everywhere: torch takes element
``floor(i * (n / m))``, onnxruntime ``floor(i / (m / n))``, each in 32-bit floating point. Of the
sizes up to 64, 132 pairs differ, such as 14 to 8. The package `decompositions` has more of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxelastic.backends.onnxruntime.decompositions import DECOMPOSITIONS
from fxelastic.backends.onnxruntime.projected_lstm import lstm

_ATEN = torch.ops.aten
_ATTENTION: Any = _ATEN.scaled_dot_product_attention.default


def lowered(module: nn.Module) -> nn.Module:
    """The module with such operators replaced; itself where it has none.

    Args:
        module: Any module; only the graph of a graph module is looked at. It is not changed.

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
    """Attention over any number of dimensions by attention over four.

    Args:
        query: ``(..., heads, L, E)``, or without heads.
        key: ``(..., heads, S, E)``.
        value: ``(..., heads, S, Ev)``.
        attn_mask: None, or what can be broadcast to ``(..., heads, L, S)``.
        args: The operator's other arguments, which say nothing of dimensions.
        kw: The same, by name.

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
    # One of fewer dimensions is the same for all of the batch.
    mask = attn_mask if attn_mask is None or attn_mask.dim() < 4 else _flat(attn_mask, batch)
    result = _ATTENTION(*four, mask, *args, **kw)
    return result.reshape(*batch, *result.shape[1:])


def _flat(tensor: Tensor, batch: Sequence[Any]) -> Tensor:
    return tensor.expand(*batch, *tensor.shape[-3:]).flatten(0, len(batch) - 1)


def nearest(
    value: Tensor, output_size: Sequence[int] | None, scale_factors: Sequence[float] | None
) -> Tensor:
    """Nearest neighbours to given sizes; by index where onnxruntime would take others.

    Args:
        value: ``(N, C, ...)``.
        output_size: The sizes wanted, or None where factors are given.
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
    """Equal parts; by slices where the size is open, of which the exporter can't make parts.

    Args:
        value: Any tensor.
        chunks: How many parts, the last of which may be smaller.
        dim: The dimension to part.

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
    """The elements under a mask, which the exporter takes by index.

    Args:
        value: Any tensor.
        mask: Which elements; broadcast with ``value``.

    Returns:
        One dimension, in order.
    """
    value, mask = torch.broadcast_tensors(value, mask)
    return value[mask]


def tensor_split(value: Tensor, sections: int, dim: int = 0) -> Sequence[Tensor]:
    """Parts that differ by one at most; by slices where the size is open, as for `chunk`."""
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
    """A number less a tensor, which is given the result's dtype first.

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
    """Which of n elements torch takes for m."""
    found = np.floor(np.arange(m, dtype=np.float32) * (np.float32(n) / np.float32(m)))
    return [min(int(i), n - 1) for i in found]


def _of_onnxruntime(n: int, m: int) -> list[int]:
    """Which of n elements onnxruntime takes for m."""
    found = np.floor(np.arange(m, dtype=np.float32) / (np.float32(m) / np.float32(n)))
    return [min(int(i), n - 1) for i in found]


_LOWERED: Mapping[Any, Callable[..., Any]] = {
    **DECOMPOSITIONS,
    _ATTENTION: attention,
    _ATEN.chunk.default: chunk,
    _ATEN.lstm.input: lstm,
    _ATEN.masked_select.default: masked_select,
    _ATEN.rsub.Scalar: subtracted_from,
    _ATEN.tensor_split.sections: tensor_split,
    _ATEN.upsample_nearest1d.vec: nearest,
    _ATEN.upsample_nearest2d.vec: nearest,
    _ATEN.upsample_nearest3d.vec: nearest,
}
