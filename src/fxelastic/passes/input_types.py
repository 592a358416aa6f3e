"""Refuse inputs whose content would silently become part of the captured graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Set
from typing import Any

import numpy as np

from fxelastic.errors import UsageError
from fxelastic.ir import trees


def check_input_types(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse data that is not in tensors.

    What holds no tensor is a constant of the capture: a flag, a number, a text. An array, or a
    container that is not looked into, holds data of one call, which no later call could change.

    Args:
        args: Positional example inputs.
        kwargs: Keyword example inputs.

    Raises:
        UsageError: One of them is, or holds, such data.
    """
    for name, value in (*((f"args[{i}]", a) for i, a in enumerate(args)), *kwargs.items()):
        _, tree = trees.flatten(value)
        for constant in _constants(tree):
            if isinstance(constant, np.ndarray):
                fix = "convert it with torch.as_tensor(...)"
            elif isinstance(constant, (Mapping, Set)):
                fix = "pass a dict, list or tuple of tensors"
            else:
                continue
            raise UsageError(
                f"input {name!r} has data of an unsupported type",
                expected="tensors, and tuples, lists, dicts and dataclasses of them",
                got=f"{type(constant).__module__}.{type(constant).__qualname__}",
                fix=fix,
            )


def _constants(tree: trees.Tree) -> Iterator[Any]:
    if isinstance(tree, trees.Constant):
        yield tree.value
        if dataclasses.is_dataclass(tree.value) and not isinstance(tree.value, type):
            yield from vars(tree.value).values()
    elif isinstance(tree, trees.Node):
        for child in tree.children:
            yield from _constants(child)
