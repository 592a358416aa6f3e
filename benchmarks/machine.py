"""The machine and the versions that a figure was measured on."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fxelastic.edge.fingerprint import fingerprint

ROOT = Path(__file__).resolve().parents[1]


def facts() -> dict[str, str]:
    """The machine, Python, and the versions of the libraries that matter."""
    found = {**fingerprint(), "python": platform.python_version()}
    for name in ("torch", "numpy", "onnx"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> str:
    """The commit of the checkout, and whether the code has changed since; empty if unknown."""
    code = ("src", "examples", "benchmarks", ":!benchmarks/results", ":!benchmarks/RESULTS.md")
    try:
        name = _git("rev-parse", "--short=10", "HEAD")
        return name + "+changes" * bool(_git("status", "--porcelain", "--", *code))
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
