"""Messages that no other test provokes, each from a model that a user may have."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic import CaptureError, ExportError, FxElasticError, PartitionError, UsageError
from fxelastic.testing import assert_partition

X = torch.linspace(-1, 1, 24).reshape(3, 8)


class Does(nn.Module):
    """A function of what two layers compute."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
        self.function = function

    def forward(self, x: Tensor) -> Any:
        """Samples (n, 8)."""
        return self.function(self.layers(x))


class Holds(nn.Module):
    """A model that can be made in one way only, and holds what can't be copied."""

    def __new__(cls, size: int) -> Holds:
        return super().__new__(cls)

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer, self.lock = nn.Linear(size, size), threading.Lock()

    def forward(self, x: Tensor) -> Any:
        """Samples (n, size)."""
        return self.layer(x)


class Decides(nn.Module):
    """A part that is kept whole, and holds what can't be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        """Any values."""
        return x if x.sum() > 0 else -x


class Scales(Does):
    """Scales what the last layer gives by a number that the first one gives."""

    def __init__(self) -> None:
        super().__init__(torch.tanh)

    def forward(self, x: Tensor) -> Any:
        """Samples (n, 8)."""
        x = self.layers[0](x)
        return self.layers[2](self.function(x)) * x.mean().item()


class Endless(nn.Module):
    """Gives a list that contains itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        """Samples (n, 8)."""
        found: list[Any] = [self.layer(x)]
        found.append(found)
        return found


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)).eval()


def supernet(model: nn.Module | None = None, **options: Any) -> Any:
    options = {"example_inputs": X, "kinds": (), **options}
    return fxelastic.expand(model or mlp(), 0.6, **options)


def calibrated(calibration: Any) -> Callable[[Path], object]:
    return lambda _: supernet(kinds=["merged"], calibration=calibration)


def call(*args: Any, **kwargs: Any) -> Callable[[Path], object]:
    return lambda _: fxelastic.partition(mlp(), 0.6, X)(*args, **kwargs)


def exported(model: nn.Module | None = None, **options: Any) -> Callable[[Path], object]:
    return lambda folder: fxelastic.export(supernet(model), folder / "bundle", **options)


#: What provokes a message, its type, and what it says.
PROVOKED: dict[str, tuple[Callable[[Path], object], type[FxElasticError], str]] = {
    "calibration of a number": (
        calibrated(3),
        UsageError,
        "calibration must be a tensor or an iterable",
    ),
    "calibration of numbers": (calibrated([3]), UsageError, "batch 0 of calibration"),
    "calibration of nothing": (
        calibrated([]),
        UsageError,
        "calibration must have at least one batch",
    ),
    "a call of another structure": (call([X]), UsageError, "have another structure"),
    "a call without a tensor": (call(3), UsageError, "have another structure"),
    "a call of another size": (call(X[:, :4]), UsageError, "has another shape or dtype"),
    "a call of another dtype": (call(X.double()), UsageError, "has another shape or dtype"),
    "a call that gives an input twice": (call(X, input=X), UsageError, "is given twice"),
    "a result that contains itself": (
        lambda _: fxelastic.partition(Endless(), 1.0, X),
        CaptureError,
        "nested too deeply",
    ),
    "a lock in a model of its own making": (
        lambda _: fxelastic.partition(Holds(8), 1.0, X),
        CaptureError,
        "the modules of Holds can't be copied",
    ),
    "a lock in a part that is kept whole": (
        lambda _: supernet(nn.Sequential(nn.Linear(8, 8), Decides()).eval()),
        UsageError,
        "the opaque module Decides cannot be copied",
    ),
    "an export of a model": (
        lambda folder: fxelastic.export(mlp(), folder / "bundle"),  # type: ignore[arg-type]
        UsageError,
        "supernet must be a Supernet",
    ),
    "an old operator set": (exported(opset=9), UsageError, "opset must be from"),
    "no jobs": (exported(jobs=0), UsageError, "jobs must be at least 1"),
    "a complex result": (
        exported(Does(lambda x: torch.complex(x, x)).eval()),
        ExportError,
        "compute with the real and the imaginary parts separately",
    ),
    "a size as a result": (
        exported(Does(lambda x: (x, x.shape[0])).eval()),
        ExportError,
        "can't cross a cut or be a result",
    ),
    "no golden text": (
        lambda _: assert_partition(mlp(), None),  # type: ignore[arg-type]
        UsageError,
        "golden must be a text",
    ),
    "another result where torch compiles": (
        lambda _: fxelastic.partition(
            Does(lambda x: 2 * x if torch.compiler.is_compiling() else x), 1.0, X
        ),
        CaptureError,
        "torch.compiler.is_compiling",
    ),
    "a number between blocks": (
        lambda _: fxelastic.partition(Scales(), 0.4, X),
        PartitionError,
        "keep numbers that the model takes out of tensors",
    ),
    "a number as a result": (
        lambda _: fxelastic.partition(Does(lambda x: (x, x.mean().item())), 1.0, X),
        PartitionError,
        "keep numbers that the model takes out of tensors",
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", PROVOKED)
def test_a_mistake_gives_a_message(name: str, tmp_path: Path) -> None:
    provoke, error, text = PROVOKED[name]
    with pytest.raises(error) as caught:
        provoke(tmp_path)
    assert text in str(caught.value)
    assert len(str(caught.value)) <= 600


class Global:
    """State that a copy of a model shares with it."""

    n_calls = 0


def counted(x: Tensor) -> Tensor:
    Global.n_calls += 1
    return x * (2 if Global.n_calls % 2 else 1)


#: What is warned of, once a model is captured.
WARNED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "random numbers": (
        lambda x: nn.functional.dropout(x, 0.5, training=True),
        "the model draws random numbers in eval mode",
    ),
    "rounding where torch compiles": (
        lambda x: x * (1 + 1e-5 * torch.compiler.is_compiling()),
        "the capture agrees with the model to",
    ),
    "a single sample that has no second": (
        lambda x: x if x.shape[0] == 1 else x + x[1],
        "at batch size 1 the capture can't be run, but the model can",
    ),
    "a result that is not a tensor": (
        lambda x: (x, object()),
        "a result that is not a tensor differs in each call",
    ),
    "a count": (counted, "the model is random in eval mode, or keeps state"),
}


@pytest.mark.parametrize("name", WARNED)
def test_a_warning_is_given_for(name: str) -> None:
    function, text = WARNED[name]
    partition = fxelastic.partition(Does(function).eval(), 1.0, X)
    assert any(text in warning for warning in partition.warnings)


class Declares(Does):
    """Says which inputs it takes, and fails to."""

    @property
    def example_input_array(self) -> Tensor:
        """Not there."""
        raise KeyError("no such sample")


def test_a_declaration_that_fails_is_named(caplog: pytest.LogCaptureFixture) -> None:
    fxelastic.partition(Declares(torch.tanh).eval(), 1.0)
    assert "example_input_array of Declares can't be read: KeyError" in caplog.text


def test_results_of_8_bits_are_compared() -> None:
    partition = fxelastic.partition(Does(lambda x: x.to(torch.float8_e4m3fn)).eval(), 1.0, X)
    assert partition.dynamic_batch
    assert not partition.warnings


def test_an_example_without_dimensions_is_of_one_size() -> None:
    model = Does(lambda x: x)
    model.layers = nn.Sequential(nn.Embedding(4, 8))
    (warning,) = fxelastic.partition(model.eval(), 1.0, torch.tensor(1)).warnings
    assert "no input has a batch dimension" in warning
