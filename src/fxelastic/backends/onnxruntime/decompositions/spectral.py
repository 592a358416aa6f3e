"""A signal from its short-time spectrum, by one transposed convolution."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_ATEN = torch.ops.aten


def istft(
    spectrum: Tensor,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Tensor | None = None,
    center: bool = True,
    normalized: bool = False,
    onesided: bool | None = None,
    length: int | None = None,
    return_complex: bool = False,
) -> Tensor:
    """The real signal of a short-time Fourier transform.

    Args:
        spectrum: Complex, ``(frequencies, frames)`` or ``(N, frequencies, frames)``.
        n_fft: Samples in a frame.
        hop_length: Samples from frame to frame; a quarter of ``n_fft`` if None.
        win_length: Samples in the window; ``n_fft`` if None.
        window: ``(win_length,)``, or None for ones.
        center: Whether the first frame is centred on the first sample.
        normalized: Whether the spectrum was divided by the root of ``n_fft``.
        onesided: Whether it has half of the frequencies; the other half is not read.
        length: Samples in the result; by the number of frames if None.
        return_complex: Whether the signal is complex; the operator itself handles this.

    Returns:
        ``(samples,)`` or ``(N, samples)``.
    """
    if return_complex:
        result: Tensor = _ATEN.istft.default(
            *(spectrum, n_fft, hop_length, win_length, window, center),
            *(normalized, onesided, length, return_complex),
        )
        return result
    parts = torch.view_as_real(spectrum)
    batched = parts.dim() == 4
    parts = parts if batched else parts.unsqueeze(0)
    parts = parts.narrow(1, 0, n_fft // 2 + 1)
    hop = hop_length or n_fft // 4
    width = win_length or n_fft
    if window is None:
        window = torch.ones(width, dtype=parts.dtype, device=parts.device)
    before = (n_fft - width) // 2
    window = F.pad(window, (before, n_fft - width - before))
    basis = _basis(n_fft, parts.dtype, normalized).to(parts.device) * window
    signal = F.conv_transpose1d(parts.permute(0, 3, 1, 2).flatten(1, 2), basis, stride=hop)
    frames = torch.ones_like(parts[:1, :1, :, 0])
    weight = F.conv_transpose1d(frames, window.square().reshape(1, 1, -1), stride=hop)
    start = n_fft // 2 if center else 0
    stop = signal.shape[-1] - start if length is None else min(start + length, signal.shape[-1])
    signal = (signal[:, 0, start:stop]) / weight[:, 0, start:stop]
    if length is not None:
        signal = F.pad(signal, (0, length - (stop - start)))
    return signal if batched else signal.squeeze(0)


def _basis(n_fft: int, dtype: torch.dtype, normalized: bool) -> Tensor:
    """``(2 * frequencies, 1, n_fft)``: the contribution of each real and imaginary part."""
    k = torch.arange(n_fft // 2 + 1, dtype=torch.float64)[:, None]
    # Reduced first, since large angles lose digits.
    angle = (k * torch.arange(n_fft)).remainder(n_fft) * (2 * math.pi / n_fft)
    # Each frequency counts twice for its mirror image, except the first, and the last if even.
    twice = torch.where((k == 0) | (2 * k == n_fft), 1.0, 2.0)
    real, imaginary = twice * angle.cos(), -twice * angle.sin()
    imaginary = torch.where((k == 0) | (2 * k == n_fft), 0.0, imaginary)
    scale = 1 / math.sqrt(n_fft) if normalized else 1 / n_fft
    return (torch.cat([real, imaginary]) * scale).to(dtype).unsqueeze(1)


DECOMPOSITIONS: Mapping[Any, Callable[..., Any]] = {_ATEN.istft.default: istft}
