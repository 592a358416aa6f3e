"""Functions of single elements that ONNX lacks or the exporter converts wrongly."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

_ATEN = torch.ops.aten

# Mike Giles, "Approximating the erfinv function", GPU Computing Gems 2, for single precision:
# coefficients near zero and near one, from the highest power.
_ERFINV_CENTRE = (
    *(2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087),
    *(-0.00125372503, -0.00417768164, 0.246640727, 1.50140941),
)
_ERFINV_TAILS = (
    *(-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773),
    *(-0.0076224613, 0.00943887047, 1.00167406, 2.83297682),
)


def hypot(x: Tensor, y: Tensor) -> Tensor:
    """``sqrt(x² + y²)`` without overflow; infinite if one of them is."""
    x, y = x.abs(), y.abs()
    large, small = torch.where(x > y, x, y), torch.where(x > y, y, x)
    share = small / torch.where(large == 0, 1.0, large)
    return (large * (1 + share.square()).sqrt()).masked_fill(x.isinf() | y.isinf(), math.inf)


def atan2(y: Tensor, x: Tensor) -> Tensor:
    """The angle of ``(x, y)``, also on the axes and for infinities."""
    dtype = torch.result_type(y, x)
    dtype = dtype if dtype.is_floating_point else torch.get_default_dtype()
    y, x = y.to(dtype), x.to(dtype)
    both = x.isinf() & y.isinf()
    y, x = torch.where(both, y.sign(), y), torch.where(both, x.sign(), x)
    turn = torch.where(x < 0, math.pi, 0.0)
    angle = torch.atan(y / x) + torch.where(y < 0, -turn, turn)
    # The signs of zeros don't matter here.
    angle = torch.where(x == 0, torch.atan(y * math.inf), angle)
    return torch.where((y == 0) & x.isnan().logical_not(), turn, angle)


def angle(x: Tensor) -> Tensor:
    """The angle of complex numbers; the operator itself for real numbers."""
    if x.is_complex():
        return atan2(x.imag, x.real)
    result: Tensor = _ATEN.angle.default(x)
    return result


def erfinv(x: Tensor) -> Tensor:
    """The inverse of the error function; the operator itself for 64 bits."""
    if x.dtype == torch.float64:
        result: Tensor = _ATEN.erfinv.default(x)
        return result
    dtype = x.dtype if x.is_floating_point() else torch.float32
    x = x.to(torch.float32)
    w = -torch.log((1 - x) * (1 + x))
    # Both formulas run on all elements; the unused one must not give infinity.
    centre = _polynomial(_ERFINV_CENTRE, w.clamp(max=5.0) - 2.5)
    tails = _polynomial(_ERFINV_TAILS, w.clamp(min=5.0, max=100.0).sqrt() - 3)
    found = torch.where(w < 5, centre, tails) * x
    found = torch.where(x.abs() == 1, x * math.inf, found)
    return found.masked_fill((x.abs() <= 1).logical_not(), math.nan).to(dtype)


def rrelu(
    x: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, *_: Any
) -> Tensor:
    """A leaky ReLU with the mean slope; the operator itself if the slope is random."""
    result: Tensor
    if training:
        result = _ATEN.rrelu.default(x, lower, upper, training)
    else:
        result = _ATEN.leaky_relu.default(x, (lower + upper) / 2)
    return result


def fmax(x: Tensor, y: Tensor) -> Tensor:
    """The larger number; NaN only if both are NaN."""
    return torch.where(((x >= y) & x.isnan().logical_not()) | y.isnan(), x, y)


def fmin(x: Tensor, y: Tensor) -> Tensor:
    """The smaller number; NaN only if both are NaN."""
    return torch.where(((x <= y) & x.isnan().logical_not()) | y.isnan(), x, y)


def copysign(x: Tensor, sign: Tensor | float) -> Tensor:
    """The magnitude of one with the sign of the other."""
    size = x.abs()
    if isinstance(sign, Tensor):
        return torch.where(sign.signbit(), -size, size)
    return -size if math.copysign(1, sign) < 0 else size


def mean_as(x: Tensor, *dims: Any, dtype: torch.dtype | None = None, **kw: Any) -> Tensor:
    """A mean in another dtype, to which the elements are converted first."""
    operator = _ATEN.mean.dim if dims or kw else _ATEN.mean.default
    result: Tensor = operator(x if dtype is None else x.to(dtype), *dims, **kw)
    return result


def aminmax(x: Tensor, *, dim: int | None = None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The smallest and the largest element."""
    if dim is not None:
        return x.amin(dim, keepdim), x.amax(dim, keepdim)
    shape = [1] * x.dim() if keepdim else []
    x = x.flatten()
    return x.amin(0).reshape(shape), x.amax(0).reshape(shape)


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    result = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        result = result * x + coefficient
    return result


DECOMPOSITIONS: Mapping[Any, Callable[..., Any]] = {
    _ATEN.aminmax.default: aminmax,
    _ATEN.mean.default: mean_as,
    _ATEN.mean.dim: mean_as,
    _ATEN.hypot.default: hypot,
    _ATEN.atan2.default: atan2,
    _ATEN.arctan2.default: atan2,
    _ATEN.angle.default: angle,
    _ATEN.erfinv.default: erfinv,
    _ATEN.special_erfinv.default: erfinv,
    _ATEN.rrelu.default: rrelu,
    _ATEN.fmax.default: fmax,
    _ATEN.fmin.default: fmin,
    _ATEN.copysign.Tensor: copysign,
    _ATEN.copysign.Scalar: copysign,
}
