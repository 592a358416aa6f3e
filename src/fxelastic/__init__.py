"""Turn a PyTorch model into a supernet, of which every device finds and runs its best subnet.

Importing this package imports no torch: every name below is loaded when it is first used. What
runs on a device (`fxelastic.edge`) has to work where torch is not installed.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fxelastic.errors import (
    BundleError,
    CaptureError,
    ExportError,
    FxElasticError,
    InternalError,
    PartitionError,
    ServingError,
    TrainingError,
    UsageError,
)
from fxelastic.extras import without_torch

if TYPE_CHECKING:
    from fxelastic import edge, kinds, testing
    from fxelastic.api import partition
    from fxelastic.backends.onnxruntime.quantisation.options import Int8
    from fxelastic.expansion import expand
    from fxelastic.exporting import export
    from fxelastic.ir import Block, Partition
    from fxelastic.ir.supernet import Supernet
    from fxelastic.multi_stage import train_stages, trained_state
    from fxelastic.probing import diversity
    from fxelastic.specialising import specialise
    from fxelastic.train import distill, evaluate, recalibrate, tune

__version__ = "0.1.0"

__all__ = [
    "Block",
    "BundleError",
    "CaptureError",
    "ExportError",
    "FxElasticError",
    "Int8",
    "InternalError",
    "Partition",
    "PartitionError",
    "ServingError",
    "Supernet",
    "TrainingError",
    "UsageError",
    "__version__",
    "distill",
    "diversity",
    "edge",
    "evaluate",
    "expand",
    "export",
    "kinds",
    "partition",
    "recalibrate",
    "specialise",
    "testing",
    "train_stages",
    "trained_state",
    "tune",
]

# Public name -> the module that defines it.
_LAZY_NAMES = {
    "Block": "fxelastic.ir",
    "Int8": "fxelastic.backends.onnxruntime.quantisation.options",
    "Partition": "fxelastic.ir",
    "Supernet": "fxelastic.ir.supernet",
    "distill": "fxelastic.train",
    "diversity": "fxelastic.probing",
    "evaluate": "fxelastic.train",
    "expand": "fxelastic.expansion",
    "export": "fxelastic.exporting",
    "partition": "fxelastic.api",
    "recalibrate": "fxelastic.train",
    "specialise": "fxelastic.specialising",
    "train_stages": "fxelastic.multi_stage",
    "trained_state": "fxelastic.multi_stage",
    "tune": "fxelastic.train",
}
_LAZY_MODULES = ("edge", "kinds", "testing", "train")


def __getattr__(name: str) -> Any:
    if name in _LAZY_MODULES:
        return _imported(name, f"fxelastic.{name}")
    if name not in _LAZY_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(_imported(name, _LAZY_NAMES[name]), name)
    globals()[name] = value
    return value


def _imported(name: str, module: str) -> ModuleType:
    try:
        return import_module(module)
    except ModuleNotFoundError as e:
        if (error := without_torch(e, f"fxelastic.{name}")) is not None:
            raise error from e
        raise


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
