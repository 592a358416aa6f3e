"""Private folders: nobody else reads them, and none stays behind."""

from __future__ import annotations

import gc
import logging
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fxelastic.edge.private_folder import PrivateFolder, _prefix, _sweep


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_only_the_user_reads_it_and_it_goes_with_the_object(temporary: Path) -> None:
    made = PrivateFolder()
    assert made.path.parent == temporary
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o700
    (made.path / "weights").write_bytes(b"1")
    del made
    gc.collect()
    assert not list(temporary.iterdir())


def test_a_killed_process_s_folder_is_removed_by_the_next_and_said(
    temporary: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = (
        "import os; from fxelastic.edge.private_folder import PrivateFolder; "
        "made = PrivateFolder(); print(made.path, flush=True); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    (left,) = temporary.iterdir()
    assert str(left) == killed.stdout.strip()
    alive = left.with_name(f"{left.name.rpartition('-')[0].rpartition('-')[0]}-{os.getpid()}-x")
    alive.mkdir()
    with caplog.at_level(logging.WARNING):
        made = PrivateFolder()
    assert sorted(temporary.iterdir()) == sorted([alive, made.path])
    assert f"{left} was left by a process that was killed" in caplog.text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_leaves_its_parent_s_folder(temporary: Path) -> None:
    made = PrivateFolder()
    pid = os.fork()
    if not pid:
        del made
        gc.collect()
        os._exit(0)
    os.waitpid(pid, 0)
    assert made.path.exists()


def test_another_process_may_remove_a_folder_first(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Symptom: of two processes that start together, one said that there is no space."""
    left = temporary / f"{_prefix()}1-x"
    left.mkdir()

    def over(pid: int) -> bool:
        left.rmdir()
        return True

    monkeypatch.setattr("fxelastic.edge.private_folder.is_over", over)
    _sweep.cache_clear()
    assert PrivateFolder().path.parent == temporary
