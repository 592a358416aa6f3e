"""Exact comparison of whatever two models return."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def assert_same_output(a: Any, b: Any, path: str = "output") -> None:
    """Assert that two outputs have the same structure, types and, bit for bit, the same tensors.

    Walks tuples, named tuples, lists, mappings, dataclasses and ``None``. NaN equals NaN at the
    same position; a tensor's shape, dtype and device count too.

    Raises:
        AssertionError: names the place of the first difference and says what differs.
    """
    if type(a) is not type(b) and not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        raise AssertionError(f"{path}: {type(a).__name__} against {type(b).__name__}")
    if isinstance(a, Tensor):
        _assert_same_tensor(a, b, path)
    elif isinstance(a, Mapping):
        if list(a) != list(b):
            raise AssertionError(f"{path}: keys {list(a)} against {list(b)}")
        for key in a:
            assert_same_output(a[key], b[key], f"{path}[{key!r}]")
    elif dataclasses.is_dataclass(a) and not isinstance(a, type):
        for field in dataclasses.fields(a):
            name = field.name
            assert_same_output(getattr(a, name), getattr(b, name), f"{path}.{name}")
    elif isinstance(a, (tuple, list)):
        if len(a) != len(b):
            raise AssertionError(f"{path}: {len(a)} items against {len(b)}")
        for index, (left, right) in enumerate(zip(a, b, strict=True)):
            assert_same_output(left, right, f"{path}[{index}]")
    elif a != b and not (a != a and b != b):
        raise AssertionError(f"{path}: {a!r} against {b!r}")


def tensors(output: Any) -> list[Tensor]:
    """Every tensor of an output, in the order in which ``assert_same_output`` visits them."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        parts = list(output.values())
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        parts = [getattr(output, field.name) for field in dataclasses.fields(output)]
    elif isinstance(output, (tuple, list)):
        parts = list(output)
    else:
        return []
    return [tensor for part in parts for tensor in tensors(part)]


def _assert_same_tensor(a: Tensor, b: Tensor, path: str) -> None:
    for what in ("shape", "dtype", "device"):
        left, right = getattr(a, what), getattr(b, what)
        if left != right:
            if what == "shape":
                left, right = tuple(left), tuple(right)
            raise AssertionError(f"{path}: {what} {left} against {right}")
    if torch.equal(a, b):
        return
    differs = a != b
    if a.is_floating_point() or a.is_complex():
        differs &= ~(a.isnan() & b.isnan())
    count = int(differs.sum())
    if count == 0:
        return
    where = tuple(differs.nonzero()[0].tolist())
    left, right = a[where].item(), b[where].item()
    largest = _largest_difference(a, b)
    raise AssertionError(
        f"{path}: {count} of {a.numel()} elements differ in a {tuple(a.shape)} {a.dtype} tensor; "
        f"first at {where}: {left!r} against {right!r}; largest difference {largest:g}"
    )


def _largest_difference(a: Tensor, b: Tensor) -> float:
    wide = torch.complex128 if a.is_complex() else torch.float64
    return float((a.to(wide) - b.to(wide)).abs().nan_to_num(nan=float("inf")).max())


def snapshot(model: nn.Module) -> Any:
    """All that a model's owner would notice a change of; see `assert_unchanged`."""
    return (
        {
            name: (id(p), p.data_ptr(), p.requires_grad, p.grad)
            for name, p in model.named_parameters()
        },
        {name: value.clone() for name, value in model.state_dict().items()},
        [
            (name, module.training, len(module._forward_hooks))
            for name, module in model.named_modules()
        ],
    )


def assert_unchanged(before: Any, after: Any) -> None:
    """Assert that two snapshots of a model are the same."""
    assert before[0] == after[0]
    assert_same_output(before[1], after[1])
    assert before[2] == after[2]
