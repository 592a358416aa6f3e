"""Temporary folders do not stay behind."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from fxelastic.edge.serving.scratch import Scratch, on_disk
from tests.cli.commands import environment

_LIVES = """
import sys, time
from pathlib import Path
from fxelastic.edge.serving.scratch import Scratch
scratch = Scratch(Path(sys.argv[1]))
(scratch.path() / "file").write_text("x")
print(scratch.path(), flush=True)
time.sleep(600)
"""


def test_it_is_this_user_s_alone_and_goes_with_close(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    path = scratch.path()
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    (path / "file").write_text("x")
    scratch.close()
    scratch.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match="was closed"):
        scratch.path()
    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_not_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a file system is, the innermost mount says."""
    in_memory, on_disc = tmp_path / "memory", tmp_path / "memory" / "disc"
    (on_disc / "inner").mkdir(parents=True)

    def partitions(**_: object) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(mountpoint="/", fstype="ext4"),
            SimpleNamespace(mountpoint=str(in_memory), fstype="tmpfs"),
            SimpleNamespace(mountpoint=str(on_disc), fstype="ext4"),
        ]

    monkeypatch.setattr(psutil, "disk_partitions", partitions)
    assert on_disk([str(in_memory), str(tmp_path)]) == tmp_path
    assert on_disk([str(on_disc / "inner")]) == on_disc / "inner"
    assert on_disk([str(in_memory), str(tmp_path / "none")]) is None


def test_what_a_killed_process_left_behind_goes_and_what_others_have_stays(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _LIVES, str(tmp_path)]
    processes = [
        subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    folders = [Path(p.stdout.readline().strip()) for p in processes if p.stdout is not None]
    processes[0].kill()
    processes[0].wait()
    assert (folders[0] / "file").exists()
    scratch = Scratch(tmp_path)
    assert [folder.exists() for folder in folders] == [False, True]
    processes[1].kill()
    processes[1].wait()
    scratch.close()


def test_a_folder_that_was_deleted_is_made_again(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    before = scratch.path()
    assert scratch.path() == before
    shutil.rmtree(before)
    assert scratch.path().is_dir()
    scratch.close()
    assert list(tmp_path.iterdir()) == []


def test_a_forked_child_does_not_delete_its_parent_s(tmp_path: Path) -> None:
    program = f"""
import os, sys
from pathlib import Path
from fxelastic.edge.serving.scratch import Scratch
scratch = Scratch(Path({str(tmp_path)!r}))
child = os.fork()
if not child:
    scratch.close()
    sys.exit()
os.waitpid(child, 0)
print(scratch.path().is_dir(), len(list(Path({str(tmp_path)!r}).iterdir())))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["True", "1"]
    assert list(tmp_path.iterdir()) == []
