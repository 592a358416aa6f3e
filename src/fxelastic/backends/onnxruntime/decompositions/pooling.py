"""Pooling to any size and with any divisor, by operators of ONNX."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_ATEN = torch.ops.aten


def adaptive_max_pool(value: Tensor, output_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The maximum of each window, and its index.

    Args:
        value: ``(N, C, *sizes)`` or ``(C, *sizes)``.
        output_size: Number of windows in each dimension.

    Returns:
        The maxima, and their flat indices in the image.
    """
    n = len(output_size)
    sizes = value.shape[-n:]
    if _divides(sizes, output_size):
        name = f"adaptive_max_pool{n}d"
        result: tuple[Tensor, Tensor] = getattr(_ATEN, name).default(value, output_size)
        return result
    places = None
    # From the last dimension to the first, so that the first of equal elements is taken.
    for i in reversed(range(n)):
        dim, stride = i - n, math.prod(sizes[i + 1 :])
        first, ends = _bounds(sizes[i], output_size[i], value.device)
        rows = _rows(first, ends, sizes[i], output_size[i])
        windows = _gathered(value, dim, rows)
        value = windows.amax(dim)
        within = torch.arange(rows.shape[1], device=value.device).reshape(-1, *[1] * (n - 1 - i))
        equal = windows == value.unsqueeze(dim)
        chosen = torch.where(equal, within, rows.shape[1] - 1).amin(dim)
        own = (chosen + first.reshape(-1, *[1] * (n - 1 - i))) * stride
        if places is not None:
            others = _gathered(places, dim, rows).gather(dim, chosen.unsqueeze(dim)).squeeze(dim)
            own = own + others
        places = own
    assert places is not None
    return value, places


def adaptive_avg_pool(value: Tensor, output_size: Sequence[int]) -> Tensor:
    """The mean of each window, dimension by dimension.

    In two dimensions the exporter has its own for known sizes, which onnxruntime runs faster.
    """
    n = len(output_size)
    sizes = value.shape[-n:]
    known = n < 3 and all(isinstance(size, int) for size in sizes)
    if known or _divides(sizes, output_size):
        result: Tensor = getattr(_ATEN, f"adaptive_avg_pool{n}d").default(value, output_size)
        return result
    for i in range(n):
        dim = i - n
        begins, ends = _bounds(sizes[i], output_size[i], value.device)
        rows = _rows(begins, ends, sizes[i], output_size[i])
        windows = _gathered(value, dim, rows)
        lengths = (ends - begins).reshape(-1, *[1] * (n - i))
        inside = torch.arange(rows.shape[1], device=value.device).reshape(-1, *[1] * (n - 1 - i))
        # Not a product with weights, in which 0 times infinity would be no number.
        value = windows.masked_fill(inside >= lengths, 0.0).sum(dim) / lengths.squeeze(1)
    return value


def avg_pool2d(value: Tensor, *args: Any, **kw: Any) -> Tensor:
    """The mean of windows of an image, or their sum over a divisor."""
    return _avg_pool(_ATEN.avg_pool2d.default, 2, value, *args, **kw)


def avg_pool3d(value: Tensor, *args: Any, **kw: Any) -> Tensor:
    """The mean of windows of a volume, or their sum over a divisor."""
    return _avg_pool(_ATEN.avg_pool3d.default, 3, value, *args, **kw)


def _avg_pool(
    operator: Any,
    n: int,
    value: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    result: Tensor
    if divisor_override is None:
        result = operator(value, kernel_size, stride, padding, ceil_mode, count_include_pad)
        return result
    kernels = _each(kernel_size, n)
    strides = _each(stride or kernel_size, n)
    pads: list[int] = []
    for size, k, s, p in zip(value.shape[-n:], kernels, strides, _each(padding, n), strict=True):
        beyond = _ceil_windows(size, k, s, p) * s - s + k - size - p if ceil_mode else p
        pads = [p, max(p, beyond), *pads]
    # Explicit zeros count as elements, so every window has as many elements as the kernel.
    mean = operator(F.pad(value, pads), kernels, strides)
    result = mean * (math.prod(kernels) / divisor_override)
    return result


def _ceil_windows(size: int, kernel: int, stride: int, pad: int) -> int:
    """Number of windows that may end, but not start, after the padding."""
    n = -(-(size + 2 * pad - kernel) // stride) + 1
    return n - 1 if (n - 1) * stride >= size + pad else n


def _each(numbers: Sequence[int], n: int) -> list[int]:
    return list(numbers) if len(numbers) == n else [numbers[0]] * n


def _divides(sizes: Sequence[Any], windows: Sequence[Any]) -> bool:
    """Whether all windows have one size, as in ONNX; a single one has at any size."""
    if not all(isinstance(m, int) for m in windows):
        return True
    return all(
        m == 1 or (isinstance(size, int) and m > 0 and size % m == 0)
        for size, m in zip(sizes, windows, strict=True)
    )


def _bounds(size: Any, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The first row of each window, and the one after its last; the size may be symbolic."""
    i = torch.arange(count, device=device)
    begins = torch.div(i * size, count, rounding_mode="floor")
    return begins, torch.div((i + 1) * size + count - 1, count, rounding_mode="floor")


def _rows(begins: Tensor, ends: Tensor, size: Any, count: int) -> Tensor:
    """``(windows, longest)``: the rows of each window; shorter windows repeat their last row."""
    if isinstance(size, int):
        longest = max(-(-(i + 1) * size // count) - i * size // count for i in range(count))
    else:
        longest = (size + count - 1) // count + 1
    return torch.minimum(
        begins[:, None] + torch.arange(longest, device=begins.device), ends[:, None] - 1
    )


def _gathered(value: Tensor, dim: int, rows: Tensor) -> Tensor:
    """The windows along a dimension, counted from the end: ``(..., windows, longest, ...)``."""
    windows: Tensor = value.index_select(dim, rows.flatten()).unflatten(dim, rows.shape)
    return windows


DECOMPOSITIONS: Mapping[Any, Callable[..., Any]] = {
    _ATEN.adaptive_max_pool1d.default: adaptive_max_pool,
    _ATEN.adaptive_max_pool2d.default: adaptive_max_pool,
    _ATEN.adaptive_max_pool3d.default: adaptive_max_pool,
    _ATEN.adaptive_avg_pool1d.default: adaptive_avg_pool,
    _ATEN.adaptive_avg_pool2d.default: adaptive_avg_pool,
    _ATEN._adaptive_avg_pool2d.default: adaptive_avg_pool,
    _ATEN.adaptive_avg_pool3d.default: adaptive_avg_pool,
    _ATEN._adaptive_avg_pool3d.default: adaptive_avg_pool,
    _ATEN.avg_pool2d.default: avg_pool2d,
    _ATEN.avg_pool3d.default: avg_pool3d,
}
