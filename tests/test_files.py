"""Locks and leftovers of durable writes."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fxelastic.errors import UsageError
from fxelastic.files import replace_file
from fxelastic.spec.only_writer import only_writer

HOLD = """
import sys, time
from pathlib import Path
from fxelastic.files import replace_file, sibling
from fxelastic.spec.only_writer import only_writer
with only_writer(sys.argv[1]):
    sibling(Path(sys.argv[1]), "tmp").write_bytes(b"half")
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_told_which_process_writes_and_a_killed_one_leaves_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "pool.json"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        message = rf"another process[\s\S]*process {holder.pid}"
        with pytest.raises(UsageError, match=message), only_writer(path):
            pytest.fail("two writers")
    finally:
        holder.kill()
        holder.wait()
    assert len(list(tmp_path.iterdir())) == 2
    with only_writer(path), caplog.at_level(logging.WARNING):
        replace_file(path, b"whole")
    assert [left.name for left in tmp_path.iterdir()] == ["pool.json"]
    assert "left by a process that was killed" in caplog.text


def test_two_threads_do_not_write_one_output_either(tmp_path: Path) -> None:
    with (
        only_writer(tmp_path / "out"),
        pytest.raises(UsageError, match=str(os.getpid())),
        only_writer(tmp_path / "out"),
    ):
        pytest.fail("two writers")
    with only_writer(tmp_path / "out"), only_writer(tmp_path / "other"), only_writer(None):
        pass
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_locked_is_written_anyway(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with only_writer(tmp_path / "file" / "inside"):
        pass
