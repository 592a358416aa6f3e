"""What is committed is small: no packages, models or data."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.cli.commands import ROOT

MOST_BYTES = 1_000_000


def test_no_committed_file_is_large() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = [name for name in listed.stdout.split("\0") if name]
    assert "README.md" in names
    paths = [ROOT / name for name in names if (ROOT / name).is_file()]
    assert [str(path) for path in paths if path.stat().st_size > MOST_BYTES] == []
