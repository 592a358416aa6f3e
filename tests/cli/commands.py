"""Run the commands in processes of their own, as users do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "src")}


def fxelastic(*argv: str, cwd: Path, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """``fxelastic …`` in a fresh process."""
    return subprocess.run(
        [sys.executable, "-m", "fxelastic.cli", *argv],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
