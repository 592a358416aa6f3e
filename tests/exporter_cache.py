"""What torch's exporter computes anew for each export, with the same result, is kept.

That is three quarters of the time of exporting a small model: tables that are the same for each
model. Operators that a test registers in between are found as before.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch._export import utils
from torch.export import exported_program
from torch.onnx._internal._lazy_import import onnxscript_apis
from torch.onnx._internal.exporter import _schemas


@functools.cache
def _functions() -> tuple[Any, ...]:
    """The 500 functions that translate operators; the exporter parses their sources."""
    return tuple(onnxscript_apis.__getattr__("get_torchlib_ops")())


def _only_new(load: Callable[[], None]) -> Callable[[], None]:
    """Load the composite operators, unless all of them are loaded already.

    The exporter does it for each of 30 namespaces, twice in each export.
    """
    loaded: set[str] = set()

    def load_new() -> None:
        names = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
        if not loaded.issuperset(names):
            load()
            loaded.update(names)

    return load_new


def _replace(module: ModuleType, name: str, made: Callable[[Any], object]) -> None:
    """Replace a function; without it, as in other versions of torch, exports take longer."""
    if hasattr(module, name):
        setattr(module, name, made(getattr(module, name)))


onnxscript_apis.get_torchlib_ops = _functions
_replace(utils, "_materialize_cpp_cia_ops", _only_new)
_replace(_schemas, "op_signature_from_function", functools.cache)
_replace(exported_program, "autograd_not_implemented", functools.cache)
# Annotations of a function that is defined 10,000 times in each export. The expressions of this
# one are cached, and mean the same as those of `collections.abc.Callable`.
_replace(torch._ops, "Callable", lambda _: typing.Callable)
