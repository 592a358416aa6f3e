"""Simple recurrent networks in ONNX; of recurrent layers the exporter knows only LSTM and GRU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from onnxscript import opset18

# Its types are for compiled functions; these are traced.
op: Any = opset18


def rnn(
    value: Any,
    state: Any,
    weights: Sequence[Any],
    has_biases: bool,
    n_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
    *,
    activation: str,
) -> tuple[Any, Any]:
    """The layers of ``nn.RNN``, each as one ONNX operator.

    Args:
        value: ``(T, N, F)``, or ``(N, T, F)`` with ``batch_first``.
        state: The first state, ``(layers * directions, N, H)``.
        weights: For each layer and direction the weights of the input, the recurrent weights, and
            two biases if there are any.
        has_biases: Whether there are biases.
        n_layers: Number of layers.
        dropout: Not used, since exports are of models in eval mode.
        train: Not used.
        bidirectional: Whether a second network of each layer runs from the end to the beginning.
        batch_first: Whether the batch is the first dimension.
        activation: ONNX's name of the activation.

    Returns:
        The output of the last layer and the last states, in the layouts of the inputs.
    """
    n_directions = 2 if bidirectional else 1
    size = 4 if has_biases else 2
    if batch_first:
        value = op.Transpose(value, perm=[1, 0, 2])
    lasts = []
    for layer in range(n_layers):
        first = layer * n_directions
        own = [weights[size * i : size * (i + 1)] for i in range(first, first + n_directions)]
        results, last = op.RNN(
            value,
            _stacked([each[0] for each in own]),
            _stacked([each[1] for each in own]),
            _stacked([op.Concat(*each[2:], axis=0) for each in own]) if has_biases else None,
            None,
            op.Slice(state, [first], [first + n_directions], [0]),
            activations=[activation] * n_directions,
            direction="bidirectional" if bidirectional else "forward",
            hidden_size=state.shape[2],
        )
        # (T, directions, N, H) to (T, N, directions * H)
        value = op.Reshape(op.Transpose(results, perm=[0, 2, 1, 3]), [0, 0, -1])
        lasts.append(last)
    if batch_first:
        value = op.Transpose(value, perm=[1, 0, 2])
    return value, op.Concat(*lasts, axis=0)


def _stacked(values: Sequence[Any]) -> Any:
    return op.Concat(*(op.Unsqueeze(value, [0]) for value in values), axis=0)


TRANSLATIONS: Mapping[tuple[str, str, str], Callable[..., Any]] = {
    ("aten", "rnn_tanh", "input"): partial(rnn, activation="Tanh"),
    ("aten", "rnn_relu", "input"): partial(rnn, activation="Relu"),
}
