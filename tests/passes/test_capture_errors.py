"""One clear error for each thing that cannot be captured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxelastic
from fxelastic import CaptureError, FxElasticError, UsageError


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return self.layer(left + right)


class Counts(nn.Module):
    """Keeps a statistic of what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        return self.layer(x) * self.calls


LINEAR: Callable[[], nn.Module] = lambda: nn.Linear(4, 4)  # noqa: E731
X = torch.zeros(2, 4)

#: What is passed, the error's type, what the message says, and what it says to do.
WRONG: dict[str, tuple[Callable[[], Any], dict[str, Any], type[FxElasticError], str, str]] = {
    "a function": (lambda: torch.relu, {}, UsageError, "not a module", "wrap"),
    "a class": (lambda: nn.Linear, {}, UsageError, "class, not an instance", "pass Linear"),
    "none": (lambda: None, {}, UsageError, "not a module", "NoneType"),
    "gamma 0": (LINEAR, {"gamma": 0.0, "example_inputs": X}, UsageError, "gamma", "gamma=0.1"),
    "gamma below 0": (LINEAR, {"gamma": -1, "example_inputs": X}, UsageError, "gamma", "gamma=0.1"),
    "gamma above 1": (
        LINEAR,
        {"gamma": 1.5, "example_inputs": X},
        UsageError,
        "gamma",
        "at most 1",
    ),
    "gamma nan": (
        LINEAR,
        {"gamma": float("nan"), "example_inputs": X},
        UsageError,
        "gamma",
        "above 0",
    ),
    "gamma as text": (LINEAR, {"gamma": "a", "example_inputs": X}, UsageError, "gamma", "number"),
    "unknown backend": (
        LINEAR,
        {"fusion": "tensorrt", "example_inputs": X},
        UsageError,
        "backend",
        "onnxruntime",
    ),
    "inputs as text": (
        LINEAR,
        {"example_inputs": "2x4"},
        UsageError,
        "example_inputs has a type",
        "a tensor",
    ),
    "keyword that is no text": (
        LINEAR,
        {"example_inputs": {1: X}},
        UsageError,
        "keyword input's name",
        "the key 1",
    ),
    "wrong shape": (
        LINEAR,
        {"example_inputs": torch.zeros(2, 5)},
        CaptureError,
        "does not run on the example inputs",
        "example_inputs=",
    ),
    "wrong keyword": (
        LINEAR,
        {"example_inputs": {"pixels": X}},
        CaptureError,
        "does not run on the example inputs",
        "pixels",
    ),
    "an array": (
        LINEAR,
        {"example_inputs": (np.zeros((2, 4)),)},
        UsageError,
        "unsupported type",
        "torch.as_tensor",
    ),
    "a set in a list": (
        LINEAR,
        {"example_inputs": ([{1, 2}],)},
        UsageError,
        "unsupported type",
        "list or tuple of tensors",
    ),
    "missing inputs of two": (
        TwoInputs,
        {},
        CaptureError,
        "none could be inferred",
        '"left": torch.randn(2, ...)',
    ),
    "a model that writes to itself": (
        Counts,
        {"example_inputs": X},
        CaptureError,
        "writes to its own state",
        "disable",
    ),
    "a lazy model": (
        lambda: nn.LazyLinear(4),
        {"example_inputs": X},
        CaptureError,
        "no shape yet",
        "call model(example) once",
    ),
    "a scripted model": (
        lambda: torch.jit.script(nn.Linear(4, 4)),
        {"example_inputs": X},
        UsageError,
        "scripted",
        "original Python module",
    ),
    "a model without parameters": (
        nn.ReLU,
        {"example_inputs": X},
        UsageError,
        "no parameters",
        "that has weights",
    ),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", WRONG)
def test_one_clear_error(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    make, options, error, what, advice = WRONG[name]
    with pytest.raises(error) as caught:
        fxelastic.partition(make(), **options)
    assert what in str(caught.value)
    assert advice in str(caught.value)
    assert not isinstance(caught.value, fxelastic.InternalError)
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
