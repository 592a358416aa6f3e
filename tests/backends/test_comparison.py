"""Results are compared by dtype, and a difference is found."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fxelastic.backends.onnxruntime.comparison import SUBNET_TOLERANCES, TOLERANCES, compare

X = torch.tensor([[100.0, -3.0], [0.5, 0.0]])


def problem(actual: object, expected: torch.Tensor) -> str | None:
    difference = compare("v", np.asarray(actual), expected, TOLERANCES)
    return None if difference is None else difference.problem


def test_equal_results_agree() -> None:
    for dtype in (torch.float32, torch.float64, torch.float16, torch.int64, torch.bool):
        assert problem(X.to(dtype).numpy(), X.to(dtype)) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_the_tolerance_is_a_share_of_the_largest_value(dtype: torch.dtype) -> None:
    allowed = 100 * TOLERANCES[str(dtype).removeprefix("torch.")]
    close, far = X.to(dtype).numpy().copy(), X.to(dtype).numpy().copy()
    close[1, 1] += 0.9 * allowed
    far[1, 1] += 1.2 * allowed
    assert problem(close, X.to(dtype)) is None
    assert "the tolerance is" in str(problem(far, X.to(dtype)))


def test_integers_and_flags_have_to_be_equal() -> None:
    assert problem([1, 2, 4], torch.tensor([1, 2, 3])) == "1 elements differ"
    assert problem([True, False], torch.tensor([True, True])) == "1 elements differ"
    large = torch.tensor([2**60])
    assert problem([2**60 + 1], large) == "1 elements differ"


def test_shape_and_dtype_have_to_be_equal() -> None:
    assert problem(X.numpy()[:1], X) == "shape (1, 2) against (2, 2)"
    assert problem(X.numpy().astype(np.float64), X) == "dtype float64 against float32"


def test_infinities_and_nan_have_to_stand_at_the_same_places() -> None:
    odd = torch.tensor([float("inf"), float("nan"), -float("inf"), 1.0])
    assert problem(odd.numpy(), odd) is None
    for i, value in ((0, -np.inf), (1, 0.0), (2, np.nan), (3, np.nan)):
        other = odd.numpy().copy()
        other[i] = value
        assert problem(other, odd) == "infinities or NaN in other elements"


def test_zeros_are_compared_exactly() -> None:
    assert problem(np.float32([0.0]), torch.zeros(1)) is None
    assert "the tolerance is" in str(problem(np.float32([1e-9]), torch.zeros(1)))


@pytest.mark.parametrize(
    ("dtype", "faded"), [(torch.float64, 1e-300), (torch.float32, 1e-38), (torch.float16, 1e-6)]
)
def test_what_has_faded_need_not_agree_to_all_digits(dtype: torch.dtype, faded: float) -> None:
    here = torch.tensor([faded, -0.01 * faded], dtype=torch.float64)
    assert problem((1.01 * here).to(dtype).numpy(), here.to(dtype)) is None
    grown = here / faded * 100 * 6.2e-5
    assert "the tolerance is" in str(problem((1.05 * grown).to(dtype).numpy(), grown.to(dtype)))


def test_empty_results_agree() -> None:
    assert problem(np.zeros((0, 3), np.float32), torch.zeros(0, 3)) is None


def test_subnets_are_allowed_more() -> None:
    assert all(SUBNET_TOLERANCES[name] > TOLERANCES[name] for name in TOLERANCES)
