"""What a figure was measured on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from fxelastic.edge.fingerprint import fingerprint


def facts() -> dict[str, str]:
    """The machine, Python, and the libraries that count."""
    found = {**fingerprint(), "python": platform.python_version()}
    for name in ("torch", "numpy", "onnx"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
