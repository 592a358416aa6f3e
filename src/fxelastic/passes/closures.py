"""Functions of a copied model that reach into the model it was copied from.

A copy of a function is the function itself, with what it closes over: a hook that stores a feature
in ``self``, a lambda that reads ``self.training``, a ``forward`` that was patched around the old
one. In the copy of a model they are to mean the copy.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping
from typing import Any

from torch import nn

# Deeper than this, containers and objects are left alone.
_DEPTH = 6


def close_over_copy(clone: nn.Module, memo: Mapping[int, Any], *, deep: bool) -> None:
    """Have a copy's functions close over the copy.

    Args:
        clone: The copy; its attributes and hooks are changed in place.
        memo: What was copied: the copy of an object by the object's id.
        deep: Whether the copy has lists and dictionaries of its own; else only those of hooks.
    """
    rebinder = _Rebinder(memo)
    for module in list(clone.modules()):
        attributes = vars(module)
        for name, value in list(attributes.items()):
            if name in ("_parameters", "_buffers", "_modules"):
                continue
            if isinstance(value, (dict, list)):
                if deep or name.startswith("_"):
                    rebinder.renew(value, _DEPTH if deep else 1)
            else:
                attributes[name] = rebinder.rebound(value, _DEPTH)


class _Rebinder:
    def __init__(self, memo: Mapping[int, Any]) -> None:
        self._memo = memo
        self._done: dict[int, Any] = {}

    def renew(self, container: dict[Any, Any] | list[Any], depth: int) -> None:
        """Replace functions in a container of the copy's own, in place."""
        items = container.items() if isinstance(container, dict) else enumerate(container)
        for key, item in list(items):
            if not isinstance(item, (dict, list)):
                container[key] = self.rebound(item, _DEPTH)
            elif depth > 1:
                self.renew(item, depth - 1)

    def rebound(self, value: Any, depth: int) -> Any:
        """The value with the original's parts in it replaced; itself where there are none."""
        if isinstance(value, (nn.Module, dict, list, set)):
            return self._memo.get(id(value), value)
        if depth == 0:
            return value
        if isinstance(value, types.FunctionType):
            return self._function(value, depth)
        if isinstance(value, types.MethodType):
            owner = self.rebound(value.__self__, depth - 1)
            function = self.rebound(value.__func__, depth - 1)
            same = owner is value.__self__ and function is value.__func__
            return value if same else types.MethodType(function, owner)
        if type(value) is functools.partial:
            return self._partial(value, depth)
        if type(value) is tuple:
            items = tuple(self.rebound(item, depth - 1) for item in value)
            return value if all(a is b for a, b in zip(items, value, strict=True)) else items
        return value

    def _function(self, function: types.FunctionType, depth: int) -> Any:
        if id(function) in self._done:
            return self._done[id(function)]
        self._done[id(function)] = function
        defaults = self.rebound(function.__defaults__, depth - 1)
        named = function.__kwdefaults__ or {}
        new_named = {name: self.rebound(value, depth - 1) for name, value in named.items()}
        cells = function.__closure__ or ()
        contents = [_content(cell) for cell in cells]
        rebound = [self.rebound(content, depth - 1) for content in contents]
        changed = any(a is not b for a, b in zip(contents, rebound, strict=True))
        changed = changed or any(new_named[name] is not value for name, value in named.items())
        if not changed and defaults is function.__defaults__:
            return function
        new_cells = tuple(
            cell if a is b else types.CellType(b)
            for cell, a, b in zip(cells, contents, rebound, strict=True)
        )
        new = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, defaults, new_cells
        )
        new.__kwdefaults__ = new_named or None
        new.__dict__.update(function.__dict__)
        new.__qualname__, new.__module__ = function.__qualname__, function.__module__
        self._done[id(function)] = new
        return new

    def _partial(self, value: functools.partial[Any], depth: int) -> Any:
        function = self.rebound(value.func, depth - 1)
        args = self.rebound(value.args, depth - 1)
        keywords = {k: self.rebound(v, depth - 1) for k, v in value.keywords.items()}
        same = function is value.func and args is value.args
        if same and all(keywords[k] is v for k, v in value.keywords.items()):
            return value
        return functools.partial(function, *args, **keywords)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        # A name that is not bound yet.
        return None
