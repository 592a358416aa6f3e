"""The families of operators hold together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic.ir import flops, operators

FAMILIES = {
    name: family
    for name, family in vars(operators).items()
    if name.isupper() and isinstance(family, frozenset)
}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_name_is_an_operator_of_torch(family: frozenset[str]) -> None:
    for name in family:
        assert hasattr(torch.ops.aten, name.removeprefix("aten.")), name


def test_exactly_the_matrix_operators_have_flops() -> None:
    assert flops._COUNTERS.keys() == operators.MATRIX_OPERATORS


def test_activations_keep_shape_and_dtype() -> None:
    x = torch.linspace(-3, 3, 6, dtype=torch.float64).reshape(2, 3)
    for name in operators.ACTIVATIONS:
        result = getattr(torch.ops.aten, name.removeprefix("aten."))(x)
        assert (result.shape, result.dtype) == (x.shape, x.dtype), name


@pytest.mark.parametrize(
    ("equation", "shapes", "flops_each"),
    [
        ("bhid,bhjd->bhij", [(2, 3, 4, 5), (2, 3, 6, 5)], 2 * 2 * 3 * 4 * 6 * 5),
        ("b h i d, b h j d -> b h i j", [(2, 3, 4, 5), (2, 3, 6, 5)], 2 * 2 * 3 * 4 * 6 * 5),
        ("...i,ij->...j", [(7, 3, 4), (4, 5)], 2 * 7 * 3 * 4 * 5),
        ("i...,i...->...", [(4, 7, 1), (4, 1, 3)], 2 * 4 * 7 * 3),
    ],
)
def test_an_einsum_counts_each_of_its_dimensions(
    equation: str, shapes: list[tuple[int, ...]], flops_each: int
) -> None:
    tensors = [torch.zeros(shape) for shape in shapes]
    assert torch.einsum(equation, tensors) is not None
    node: Any = SimpleNamespace(args=(equation, tensors))
    assert flops._einsum(node, lambda value: tuple(value.shape)) == flops_each


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("bias", [True, False])
def test_a_recurrent_layer_counts_its_weights(layer: type[nn.RNNBase], bias: bool) -> None:
    """Symptom: a layer without a bias could not be partitioned."""

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer(4, 6, bias=bias, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            """Values (n, steps, 4)."""
            found: Tensor = self.layer(x)[0]
            return found

    model = First().eval()
    partition = fxelastic.partition(model, 1.0, example_inputs=torch.zeros(2, 5, 4))
    weights = sum(w.numel() for w in model.parameters() if w.dim() == 2)
    assert sum(block.flops for block in partition.blocks) == 2 * 5 * weights
