"""The families of operators hold together."""

from __future__ import annotations

import pytest
import torch

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
