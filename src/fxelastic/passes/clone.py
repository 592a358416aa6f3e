"""A private copy of the user's modules that shares the user's parameters."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator

import torch
from torch import nn

from fxelastic.errors import CaptureError, said
from fxelastic.passes.closures import close_over_copy

logger = logging.getLogger(__name__)


def clone_for_capture(model: nn.Module) -> nn.Module:
    """Copy the module tree so that tracing can't touch the user's model.

    Parameters are shared by reference. Everything a forward pass may write to (flags, buffers,
    plain attributes) is a copy, which functions close over too, and the copy is in eval mode.

    Args:
        model: The user's model, in any mode.

    Returns:
        A module tree of the same classes with the same parameters.

    Raises:
        CaptureError: The model cannot be copied.
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
                f"the modules of {type(model).__name__} cannot be copied",
                expected="a model that copy.deepcopy accepts",
                got=said(again),
                fix="drop locks, files and other handles from the model's attributes",
            ) from again
    return clone.eval()


def _shared_tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """Parameters, and plain tensor attributes that deepcopy would refuse (non-leaf ones)."""
    yield from model.parameters()
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                yield value


def _clone_structure(module: nn.Module, done: dict[int, nn.Module]) -> nn.Module:
    """Copy the module tree and its dictionaries, keeping every other attribute by reference."""
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
