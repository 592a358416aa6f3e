"""Example inputs are inferred for the models people have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fxelastic.errors import CaptureError
from fxelastic.passes.arguments import resolve_arguments


class Lightning(nn.Linear):
    example_input_array = torch.zeros(3, 4)


class HuggingFace(nn.Module):
    dummy_inputs = {"ids": torch.tensor([[1, 2, 3]])}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.embedding(ids)


class Timm(nn.Conv2d):
    default_cfg = {"input_size": (3, 20, 30)}  # noqa: RUF012


class TimmConfig(nn.Conv2d):
    pretrained_cfg = SimpleNamespace(input_size=(3, 20, 30))


class Raises(nn.Linear):
    """What it declares can't be read, as in classes that leave a property to their heirs."""

    @property
    def example_input_array(self) -> Any:
        raise RuntimeError("no example")

    @property
    def dummy_inputs(self) -> Any:
        raise KeyError("input_ids")

    @property
    def default_cfg(self) -> Any:
        raise ValueError("no configuration")


class Patches(nn.Module):
    """Refuses all sizes but the one it states."""

    def __init__(self) -> None:
        super().__init__()
        self.image_size = 48
        self.patch = nn.Conv2d(3, 8, 16, 16)
        self.position = nn.Parameter(torch.zeros(8, 3, 3))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.patch(image) + self.position


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (Lightning(4, 4), (3, 4)),
        (HuggingFace(), (1, 3)),
        (Timm(3, 4, 3), (2, 3, 20, 30)),
        (TimmConfig(3, 4, 3), (2, 3, 20, 30)),
        (Raises(4, 4), (2, 4)),
        (Patches(), (2, 3, 48, 48)),
        (
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, 2)),
            (2, 3, 32, 32),
        ),
        (nn.Conv1d(2, 4, 3), (2, 2, 1024)),
        (nn.Sequential(nn.Flatten(), nn.Linear(784, 2)), (2, 784)),
        (nn.Embedding(5, 3), (2, 16)),
        (nn.GRU(3, 4, batch_first=True), (2, 16, 3)),
        (nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 2)), (2, 16, 6)),
    ],
    ids=lambda value: (
        type(value).__name__ if isinstance(value, nn.Module) else "x".join(map(str, value))
    ),
)
def test_inputs_are_inferred(model: nn.Module, shape: tuple[int, ...]) -> None:
    args, kwargs = resolve_arguments(model, None)
    (value,) = (*args, *kwargs.values())
    assert tuple(value.shape) == shape


def test_inputs_have_the_models_dtype() -> None:
    (value,), _ = resolve_arguments(nn.Linear(4, 4).double(), None)
    assert value.dtype == torch.float64


@pytest.mark.parametrize(
    ("given", "args", "kwargs"),
    [
        (torch.ones(1), 1, []),
        ((torch.ones(1), torch.ones(1)), 2, []),
        ({"a": torch.ones(1)}, 0, ["a"]),
        (((torch.ones(1),), {"b": 1}), 1, ["b"]),
        (((torch.ones(1),), torch.ones(1)), 2, []),
        ((), 0, []),
    ],
)
def test_what_is_given_is_normalised(given: Any, args: int, kwargs: list[str]) -> None:
    found, found_kwargs = resolve_arguments(nn.Linear(1, 1), given)
    assert (len(found), list(found_kwargs)) == (args, kwargs)


def test_failed_guesses_are_told() -> None:
    class Refuses(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("not like this")

    with pytest.raises(CaptureError, match="ValueError: not like this"):
        resolve_arguments(Refuses(4, 4), None)


def test_the_random_state_is_left_alone() -> None:
    class Noisy(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x + torch.randn(4))

    torch.manual_seed(1)
    expected = torch.rand(3)
    model = Noisy(4, 4)
    torch.manual_seed(1)
    resolve_arguments(model, None)
    assert torch.equal(torch.rand(3), expected)
