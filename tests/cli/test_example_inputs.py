"""``--example-input``: shapes, dtypes, keywords, references; a clear error for the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fxelastic.cli.example_inputs import DTYPES, load_example_inputs
from fxelastic.errors import UsageError


def shapes(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, dict):
        return {name: shapes(item) for name, item in value.items()}
    return tuple(shapes(item) for item in value)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["1x3x8x8"], ("float32[1, 3, 8, 8]",)),
        (["5"], ("float32[5]",)),
        (["int64:1x16"], ("int64[1, 16]",)),
        (["1x3", "bool:2x2"], ("float32[1, 3]", "bool[2, 2]")),
        (["ids=int64:1x4"], {"ids": "int64[1, 4]"}),
        (["x=1x4", "mask=bool:1x4"], {"x": "float32[1, 4]", "mask": "bool[1, 4]"}),
        (["1x4", "mask=bool:1x4"], (("float32[1, 4]",), {"mask": "bool[1, 4]"})),
    ],
)
def test_shapes(texts: list[str], expected: Any) -> None:
    assert shapes(load_example_inputs(texts)) == expected


def test_nothing_is_left_to_inference() -> None:
    assert load_example_inputs([]) is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype: str) -> None:
    (tensor,) = load_example_inputs([f"{dtype}:2x2"])
    assert tensor.dtype is getattr(torch, dtype)


def test_values_are_the_same_every_time_and_valid_as_token_ids() -> None:
    (first,), (second,) = load_example_inputs(["2x3"]), load_example_inputs(["2x3"])
    assert torch.equal(first, second)
    (ids,) = load_example_inputs(["int64:2x3"])
    assert ids.eq(1).all()


@pytest.mark.parametrize("text", ["model.py:inputs", "model:inputs"])
def test_reference(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    assert shapes(load_example_inputs([text])) == "float32[2, 3, 16, 16]"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["1x3x"], r"'1x3x' is not a shape(.|\n)*1x3x224x224"),
        (["1,3,8,8"], "is not a shape"),
        (["x="], "is not a shape"),
        (["int64:"], "is not a shape"),
        (["float33:1x3"], r"unknown dtype 'float33'(.|\n)*float32, float64"),
        (["ids=int64:1x4", "1x4"], "comes after a keyword input"),
        (["9999999x9999x9999"], "does not fit into memory"),
        (["x=1x4", "x=1x4"], "names x twice"),
        (["1x4", "model.py:inputs"], "a reference among several inputs"),
        (["model.py:nothing"], "--example-input: 'model.py' has no 'nothing'"),
        (["model.py:fails"], r"failed while it made the inputs(.|\n)*no weights"),
    ],
)
def test_wrong_inputs(folder: Path, texts: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_example_inputs(texts)
