"""Results are compared by dtype, and a difference is found."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fxelastic.backends.onnxruntime.comparison import (
    SUBNET_TOLERANCES,
    TOLERANCES,
    compare,
    is_rounding,
)

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


def rounded(module: nn.Module, x: torch.Tensor, actual: torch.Tensor) -> bool:
    """Whether ``actual`` differs by rounding from what the module computes."""

    def compute(run: Any) -> dict[str, torch.Tensor]:
        return {"v": run(module, x)}

    with torch.no_grad():
        expected = compute(lambda module, x: module(x))
        found = {"v": actual.numpy()}
        assert compare("v", found["v"], expected["v"], TOLERANCES) is not None
        return is_rounding(found, expected, {"x": x}, compute, TOLERANCES)


class Centred(nn.Module):
    """What is left of a value after its own mean over one element: rounding errors."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * 3.3) / 3.3 - x


def test_two_rounding_errors_of_the_same_size_agree() -> None:
    x = torch.rand(1000, generator=torch.Generator().manual_seed(0)) + 1
    own = Centred()(x)
    assert 0 < float(own.abs().max()) < 1e-6
    assert rounded(Centred(), x, own.flip(0))
    assert rounded(Centred(), x, torch.zeros_like(own))
    assert not rounded(Centred(), x, own + 1e-5)
    assert not rounded(Centred(), x, torch.full_like(own, float("nan")))


class Amplified(nn.Module):
    """A value between 10 and 20, and rounding errors that layers without a norm have amplified."""

    def __init__(self, times: float) -> None:
        super().__init__()
        self.times = times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 10 * x + self.times * Centred()(x)


def test_rounding_errors_that_are_amplified_agree() -> None:
    x = torch.rand(1000, generator=torch.Generator().manual_seed(0)) + 1
    own = Centred()(x)
    assert rounded(Amplified(5e4), x, 10 * x + 5e4 * own.flip(0))
    assert not rounded(Amplified(5e4), x, 10 * x + 1e6 * own.flip(0))
    # No error of so large a share of the result counts as rounding.
    assert not rounded(Amplified(5e7), x, 10 * x + 5e7 * own.flip(0))


class Slow(Centred):
    """Takes a while each time, longer in the thread that begins later."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return super().forward(x)


def test_threads_that_compare_leave_the_settings_of_torch() -> None:
    x = torch.rand(100, generator=torch.Generator().manual_seed(0)) + 1
    before = torch.backends.mkldnn.enabled
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(rounded, Slow(s), x, torch.zeros_like(x)) for s in (0.1, 0.15)]
        assert all(run.result() for run in runs)
    assert torch.backends.mkldnn.enabled == before


def test_other_errors_are_not_rounding() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 8), torch.randn(5, 64)
    assert not rounded(layer, x, layer(x).detach() * 1.001)
    # Large errors of torch itself excuse none that is large beside the inputs.
    wide = 1e6 * x
    assert not rounded(layer, x, layer(wide).detach() - layer(wide).detach() + 1)
    assert not rounded(nn.Softmax(-1), x[:, :0].sum(1, keepdim=True), torch.zeros(5, 1))


class Typed(nn.Module):
    """A module that needs numbers of 32 bits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ torch.ones(x.shape[-1], 1, dtype=torch.float32) * 0


def test_a_module_that_needs_its_dtype_has_no_rounding() -> None:
    assert not rounded(Typed(), torch.randn(3, 4), torch.full((3, 1), 1e-9))
