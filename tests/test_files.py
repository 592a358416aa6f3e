"""Locks and leftovers of durable writes."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fxelastic.edge.npz_files import names_in_npz, read_npz
from fxelastic.edge.pool import SubnetPool
from fxelastic.errors import UsageError
from fxelastic.files import is_over, open_regular, read_regular, replace_file
from fxelastic.spec.latency_table import LatencyTable
from fxelastic.spec.only_writer import only_writer

HOLD = """
import sys, time
from pathlib import Path
from fxelastic.files import replace_file, sibling
from fxelastic.spec.latency_table import LatencyTable
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


def test_a_process_that_was_killed_is_over_before_its_parent_asks() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert not is_over(process.pid)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and keeps its number
    os.kill(process.pid, 0)
    assert is_over(process.pid)
    process.communicate()
    assert is_over(process.pid)


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


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(lambda path: read_regular(path), id="file"),
        pytest.param(lambda path: read_regular(path, follow=True), id="named by the user"),
        pytest.param(LatencyTable.load, id="table"),
        pytest.param(SubnetPool.load, id="pool"),
        pytest.param(read_npz, id="arrays"),
        pytest.param(names_in_npz, id="names of arrays"),
    ],
)
def test_pipes_and_devices_are_refused_without_waiting(
    tmp_path: Path, read: Callable[[Path], object]
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises((OSError, UsageError), match="not a regular file"):
            read(path)


def test_a_link_is_followed_only_where_the_user_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"bytes")
    link = tmp_path / "link"
    link.symlink_to("data")
    assert read_regular(link, follow=True) == b"bytes"
    with pytest.raises(OSError, match="link"):
        open_regular(link)
