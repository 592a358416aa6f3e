"""A private copy of the user's modules that shares the user's parameters.

A copied function still closes over the original objects: a hook that stores a feature in ``self``,
a lambda that reads ``self.training``, a ``forward`` that wraps the old one. `close_over_copy`
rebuilds such functions over the copy.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from fxelastic.errors import CaptureError, said

logger = logging.getLogger(__name__)


def clone_for_capture(model: nn.Module) -> nn.Module:
    """Copy the module tree so that tracing can't touch the user's model.

    The copy shares the parameters by reference. Everything that a forward pass may write to
    (flags, buffers, plain attributes) is a copy, functions close over the copies, and the copy is
    in eval mode.

    Args:
        model: The user's model, in any mode.

    Returns:
        A module tree of the same classes with the same parameters.

    Raises:
        CaptureError: The model can't be copied.
    """
    memo: dict[int, object] = {id(tensor): tensor for tensor in _shared_tensors(model)}
    try:
        clone: nn.Module = copy.deepcopy(model, memo)
        close_over_copy(clone, memo, deep=True)
    except Exception as e:  # noqa: BLE001  # any attribute of any class may refuse to be copied
        logger.debug("deepcopy of %s failed (%s); copying module by module", type(model), e)
        try:
            done: dict[int, nn.Module] = {}
            clone = _clone_structure(model, done)
            close_over_copy(clone, done, deep=False)
        except Exception as again:
            raise CaptureError(
                f"the modules of {type(model).__name__} can't be copied",
                expected="a model that copy.deepcopy accepts",
                got=said(again),
                fix="drop locks, files and other handles from the model's attributes",
            ) from again
    return clone.eval()


@contextlib.contextmanager
def kept_weights(model: nn.Module) -> Iterator[None]:
    """Undo at the end what forward passes wrote to weights that a clone shares.

    An embedding with ``max_norm`` scales the rows that it reads, in place.

    Args:
        model: The user's model.
    """
    embeddings = (
        module
        for module in model.modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None
    )
    kept = [(module.weight, module.weight.detach().clone()) for module in embeddings]
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, before in kept:
                if not torch.equal(weight, before):
                    weight.copy_(before)


def _shared_tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """Parameters, and plain tensor attributes that deepcopy refuses (non-leaf tensors)."""
    yield from model.parameters()
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                yield value


def _clone_structure(module: nn.Module, done: dict[int, nn.Module]) -> nn.Module:
    """Copy the module tree and its dictionaries; other attributes stay references."""
    if id(module) in done:
        return done[id(module)]
    new = module.__class__.__new__(module.__class__)
    done[id(module)] = new
    attributes = dict(vars(module))
    for key, value in attributes.items():
        if key.startswith("_") and isinstance(value, dict) and key != "_modules":
            attributes[key] = type(value)(value)
    attributes["_buffers"] = {
        name: None if buffer is None else buffer.clone() for name, buffer in module._buffers.items()
    }
    attributes["_modules"] = {
        name: None if child is None else _clone_structure(child, done)
        for name, child in module._modules.items()
    }
    new.__dict__.update(attributes)
    return new


# Containers and objects deeper than this stay as they are.
_DEPTH = 6


def close_over_copy(clone: nn.Module, memo: Mapping[int, Any], *, deep: bool) -> None:
    """Make a copy's functions close over the copy.

    Args:
        clone: The copy; its attributes and hooks change in place.
        memo: The copy of each copied object, by the object's id.
        deep: Whether all lists and dictionaries are copies, or only those of hooks.
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
        """Replace functions in a container of the copy, in place."""
        items = container.items() if isinstance(container, dict) else enumerate(container)
        for key, item in list(items):
            if not isinstance(item, (dict, list)):
                container[key] = self.rebound(item, _DEPTH)
            elif depth > 1:
                self.renew(item, depth - 1)

    def rebound(self, value: Any, depth: int) -> Any:
        """The value with the parts of the original replaced; the value itself if there are none."""
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
        # A name without a value yet.
        return None
