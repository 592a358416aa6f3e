"""Sizes that vary besides the batch: what users ask for, and what a model allows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from fxelastic import partition
from fxelastic.errors import CaptureError, UsageError
from fxelastic.passes import fixed_sizes
from tests.sized_models import (
    Encoder,
    FixedLength,
    PaddedPyramid,
    Pyramid,
    ResizedPositions,
    Tagger,
    Windows,
)

IDS = torch.arange(32).reshape(2, 16)
MASK = torch.ones(2, 16)

BOTH = {"ids": {1: "seq"}, "mask": {1: "seq"}}


def encoded(dynamic_shapes: Any) -> Any:
    return partition(Encoder().eval(), 0.3, (IDS, MASK), dynamic_shapes=dynamic_shapes)


def symbols(part: Any) -> list[str]:
    return [str(s.symbol) for s in part.symbols]


@pytest.mark.parametrize(
    ("dynamic_shapes", "found"),
    [
        (BOTH, ["N[1..]", "seq[1..64]"]),
        (({1: "seq"}, {1: "seq"}), ["N[1..]", "seq[1..64]"]),
        ({"ids": ("batch", "seq"), "mask": {1: "seq"}}, ["batch[1..]", "seq[1..64]"]),
        ({"ids": {0: "n", -1: Dim("seq", max=32)}, "mask": {1: "seq"}}, ["n[1..]", "seq[1..32]"]),
        ({"ids": {1: Dim("s", min=4)}, "mask": {1: "s"}}, ["N[1..]", "s[4..64]"]),
        ({"ids": {1: Dim.AUTO}, "mask": {1: Dim.STATIC}}, ["N[1..]"]),
        ({"ids": {0: Dim.STATIC, 1: "seq"}, "mask": {0: Dim.STATIC, 1: "seq"}}, ["seq[1..64]"]),
        (None, ["N[1..]"]),
        ({}, ["N[1..]"]),
    ],
)
def test_sizes_are_asked_for_as_torch_takes_them(dynamic_shapes: Any, found: list[str]) -> None:
    assert symbols(encoded(dynamic_shapes)) == found


def test_shapes_have_the_users_names() -> None:
    text = encoded({"ids": {0: "batch", 1: "seq"}, "mask": {1: "seq"}}).to_text()
    assert "int64[batch, seq] ids" in text
    assert "float32[batch, seq, 8]" in text


@pytest.mark.parametrize("length", [1, 2, 16, 17, 63, 64])
def test_a_capture_computes_what_the_model_does_at_every_length(length: int) -> None:
    model = Encoder().eval()
    part = partition(model, 0.3, (IDS, MASK), dynamic_shapes=BOTH)
    ids, mask = torch.randint(0, 100, (3, length)), torch.ones(3, length)
    assert torch.equal(part(ids, mask), model(ids, mask))


@pytest.mark.parametrize(
    ("dynamic_shapes", "said"),
    [
        ({"tokens": {1: "seq"}}, "names 'tokens', which the model does not take"),
        (({}, {}, {}), "more entries than the model has inputs"),
        ({"ids": {2: "seq"}}, "dimension 2 of input 'ids', which has 2"),
        ({"ids": ("batch",)}, "gives 1 sizes for input 'ids'"),
        ({"ids": {1: "a b"}}, "a name that can't be one"),
        ({"ids": {1: 2.5}}, "not a size"),
        ({"ids": {1: 8}}, "fixes dimension 1 of input 'ids' to another size"),
        ({"ids": 1}, "must be a dict from dimensions to sizes"),
        ("seq", "must be a dict or a sequence"),
        ({"ids": {1: Dim("seq", min=20)}}, "outside of the range of 'seq'"),
        ({"ids": {1: Dim("seq", max=8)}}, "outside of the range of 'seq'"),
        ({"ids": {0: "n", 1: "n"}}, "'n' for two sizes that differ"),
        ({"ids": {1: Dim("s", max=20)}, "mask": {1: Dim("s", max=30)}}, "'s' two ranges"),
        ({"ids": {1: 3 * Dim("s")}}, "is not 3\\*s for any s"),
        ({"ids": {1: "N"}}, "the name 'N', which stands for the batch size"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(dynamic_shapes: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        encoded(dynamic_shapes)


def test_a_size_that_the_model_fixes_is_refused_with_its_line() -> None:
    with pytest.raises(CaptureError, match="'seq' can't vary") as caught:
        partition(FixedLength().eval(), 0.5, IDS, dynamic_shapes={1: "seq"})
    assert "self.head(self.embed(ids).flatten(1))" in str(caught.value)


def test_a_size_that_the_capture_fixes_is_refused_with_operator_and_line() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for i in range(x.shape[1]):
                x = x + self.linear(x[:, i : i + 1])
            return x

    with pytest.raises(CaptureError, match="'seq' can't vary") as caught:
        partition(Loop(), 1.0, torch.randn(2, 5, 4), dynamic_shapes={1: "seq"})
    assert "for i in range(x.shape[1])" in str(caught.value)


def test_a_range_beyond_the_models_is_refused_with_its_limit() -> None:
    asked = {"ids": {1: Dim("seq", max=512)}, "mask": {1: "seq"}}
    with pytest.raises(CaptureError, match=r"can't vary|can't be as large as 512") as caught:
        encoded(asked)
    assert "self.positions" in str(caught.value)


def test_a_size_left_to_the_model_is_fixed_with_a_warning() -> None:
    part = partition(FixedLength().eval(), 0.5, IDS, dynamic_shapes={1: Dim.AUTO})
    assert symbols(part) == ["N[1..]"]
    assert any("ids_1 is fixed to the example's 16" in warning for warning in part.warnings)


def test_a_dimension_that_torch_must_keep_dynamic_is_not_fixed() -> None:
    with pytest.raises(CaptureError, match="'ids_1' can't vary"):
        partition(FixedLength().eval(), 0.5, IDS, dynamic_shapes={1: Dim.DYNAMIC})


def test_steps_are_found_by_running_the_model() -> None:
    model = Pyramid().eval()
    part = partition(model, 0.5, torch.randn(2, 3, 32, 32), dynamic_shapes={2: "H", 3: "W"})
    assert symbols(part) == ["N[1..]", "H[4.. by 4]", "W[4.. by 4]"]
    assert "float32[N, 8, H/2, W/2]" in part.to_text()
    x = torch.randn(1, 3, 4, 40)
    assert torch.equal(part(x), model(x))
    with pytest.raises(UsageError, match="H = 6 is outside"):
        part(torch.randn(1, 3, 6, 40))


def test_a_user_may_state_a_multiple() -> None:
    height = Dim("h")
    part = partition(Pyramid(), 0.5, torch.randn(2, 3, 32, 32), dynamic_shapes={2: 4 * height})
    assert symbols(part) == ["N[1..]", "h[1..]"]
    assert "float32[N, 3, 4*h, 32]" in part.to_text()


def test_an_example_of_one_token_does_not_fix_the_length() -> None:
    part = partition(Encoder(), 0.3, (IDS[:, :1], MASK[:, :1]), dynamic_shapes=BOTH)
    assert part(IDS, MASK).shape == (2, 8)


def test_recurrent_layers_do_not_fix_the_length() -> None:
    model = Tagger().eval()
    part = partition(model, 0.5, IDS, dynamic_shapes={1: "seq"})
    assert symbols(part) == ["N[1..]", "seq[1..]"]
    for length in (1, 16, 40):
        ids = torch.randint(0, 100, (3, length))
        assert all(torch.equal(a, b) for a, b in zip(part(ids), model(ids), strict=True))
    cell = nn.LSTM(8, 6)
    assert cell(torch.randn(3, 2, 8))[0].shape == (3, 2, 6)  # torch's own kernels are back


def test_a_model_that_treats_the_examples_size_unlike_others_is_traced_at_others() -> None:
    model = ResizedPositions().eval()
    part = partition(model, 0.5, torch.randn(2, 3, 16, 16), dynamic_shapes={2: "H", 3: "W"})
    assert symbols(part) == ["N[1..]", "H[8..]", "W[8..]"]
    for height, width in ((16, 16), (8, 33), (64, 20)):
        x = torch.randn(1, 3, height, width)
        torch.testing.assert_close(part(x), model(x))


def test_a_model_that_decides_about_odd_sizes_in_python_takes_even_ones() -> None:
    model = PaddedPyramid().eval()
    part = partition(model, 0.5, torch.randn(2, 3, 16, 16), dynamic_shapes={2: "H"})
    assert symbols(part) == ["N[1..]", "H[2.. by 2]"]
    assert any("H varies in steps of 2 only: at H = 17" in warning for warning in part.warnings)
    x = torch.randn(1, 3, 22, 16)
    assert torch.equal(part(x), model(x))


def test_sizes_that_become_too_complicated_are_refused_with_the_operator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fixed_sizes, "_LONGEST", 60)
    with pytest.raises(CaptureError, match="too complicated") as caught:
        partition(Windows().eval(), 0.5, torch.randn(2, 3, 16, 16), dynamic_shapes={2: "H"})
    assert "aten.slice.Tensor at sized_models.py" in str(caught.value)
