"""What a capture can't hold is refused or told, not recorded silently."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxelastic
from fxelastic.errors import CaptureError, UsageError
from fxelastic.passes import capture
from fxelastic.passes.check_capture import _relative


class Model(nn.Module):
    """A layer whose results go through a function of the module, its input and the results."""

    def __init__(self, ends: Callable[[Model, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("count", torch.zeros(()))
        self.number = 0
        self.ends = ends

    def forward(self, x: Tensor) -> Tensor:
        """Samples (n, 4)."""
        return self.ends(self, x, self.layer(x))


def assigned(model: Model, x: Tensor, y: Tensor) -> Tensor:
    model.count = model.count + 1
    return y * model.count


def counted(model: Model, x: Tensor, y: Tensor) -> Tensor:
    model.number += 1
    return y * model.number


def alone(model: Model, x: Tensor, y: Tensor) -> Tensor:
    return 2 * y if x.shape[0] == 1 else y


@pytest.mark.parametrize("n_samples", [1, 2])
def test_a_buffer_that_is_assigned_is_refused(n_samples: int) -> None:
    with pytest.raises(CaptureError, match="writes to its own state in forward: count"):
        capture(Model(assigned).eval(), torch.randn(n_samples, 4))


def test_a_number_that_is_counted_up_is_told() -> None:
    traced = capture(Model(counted).eval(), torch.randn(2, 4))
    (warning,) = traced.warnings
    assert "keeps state" in warning


def test_a_sample_that_is_treated_unlike_a_batch_is_told() -> None:
    model = Model(alone).eval()
    traced = capture(model, torch.randn(3, 4))
    assert traced.dynamic_batch
    assert traced.warnings == (
        "at batch size 1 the capture computes another result than the model",
    )


def test_given_one_sample_the_capture_holds_for_one() -> None:
    model, x = Model(alone).eval(), torch.randn(1, 4)
    traced = capture(model, x)
    assert not traced.dynamic_batch
    assert torch.equal(traced(x), model(x))
    (warning,) = traced.warnings
    assert warning.startswith("the batch size is fixed to the example's")


def squeezed(model: Model, x: Tensor, y: Tensor) -> Tensor:
    return y[:, :, None].squeeze()


def test_the_batch_is_not_squeezed() -> None:
    model = Model(squeezed).eval()
    traced = capture(model, torch.randn(3, 4))
    assert traced.dynamic_batch
    assert traced(torch.randn(1, 4)).shape == (1, 3)
    (warning,) = traced.warnings
    assert warning.startswith("at batch size 1")
    traced = capture(model, torch.randn(1, 4))
    assert not traced.dynamic_batch
    assert traced(torch.randn(1, 4)).shape == (3,)
    (warning,) = traced.warnings
    assert "shape (1, 3) instead of (3,)" in warning


def squeezed_in_vain(model: Model, x: Tensor, y: Tensor) -> Tensor:
    return y[:, None].squeeze(2).squeeze(1).squeeze(0)


def test_what_is_not_of_size_1_is_not_squeezed(tmp_path: Path) -> None:
    """ONNX refuses to squeeze it."""
    model, x = Model(squeezed_in_vain).eval(), torch.randn(2, 4)
    traced = capture(model, x)
    names = [node.target for node in traced.graph.nodes if "squeeze" in node.name]
    assert names.count(torch.ops.aten.squeeze.dim) == 1
    supernet = fxelastic.expand(model, 1.0, example_inputs=x, kinds=())
    assert torch.equal(supernet(x), model(x))
    fxelastic.export(supernet, tmp_path / "bundle", n_subnets=0)


def nothing(model: Model, x: Tensor, y: Tensor) -> None:
    return None


def a_set(model: Model, x: Tensor, y: Tensor) -> object:
    return {y}


@pytest.mark.parametrize("ends", [nothing, a_set])
def test_a_model_without_results_is_refused(ends: Callable[..., Tensor]) -> None:
    with pytest.raises(CaptureError, match="returns no tensor"):
        capture(Model(ends), torch.randn(2, 4))


def with_sizes(model: Model, x: Tensor, y: Tensor) -> object:
    return y, x.shape


def test_results_of_another_structure_are_shown() -> None:
    with pytest.raises(CaptureError, match=r"Size\(2, 4\)"):
        capture(Model(with_sizes), torch.randn(2, 4))  # type: ignore[arg-type]


def test_an_example_without_samples_is_refused() -> None:
    with pytest.raises(UsageError, match="hold no samples"):
        capture(nn.Linear(4, 3), torch.zeros(0, 4))


def test_sparse_weights_are_refused() -> None:
    model = nn.Linear(4, 3)
    model.register_buffer("edges", torch.eye(4).to_sparse())
    with pytest.raises(CaptureError, match=r"'edges' can't be captured(.|\n)*to_dense"):
        capture(model, torch.randn(2, 4))


class Rounded(torch.autograd.Function):
    """Rounds; gradients pass as if it did not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


class Odd(nn.Module):
    """Does something between two layers."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))


@pytest.mark.parametrize(
    ("between", "told"),
    [
        (lambda x: Rounded.apply(4 * x) / 4, "backward of Rounded is not captured"),
        (lambda x: x + torch.randn_like(x), "draws random numbers"),
        (lambda x: checkpoint(torch.relu, x, use_reentrant=True), ""),
    ],
)
def test_what_a_capture_can_t_hold_is_told(between: Callable[[Tensor], Tensor], told: str) -> None:
    apply = vars(torch.autograd.Function)["apply"]
    warnings = capture(Odd(between).eval(), torch.randn(2, 8)).warnings
    assert vars(torch.autograd.Function)["apply"] is apply
    assert [told in warning for warning in warnings] == [True] * bool(told)


def test_a_scripted_part_is_named() -> None:
    model = nn.Sequential(nn.Linear(8, 8), torch.jit.script(nn.Linear(8, 8))).eval()
    with pytest.raises(UsageError, match="scripted module can't be captured: 1"):
        capture(model, torch.randn(2, 8))


class Side(nn.Module):
    """Patches of a picture as a picture, whose side is the root of their number."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        side = int(x.shape[1] ** 0.5)
        x = x.transpose(1, 2).reshape(x.shape[0], x.shape[2], side, side)
        return self.last(x)


def test_a_size_that_does_not_hold_is_named_with_operator_and_line() -> None:
    x, sizes = torch.randn(2, 3, 16, 16), {"x": {2: "H", 3: "W"}}
    with pytest.raises(CaptureError, match="can't vary: the model fixes it") as caught:
        capture(Side().eval(), x, dynamic_shapes=sizes)
    assert re.search(r"aten\.\w+ at test_check_capture\.py:\d+: x = x", str(caught.value))


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ([1.0, -math.inf], [1.0, -math.inf], True),
        ([1.0, -math.inf], [2.0, -math.inf], False),
        ([1.0, -math.inf], [1.0, math.inf], False),
        ([math.nan, 1.0], [math.nan, 1.0], True),
        ([math.nan, math.inf, 1.0], [math.nan, math.inf, 2.0], False),
        ([math.nan, 1.0], [1.0, math.nan], False),
        ([math.inf], [math.nan], False),
    ],
)
def test_results_that_are_not_finite_are_compared(
    a: list[float], b: list[float], same: bool
) -> None:
    """Symptom: a wrong capture of scores that are masked with infinity passed."""
    # As captures are judged: NaN is above no tolerance.
    assert (_relative(torch.tensor(a), torch.tensor(b)) > 1e-6) != same
