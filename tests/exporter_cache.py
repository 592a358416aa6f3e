"""A cache without which most of the time of exporting a small model goes into a table.

At each export, torch's exporter parses the sources of the 500 functions that it translates
operators with, and finds the same each time.
"""

from __future__ import annotations

import functools
from typing import Any

from torch.onnx._internal._lazy_import import onnxscript_apis


@functools.cache
def _functions() -> tuple[Any, ...]:
    return tuple(onnxscript_apis.__getattr__("get_torchlib_ops")())


onnxscript_apis.get_torchlib_ops = _functions
