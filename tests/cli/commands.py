"""Run the commands in processes of their own, as users do."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "src")}


def fxelastic(*argv: str, cwd: Path, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """``fxelastic …`` in a process of its own, with torch imported already."""
    from tests import warm

    return warm.run("fxelastic.cli", *argv, cwd=cwd, timeout_s=timeout_s)
