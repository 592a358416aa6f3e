"""A batch in dimension 1 is named as such, by what the model computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxelastic.passes import capture

STEPS, SAMPLES = 5, 3


class Classifier(nn.Module):
    """A layer over sequences between two others."""

    def __init__(self, layer: nn.Module, ends: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(8, 8), layer, nn.Linear(8, 4)
        self.ends = ends

    def forward(self, x: Tensor, *states: Any) -> Any:
        """Sequences (steps, n, 8)."""
        x = self.first(x)
        if isinstance(self.layer, nn.MultiheadAttention):
            return self.last(self.ends(self.layer(x, x, x)))
        return self.last(self.ends(self.layer(x, *states)))


class OwnCell(nn.Module):
    """A loop over the steps with a cell: no layer has a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.last = nn.GRUCell(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        """Sequences (steps, n, 8)."""
        h = torch.zeros_like(x[0])
        for step in x:
            h = self.cell(step, h)
        return self.last(h)


def outputs(result: Any) -> Tensor:
    found: Tensor = result[0]
    return found


def encoder(batch_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=batch_first)
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)


X = torch.linspace(-1, 1, STEPS * SAMPLES * 8).reshape(STEPS, SAMPLES, 8).sin()

#: A model, its inputs, which of them are named, and what to do.
SECOND: dict[str, tuple[Callable[[], nn.Module], Any, str, str]] = {
    "lstm": (lambda: Classifier(nn.LSTM(8, 8), lambda r: r[0][-1]), X, "of 'x'", "build 'layer'"),
    "gru at all steps": (lambda: Classifier(nn.GRU(8, 8), outputs), X, "of 'x'", "build 'layer'"),
    "rnn": (lambda: Classifier(nn.RNN(8, 8), lambda r: r[1][0]), X, "of 'x'", "build 'layer'"),
    "one sample": (
        lambda: Classifier(nn.RNN(8, 8), lambda r: r[1][0]),
        X[:, :1],
        "of 'x'",
        "build 'layer'",
    ),
    "states": (
        lambda: Classifier(nn.GRU(8, 8), outputs),
        (X, torch.ones(1, SAMPLES, 8)),
        "of 'x', 'args_0'",
        "build 'layer'",
    ),
    "attention": (
        lambda: Classifier(nn.MultiheadAttention(8, 2), outputs),
        X,
        "of 'x'",
        "build 'layer'",
    ),
    "transformer": (
        lambda: Classifier(encoder(False), lambda r: r),
        X,
        "of 'x'",
        "build 'layer.layers.0'",
    ),
    "a loop of cells": (OwnCell, X, "of 'x'", "a module that takes the batch in dimension 0"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", SECOND)
def test_a_batch_in_dimension_1_is_named(name: str) -> None:
    make, inputs, which, remedy = SECOND[name]
    torch.manual_seed(0)
    traced = capture(make().eval(), inputs)
    (warning,) = (w for w in traced.warnings if "dimension 1" in w)
    assert f"the batch seems to be in dimension 1 {which}:" in warning
    assert remedy in warning
    assert not any("the batch size is fixed" in w for w in traced.warnings)


@pytest.mark.parametrize("layers", [1, SAMPLES], ids=["one layer", "as many layers as samples"])
@pytest.mark.parametrize("make", [nn.GRU, nn.RNN])
def test_states_with_their_batch_in_dimension_1_are_named(
    make: type[nn.RNNBase], layers: int
) -> None:
    model = Classifier(make(8, 8, layers, batch_first=True), outputs).eval()
    traced = capture(model, (X.transpose(0, 1), torch.ones(layers, SAMPLES, 8)))
    (warning,) = traced.warnings
    assert warning.startswith("the batch seems to be in dimension 1 of 'args_0', and")
    assert "in dimension 0 of 'x'; wrap the model" in warning


FIRST: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "lstm": (lambda: Classifier(nn.LSTM(8, 8, batch_first=True), outputs), X),
    "attention": (
        lambda: Classifier(nn.MultiheadAttention(8, 2, batch_first=True), outputs),
        X,
    ),
    "transformer": (lambda: Classifier(encoder(True), lambda r: r), X),
    "each step alone": (lambda: Classifier(nn.Tanh(), lambda r: r), X),
    "a batch that mixes": (
        lambda: Classifier(nn.Tanh(), lambda r: r - r.mean((0, 1), keepdim=True)),
        X,
    ),
    "rows": (lambda: nn.Sequential(nn.Linear(8, 8), nn.Softmax(0)), X[:, 0]),
}


@pytest.mark.parametrize("name", FIRST)
def test_a_batch_in_dimension_0_gives_no_warning(name: str) -> None:
    make, inputs = FIRST[name]
    torch.manual_seed(0)
    traced = capture(make().eval(), inputs)
    assert not any("dimension 1" in warning for warning in traced.warnings)


def test_a_fixed_batch_is_not_taken_for_another_dimension() -> None:
    model = Classifier(nn.Tanh(), lambda r: r.reshape(STEPS, -1)[:, :8])
    (warning,) = capture(model.eval(), X).warnings
    assert warning.startswith("the batch size is fixed to the example's")


def test_a_model_that_gives_nan_for_one_sample_is_captured() -> None:
    class Centred(nn.Module):
        """Divides by the deviation of the batch, which is 0 for one sample."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.layer(x)
            return (x - x.mean(0)) / (x - x.mean(0)).square().mean(0).sqrt()

    assert capture(Centred().eval(), torch.randn(3, 4)).graph
