"""Recurrent layers are converted correctly, whatever the length of their sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic.backends.onnxruntime.decompositions.recurrent import lstm
from tests import sized_models

SIZES: list[dict[str, Any]] = [
    {},
    {"bidirectional": True},
    {"num_layers": 2},
    {"num_layers": 2, "bidirectional": True},
    {"bias": False},
    {"num_layers": 2, "bidirectional": True, "bias": False},
]


class Tagger(nn.Module):
    """A recurrent layer between two others; its states are results too."""

    def __init__(self, proj_size: int = 4, **options: Any) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.lstm = nn.LSTM(6, 8, proj_size=proj_size, batch_first=True, **options)
        directions = 2 if options.get("bidirectional") else 1
        self.last = nn.Linear((proj_size or 8) * directions, 3)

    def forward(self, x: Tensor) -> Any:
        """Sequences (n, steps, 6)."""
        y, states = self.lstm(self.first(x))
        return self.last(y), states


class Continues(Tagger):
    """The same from states that are given."""

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Any:
        """Sequences (n, steps, 6), states (n, layers, 4) and (n, layers, 8)."""
        y, states = self.lstm(self.first(x), (h.transpose(0, 1), c.transpose(0, 1)))
        return self.last(y), states


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_it_computes_what_torch_does_from_any_state(
    sizes: dict[str, Any], batch_first: bool
) -> None:
    torch.manual_seed(0)
    layer = nn.LSTM(5, 8, proj_size=3, batch_first=batch_first, **sizes).double()
    n_layers, directions = layer.num_layers, 2 if layer.bidirectional else 1
    states = [torch.randn(n_layers * directions, 4, n).double() for n in (3, 8)]
    x = torch.randn(*((4, 7, 5) if batch_first else (7, 4, 5))).double()
    with torch.no_grad():
        expected = layer(x, tuple(states))
        y, *after = lstm(
            x,
            states,
            layer._flat_weights,
            layer.bias,
            n_layers,
            0.0,
            False,
            layer.bidirectional,
            batch_first,
        )
    torch.testing.assert_close((y, tuple(after)), expected)


@pytest.mark.parametrize("sizes", SIZES[:4:3] + [{"bias": False}], ids=str)
def test_a_projected_lstm_is_exported(sizes: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Tagger(**sizes).eval(), torch.randn(3, 5, 6)
    supernet = fxelastic.expand(model, 0.6, example_inputs=x, kinds=())
    fxelastic.export(supernet, tmp_path / "bundle", n_subnets=0)


def test_a_projected_lstm_is_exported_from_given_states(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Continues(num_layers=2).eval()
    inputs = (torch.randn(3, 5, 6), torch.randn(3, 2, 4), torch.randn(3, 2, 8))
    supernet = fxelastic.expand(model, 0.6, example_inputs=inputs, kinds=())
    fxelastic.export(supernet, tmp_path / "bundle", n_subnets=0)


def test_an_lstm_without_a_projection_is_left_as_it_is(tmp_path: Path) -> None:
    model, x = Tagger(0, bidirectional=True).eval(), torch.randn(3, 5, 6)
    supernet = fxelastic.expand(model, 0.6, example_inputs=x, kinds=())
    fxelastic.export(supernet, tmp_path / "bundle", n_subnets=0)


def test_the_length_of_a_sequence_varies_in_an_export(tmp_path: Path) -> None:
    torch.manual_seed(0)
    supernet = fxelastic.expand(
        sized_models.Tagger().eval(),
        0.9,
        example_inputs=torch.arange(8).reshape(2, 4),
        dynamic_shapes={1: "seq"},
        kinds=(),
    )
    record = fxelastic.export(supernet, tmp_path / "bundle").manifest.verification
    assert record is not None
    assert record.sizes == ({"seq": 1}, {"seq": 16})


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_a_simple_recurrent_network_is_one_operator(nonlinearity: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.RNN(
        5, 4, 2, nonlinearity=nonlinearity, bias=False, batch_first=True, bidirectional=True
    )
    supernet = fxelastic.expand(layer.eval(), 1.0, example_inputs=torch.randn(2, 3, 5), kinds=())
    bundle = fxelastic.export(supernet, tmp_path / "bundle")
    (path,) = (bundle.path / "branches").glob("*.onnx")
    assert [node.op_type for node in onnx.load(path).graph.node].count("RNN") == 2
