"""Packages that only a part of fxelastic needs, by the extra that installs them.

The base install is a device's: numpy, onnx, onnxruntime and psutil. ``fxelastic[torch]`` adds what
building bundles needs, and the other extras add nothing of it.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from fxelastic.errors import UsageError

#: The top-level modules of the extra ``torch``.
OF_TORCH = frozenset(
    {
        *("networkx", "onnx_ir", "onnxscript", "safetensors", "sympy", "tomli", "tomli_w", "torch"),
        "tqdm",
    }
)


def required(module: str, what: str, extra: str) -> ModuleType:
    """Import a module of an extra.

    Args:
        module: The module's name.
        what: What needs it, for the message, e.g. ``"plots need matplotlib"``.
        extra: The extra that installs it.

    Raises:
        UsageError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise UsageError(
            what,
            expected=f"the packages of the extra {extra}",
            got=str(e),
            fix=f"pip install 'fxelastic[{extra}]'",
        ) from e


def without_torch(error: Exception, what: str) -> UsageError | None:
    """The message for an import that failed since the extra ``torch`` is not installed.

    Args:
        error: The error of the import.
        what: What needs the package, e.g. ``"this command"``.

    Returns:
        The error to raise in its place; None if it has another cause.
    """
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    if name is None or name.partition(".")[0] not in OF_TORCH:
        return None
    return UsageError(
        f"{what} needs {name.partition('.')[0]}",
        expected="the packages of the extra torch; a device that only runs bundles needs none",
        got=str(error),
        fix="pip install 'fxelastic[torch]'",
    )
