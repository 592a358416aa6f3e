"""Flatten any argument or result structure into tensors, and rebuild it from them.

``torch.export`` accepts only types in the global pytree registry. A user's dataclass or a
library's cache object is not in it, and registering one would change the user's own process. This
file uses no registry.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxelastic.errors import CaptureError

_MAX_DEPTH = 32


class Tree:
    """A structure without its tensors."""


@dataclass(frozen=True)
class Leaf(Tree):
    """A tensor, or a symbolic number: the next value of the flat list."""


@dataclass(frozen=True)
class Constant(Tree):
    """Anything that holds no tensor (numbers, strings, None, …), by reference."""

    value: Any


@dataclass(frozen=True)
class Node(Tree):
    """A container.

    Attributes:
        kind: Its type's name, for messages and comparison.
        keys: Names of the children, for readable value names.
        children: The structures inside.
        build: Makes a container of the same type from its children. It can be pickled if the type
            can.
    """

    kind: str
    keys: tuple[str, ...]
    children: tuple[Tree, ...]
    build: Callable[[list[Any]], Any] = dataclasses.field(compare=False)


def flatten(value: Any) -> tuple[list[Any], Tree]:
    """Split a structure into its tensors and its shape.

    Args:
        value: Any nesting of tuples, lists, dicts, named tuples, dataclasses, types known to
            torch's pytree registry, and plain objects that hold tensors in their attributes.

    Returns:
        The tensors in a stable order, and the structure without them.

    Raises:
        CaptureError: The structure contains itself or is nested too deeply.
    """
    leaves: list[Any] = []
    return leaves, _flatten(value, leaves, 0)


def unflatten(tree: Tree, leaves: list[Any]) -> Any:
    """Rebuild a structure; the inverse of `flatten`."""
    return _unflatten(tree, iter(leaves))


def leaf_names(tree: Tree, prefix: str) -> list[str]:
    """Names for the leaves of a structure, from its keys: ``["boxes_0", "boxes_1", "scores"]``."""
    start = (prefix,) if prefix else ()
    return ["_".join((*start, *path)) for path in leaf_paths(tree)]


def leaf_paths(tree: Tree) -> list[tuple[str, ...]]:
    """The path of keys to each leaf."""
    if isinstance(tree, Leaf):
        return [()]
    if not isinstance(tree, Node):
        return []
    pairs = zip(tree.keys, tree.children, strict=True)
    return [(key, *path) for key, child in pairs for path in leaf_paths(child)]


def describe(tree: Tree) -> str:
    """The structure in one line: ``dict(boxes=list(Tensor, Tensor), n=3)``."""
    if isinstance(tree, Leaf):
        return "Tensor"
    if isinstance(tree, Constant):
        return repr(tree.value) if len(repr(tree.value)) < 40 else type(tree.value).__name__
    assert isinstance(tree, Node)
    inside = [
        describe(child) if key.isdigit() else f"{key}={describe(child)}"
        for key, child in zip(tree.keys, tree.children, strict=True)
    ]
    return f"{tree.kind}({', '.join(inside)})"


def _is_leaf(value: Any) -> bool:
    return isinstance(value, (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool))


def _flatten(value: Any, leaves: list[Any], depth: int) -> Tree:
    if _is_leaf(value):
        leaves.append(value)
        return Leaf()
    if depth > _MAX_DEPTH:
        raise CaptureError(
            "an argument or result is nested too deeply",
            expected=f"at most {_MAX_DEPTH} levels of containers",
            got=f"a {type(value).__name__} with more levels, or one that contains itself",
            fix="return tensors, or tuples, lists, dicts and dataclasses of them",
        )
    parts = _take_apart(value)
    if parts is None:
        return Constant(value)
    keys, items, build = parts
    before = len(leaves)
    children = tuple(_flatten(item, leaves, depth + 1) for item in items)
    if len(leaves) == before and _is_opaque(value):
        return Constant(value)
    return Node(type(value).__name__, keys, children, build)


def _unflatten(tree: Tree, rest: Any) -> Any:
    if isinstance(tree, Leaf):
        return next(rest)
    if isinstance(tree, Constant):
        return tree.value
    assert isinstance(tree, Node)
    return tree.build([_unflatten(child, rest) for child in tree.children])


_Parts = tuple[tuple[str, ...], list[Any], Callable[[list[Any]], Any]]


def _take_apart(value: Any) -> _Parts | None:
    """Keys, children and builder of a container; None for any other value."""
    cls = type(value)
    if cls in (list, tuple):
        return _numbered(value), list(value), cls
    if isinstance(value, tuple) and hasattr(cls, "_fields"):
        return tuple(cls._fields), list(value), partial(_build_named, cls)
    if cls is dict:
        keys = tuple(value)
        return tuple(str(key) for key in keys), list(value.values()), partial(_build_dict, keys)
    if cls in pytree.SUPPORTED_NODES:
        return _take_apart_registered(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _take_apart_dataclass(value)
    if isinstance(value, Mapping) and not _is_opaque(value):
        return None
    if _is_opaque(value):
        return _take_apart_object(value)
    return None


def _take_apart_registered(value: Any) -> _Parts:
    items, spec = pytree.tree_flatten(value, is_leaf=lambda item: item is not value)
    build = partial(_build_registered, spec)
    named = isinstance(value, Mapping) and len(value) == len(items)
    return tuple(str(key) for key in value) if named else _numbered(items), items, build


def _take_apart_dataclass(value: Any) -> _Parts:
    # copy + setattr keeps init=False fields and attributes set later, which __init__ would lose.
    # Outputs that are both dict and dataclass (Hugging Face) are registered pytrees.
    names = tuple(field.name for field in dataclasses.fields(value))
    items = [getattr(value, name) for name in names]
    return names, items, partial(_build_dataclass, value, names)


def _take_apart_object(value: Any) -> _Parts:
    names = tuple(vars(value))
    return names, list(vars(value).values()), partial(_build_object, value, names)


def _build_named(cls: type, items: list[Any]) -> Any:
    return cls(*items)


def _build_dict(keys: tuple[Any, ...], items: list[Any]) -> Any:
    return dict(zip(keys, items, strict=True))


def _build_registered(spec: Any, items: list[Any]) -> Any:
    return pytree.tree_unflatten(items, spec)


def _build_dataclass(value: Any, names: tuple[str, ...], items: list[Any]) -> Any:
    new = copy.copy(value)
    for name, item in zip(names, items, strict=True):
        try:
            setattr(new, name, item)
        except dataclasses.FrozenInstanceError:
            object.__setattr__(new, name, item)
    return new


def _build_object(value: Any, names: tuple[str, ...], items: list[Any]) -> Any:
    new = copy.copy(value)
    for name, item in zip(names, items, strict=True):
        new.__dict__[name] = item
    return new


def _is_opaque(value: Any) -> bool:
    """Whether a value is a plain object whose attributes may hold tensors (a key-value cache)."""
    cls = type(value)
    return (
        hasattr(value, "__dict__")
        and not isinstance(value, (type, torch.nn.Module, torch.dtype, torch.device))
        and not callable(value)
        and cls.__module__ not in ("builtins", "enum", "types", "functools", "logging")
        and not cls.__module__.startswith(("numpy", "torch"))
        and cls not in pytree.SUPPORTED_NODES
    )


def _numbered(items: Any) -> tuple[str, ...]:
    return tuple(str(i) for i in range(len(items)))
