"""Nested state, such as an optimiser's, as JSON and named tensors: no pickle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fxelastic.errors import UsageError

_TENSOR, _TUPLE, _ITEMS = "__tensor__", "__tuple__", "__items__"


def take_apart(value: Any, prefix: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """Separate a structure's tensors from the rest.

    Args:
        value: Dicts, lists, tuples, numbers, strings, None and tensors.
        prefix: What the tensors' names begin with.

    Returns:
        Data for ``json.dumps`` that names the tensors, and the tensors by name.

    Raises:
        UsageError: The structure holds something else.
    """
    tensors: dict[str, torch.Tensor] = {}
    return _encode(value, prefix, tensors), tensors


def put_together(data: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The inverse of `take_apart`.

    Raises:
        KeyError: A tensor is missing.
    """
    if isinstance(data, list):
        return [put_together(part, tensors) for part in data]
    if not isinstance(data, dict):
        return data
    if _TENSOR in data:
        return tensors[data[_TENSOR]]
    if _TUPLE in data:
        return tuple(put_together(part, tensors) for part in data[_TUPLE])
    return {_key(key): put_together(part, tensors) for key, part in data[_ITEMS]}


def _encode(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        tensors[name] = value
        return {_TENSOR: name}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        parts = [_encode(part, f"{name}/{i}", tensors) for i, part in enumerate(value)]
        return parts if isinstance(value, list) else {_TUPLE: parts}
    if isinstance(value, Mapping):
        # As pairs: the keys of an optimiser's state are numbers, which JSON would make strings.
        return {
            _ITEMS: [
                [_key_as_json(k), _encode(v, f"{name}/{k}", tensors)] for k, v in value.items()
            ]
        }
    raise UsageError(
        f"{name} can't be written to a checkpoint",
        expected="tensors, numbers, strings, and lists and dicts of them",
        got=f"{type(value).__module__}.{type(value).__qualname__}",
        fix="use an optimiser whose state_dict() holds these only, or train without checkpoints",
    )


def _key_as_json(key: Any) -> Any:
    if isinstance(key, tuple):
        return {_TUPLE: list(key)}
    return key


def _key(key: Any) -> Any:
    return tuple(key[_TUPLE]) if isinstance(key, dict) else key
