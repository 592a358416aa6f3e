"""The batch is found in dimension 1, by what the model computes, or named there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

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

#: A model and its inputs.
SECOND: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "lstm": (lambda: Classifier(nn.LSTM(8, 8), lambda r: r[0][-1]), X),
    "gru at all steps": (lambda: Classifier(nn.GRU(8, 8), outputs), X),
    "rnn": (lambda: Classifier(nn.RNN(8, 8), lambda r: r[1][0]), X),
    "one sample": (lambda: Classifier(nn.RNN(8, 8), lambda r: r[1][0]), X[:, :1]),
    "states": (lambda: Classifier(nn.GRU(8, 8), outputs), (X, torch.ones(1, SAMPLES, 8))),
    "attention": (lambda: Classifier(nn.MultiheadAttention(8, 2), outputs), X),
    "transformer": (lambda: Classifier(encoder(False), lambda r: r), X),
    "a loop of cells": (OwnCell, X),
}


def more(inputs: Any, dims: Any, n: int) -> list[Tensor]:
    """Other inputs of n samples."""
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    return [
        torch.randn([n if i == dim else size for i, size in enumerate(x.shape)])
        for x, dim in zip(given, dims, strict=True)
    ]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", SECOND)
def test_a_batch_in_dimension_1_varies(name: str) -> None:
    make, inputs = SECOND[name]
    torch.manual_seed(0)
    model = make().eval()
    traced = capture(model, inputs)
    assert set(traced.batch_dims.values()) == {1}
    assert traced.dynamic_batch
    assert traced.warnings == ()
    for n in (1, SAMPLES + 2):
        other = more(inputs, traced.batch_dims.values(), n)
        torch.testing.assert_close(traced(*other), model(*other))


@pytest.mark.parametrize("layers", [1, SAMPLES], ids=["one layer", "as many layers as samples"])
@pytest.mark.parametrize("make", [nn.GRU, nn.RNN])
def test_states_with_their_batch_in_dimension_1_vary(make: type[nn.RNNBase], layers: int) -> None:
    model = Classifier(make(8, 8, layers, batch_first=True), outputs).eval()
    inputs = (X.transpose(0, 1), torch.ones(layers, SAMPLES, 8))
    traced = capture(model, inputs)
    assert traced.batch_dims == {"x": 0, "args_0": 1}
    assert traced.warnings == ()
    other = more(inputs, (0, 1), SAMPLES + 2)
    torch.testing.assert_close(traced(*other), model(*other))


@pytest.mark.parametrize(
    ("dynamic_shapes", "dims", "name"),
    [
        ({"x": {1: "batch"}}, {"x": 1, "args_0": 1}, "batch"),
        (({1: "b"}, {1: "b"}), {"x": 1, "args_0": 1}, "b"),
        ({"x": {0: Dim.STATIC, 1: "N"}}, {"x": 1, "args_0": 1}, "N"),
        ({"x": {0: Dim.STATIC}, "args_0": {0: Dim.STATIC}}, {}, ""),
    ],
)
def test_a_batch_is_named_in_dimension_1(
    dynamic_shapes: Any, dims: dict[str, int], name: str
) -> None:
    model = Classifier(nn.GRU(8, 8), outputs).eval()
    traced = capture(model, (X, torch.ones(1, SAMPLES, 8)), dynamic_shapes=dynamic_shapes)
    assert traced.batch_dims == dims
    assert [s.symbol.name for s in traced.symbols] == [name] * bool(name)


def test_a_name_decides_where_the_results_show_nothing() -> None:
    """A mean over steps and samples: no result has a part for each sample."""
    model = Classifier(nn.Tanh(), lambda r: r.mean((0, 1)))
    traced = capture(model.eval(), X, dynamic_shapes={"x": {1: "batch"}})
    assert traced.batch_dims == {"x": 1}
    assert traced(X.repeat(1, 2, 1)).shape == (4,)


def test_the_batch_is_in_any_dimension_of_a_state() -> None:
    """States (layers, 2, n, 8) beside sequences (n, steps, 8)."""

    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor, cache: Tensor) -> Tensor:
            return self.layer(torch.cat([cache[0].permute(1, 0, 2), x], 1))

    traced = capture(Cached().eval(), (X.transpose(0, 1), torch.ones(1, 2, SAMPLES, 8)))
    assert traced.batch_dims == {"x": 0, "cache": 2}
    assert traced(torch.ones(5, 4, 8), torch.ones(1, 2, 5, 8)).shape == (5, 6, 8)


def test_an_input_without_samples_does_not_hide_those_that_hold_some() -> None:
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, table: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.layer(table), self.layer(x)

    given = (torch.randn(5, 8), torch.randn(3, 8))
    assert capture(Lookup().eval(), given).batch_dims == {"table": 0}
    fixed = {"table": {0: Dim.STATIC}}
    assert capture(Lookup().eval(), given, dynamic_shapes=fixed).batch_dims == {"x": 0}


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
    assert set(traced.batch_dims.values()) == {0}
    assert traced.warnings == ()


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
