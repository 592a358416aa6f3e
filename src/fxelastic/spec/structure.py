"""The structure of a model's return value as JSON, from which a device rebuilds it.

A structure is one of

- ``{"tensor": i}``: the i-th flat result,
- ``{"value": v}``: a constant that JSON can represent,
- ``{"text": t}``: the text of any other constant,
- ``{"tuple": [...]}``, ``{"list": [...]}``: a sequence of structures,
- ``{"dict": {key: structure}, "type": name}``: a mapping, a dataclass or another object with
  attributes; a device returns all of these as dictionaries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fxelastic.errors import BundleError
from fxelastic.spec.json_fields import show

_MAX_DEPTH = 64


def build(structure: Mapping[str, Any], tensors: Sequence[Any]) -> Any:
    """Arrange flat results in a structure.

    Args:
        structure: A structure that `check` accepts.
        tensors: The flat results.

    Returns:
        The nested tuples, lists and dictionaries.
    """
    if "tensor" in structure:
        return tensors[structure["tensor"]]
    if "tuple" in structure:
        return tuple(build(item, tensors) for item in structure["tuple"])
    if "list" in structure:
        return [build(item, tensors) for item in structure["list"]]
    if "dict" in structure:
        return {key: build(item, tensors) for key, item in structure["dict"].items()}
    return structure["value"] if "value" in structure else structure["text"]


def describe(structure: Mapping[str, Any]) -> str:
    """The structure in one line: ``dict(logits=tensor, loss=None)``."""
    if "tensor" in structure:
        return "tensor"
    for kind in ("tuple", "list"):
        if kind in structure:
            return f"{kind}({', '.join(describe(item) for item in structure[kind])})"
    if "dict" in structure:
        items = (f"{key}={describe(item)}" for key, item in structure["dict"].items())
        return f"{structure['type']}({', '.join(items)})"
    return repr(structure["value"]) if "value" in structure else structure["text"]


def check(structure: Any, n_tensors: int, where: str) -> None:
    """Check that a structure is valid and contains each flat result once and in order.

    Args:
        structure: Parsed JSON.
        n_tensors: The number of flat results.
        where: The place of the structure, for messages.

    Raises:
        BundleError: The structure is invalid.
    """
    found: list[int] = []
    _check(structure, found, where, 0)
    if found != list(range(n_tensors)):
        raise BundleError(
            f"{where} does not contain each result once and in order",
            expected=f"the tensors 0 to {n_tensors - 1} in order" if n_tensors else "no tensor",
            got=show(found),
        )


def _check(structure: Any, found: list[int], where: str, depth: int) -> None:
    keys = set(structure) if isinstance(structure, dict) else set()
    if depth > _MAX_DEPTH or keys not in _FORMS:
        raise BundleError(
            f"{where} is not a structure of results",
            expected=f"an object with one of tensor, value, text, tuple, list, dict, "
            f"nested at most {_MAX_DEPTH} times",
            got=show(structure) if depth <= _MAX_DEPTH else "deeper nesting",
        )
    if keys == {"tensor"}:
        index = structure["tensor"]
        if isinstance(index, bool) or not isinstance(index, int):
            raise BundleError(f"{where}.tensor is not an index", expected="an int", got=show(index))
        found.append(index)
        return
    for kind in ("tuple", "list"):
        if keys == {kind}:
            items = structure[kind]
            _expect(items, list, f"{where}.{kind}", "an array")
            for i, item in enumerate(items):
                _check(item, found, f"{where}.{kind}[{i}]", depth + 1)
    if "dict" in keys:
        _expect(structure["type"], str, f"{where}.type", "a string")
        _expect(structure["dict"], dict, f"{where}.dict", "an object")
        for key, item in structure["dict"].items():
            _check(item, found, f"{where}.dict[{show(key)}]", depth + 1)
    if keys == {"text"}:
        _expect(structure["text"], str, f"{where}.text", "a string")
    if keys == {"value"} and not is_plain(structure["value"]):
        raise BundleError(
            f"{where}.value is not a constant",
            expected="null, a boolean, a finite number or a string",
            got=show(structure["value"]),
        )


_FORMS = (
    {"tensor"},
    {"value"},
    {"text"},
    {"tuple"},
    {"list"},
    {"dict", "type"},
)


def is_plain(value: Any) -> bool:
    """Whether JSON represents a value without loss."""
    if not (value is None or type(value) in (bool, int, float, str)):
        return False
    try:
        json.dumps(value, allow_nan=False).encode()
    except ValueError:
        return False
    return True


def _expect(value: Any, kind: type, where: str, what: str) -> None:
    if not isinstance(value, kind):
        raise BundleError(f"{where} is not {what}", expected=what, got=show(value))
