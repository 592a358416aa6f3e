"""LSTMs with a projection (``proj_size``), computed by LSTMs without one, as in ONNX.

Such a layer returns ``h = P u``, where an LSTM without a projection returns ``u``. Its gates are
``W x + R h``, which equals ``W x + (R P) u``: an LSTM with the recurrent weights ``R P``, whose
results are projected afterwards. The first ``h`` is an input and need not be a projection, so it
becomes one more input with the weights ``R``, which is 0 at all other steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_LSTM: Any = torch.ops.aten.lstm.input


def lstm(
    value: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    has_biases: bool,
    n_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """An LSTM; layer by layer and without projections if it has any.

    Args:
        value: ``(T, N, F)``, or ``(N, T, F)`` with ``batch_first``.
        states: ``h``, ``(layers * directions, N, P)``, and ``c``, ``(layers * directions, N, H)``.
        weights: For each layer and direction the weights of the input, the recurrent weights, two
            biases if there are any, and the projection if there is one.
        has_biases: Whether there are biases.
        n_layers: Number of layers.
        dropout: Share of the features that training drops between layers.
        train: Whether the layer is in training; not supported with a projection.
        bidirectional: Whether a second LSTM of each layer runs from the end to the beginning.
        batch_first: Whether the batch is the first dimension.

    Returns:
        The output of the last layer, ``(T, N, directions * P)`` or ``(N, T, directions * P)``, and
        both states.
    """
    n_directions = 2 if bidirectional else 1
    n_plain = 4 if has_biases else 2
    size = len(weights) // (n_layers * n_directions)
    if size == n_plain:
        result: tuple[Tensor, Tensor, Tensor] = _LSTM(
            value,
            states,
            weights,
            has_biases,
            n_layers,
            dropout,
            train,
            bidirectional,
            batch_first,
        )
        return result
    if batch_first:
        value = value.transpose(0, 1)
    hidden, cells = [], []
    for layer in range(n_layers):
        places = range(layer * n_directions, (layer + 1) * n_directions)
        own = [weights[size * i : size * (i + 1)] for i in places]
        value, h, c = _layer(value, [s[places[0] : places[-1] + 1] for s in states], own)
        hidden.append(h)
        cells.append(c)
    if batch_first:
        value = value.transpose(0, 1)
    return value, torch.cat(hidden), torch.cat(cells)


def _layer(
    value: Tensor, states: Sequence[Tensor], weights: Sequence[Sequence[Tensor]]
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer in one or both directions; the last weight of each is its projection."""
    h, c = states
    n_steps, n_samples, _ = value.shape
    width = h.shape[-1]
    rest = value.new_zeros(n_steps - 1, n_samples, width)
    firsts = [torch.cat([h[:1], rest]), torch.cat([rest, h[1:]])][: len(weights)]
    plain: list[Tensor] = []
    for i, (inputs, recurrent, *biases, projection) in enumerate(weights):
        given = [recurrent if j == i else torch.zeros_like(recurrent) for j in range(len(weights))]
        plain += [torch.cat([inputs, *given], 1), recurrent @ projection, *biases]
    bidirectional = len(weights) == 2
    u, u_last, c_last = _LSTM(
        torch.cat([value, *firsts], -1),
        [torch.zeros_like(c), c],
        plain,
        len(plain) == 4 * len(weights),
        1,
        0.0,
        False,
        bidirectional,
        False,
    )
    projections = [own[-1].t() for own in weights]
    halves = u.chunk(len(weights), -1)
    results = [half @ p for half, p in zip(halves, projections, strict=True)]
    last = [u_last[i] @ p for i, p in enumerate(projections)]
    return torch.cat(results, -1), torch.stack(last), c_last


DECOMPOSITIONS: Mapping[Any, Callable[..., Any]] = {_LSTM: lstm}
