"""Imports what programs import sooner or later, for `tests/warm.py`.

What starts threads is left to the programs, since a fork would lose them: onnxruntime is.
"""

from __future__ import annotations

import contextlib
import os

from torch._dynamo import convert_frame  # noqa: F401
from torch._functorch import aot_autograd  # noqa: F401
from torch.onnx._internal.exporter import _registration

import fxelastic.cli.app
import fxelastic.expansion
import fxelastic.train  # noqa: F401
import tests.exporter_cache  # noqa: F401
from fxelastic.ir.quiet import quiet

os.fsync = os.fstat  # As in `tests/conftest.py`.

with contextlib.suppress(ImportError):  # Packages of the extras.
    import matplotlib.figure  # noqa: F401
    import sklearn.datasets  # noqa: F401

with quiet("torch.onnx"):
    # It fills the caches of `tests/exporter_cache.py`.
    _registration.ONNXRegistry.from_torchlib()
