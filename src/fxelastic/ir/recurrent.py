"""Trace recurrent layers as single operators, whatever the length of their sequences."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

_KEYS = (torch._C.DispatchKey.CompositeImplicitAutograd, torch._C.DispatchKey.Autograd)


@contextlib.contextmanager
def recurrent_shapes() -> Iterator[None]:
    """Compute only the shapes of recurrent layers' results during a trace.

    A trace records LSTM, GRU and RNN operators whole, but torch evaluates them on fake tensors step
    by step, which fixes the number of steps. ``torch.export`` itself replaces Python kernels of
    operators in this way.
    """
    saved = {op: dict(op.py_kernels) for op in _SHAPES}
    try:
        for op, shapes in _SHAPES.items():
            op.py_kernels.update({key: shapes for key in _KEYS if key in op.py_kernels})
            op._dispatch_cache.clear()
        yield
    finally:
        for op, kernels in saved.items():
            op.py_kernels.clear()
            op.py_kernels.update(kernels)
            op._dispatch_cache.clear()


def _results(
    value: Tensor,
    states: Tensor | Sequence[Tensor],
    weights: Sequence[Tensor],
    has_biases: bool,
    n_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """The output and the last states; an LSTM has two states."""
    found = (states,) if isinstance(states, Tensor) else tuple(states)
    output = _output(value, found[0], bidirectional, batch_first)
    return (output, *(state.new_empty(state.shape) for state in found))


def _output(value: Tensor, hidden: Tensor, bidirectional: bool, batch_first: bool) -> Tensor:
    """An output, in the memory layout of torch's own kernels: steps are outermost."""
    steps, samples = (1, 0) if batch_first else (0, 1)
    width = hidden.shape[-1] * (2 if bidirectional else 1)
    result = value.new_empty(value.shape[steps], value.shape[samples], width)
    return result.transpose(0, 1) if batch_first else result


_ATEN = torch.ops.aten
_SHAPES: dict[Any, Callable[..., tuple[Tensor, ...]]] = {
    _ATEN.lstm.input: _results,
    _ATEN.gru.input: _results,
    _ATEN.rnn_tanh.input: _results,
    _ATEN.rnn_relu.input: _results,
}
