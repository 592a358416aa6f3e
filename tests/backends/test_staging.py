"""A folder appears whole or not at all, and nothing that is not ours is ever replaced."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fxelastic.backends.staging import replace_folder
from fxelastic.edge.bundle import files_in
from fxelastic.errors import UsageError
from fxelastic.files import exchange, recover_folder

ROOT = Path(__file__).parents[2]
MARKER = "manifest.json"


def owned(folder: Path) -> set[str] | None:
    return {MARKER, "inner/file"} if (folder / MARKER).is_file() else None


def make(path: Path, text: str, *, force: bool = False) -> None:
    with replace_folder(path, owned, force=force) as folder:
        (folder / MARKER).write_text(text)
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "bundle"
    with replace_folder(path, owned) as folder:
        assert folder.parent == path.parent
        assert not path.exists()
        (folder / MARKER).write_text("1")
    assert names(path.parent) == ["bundle"]
    assert path.stat().st_mode == path.parent.stat().st_mode


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no"), SystemExit(1)])
@pytest.mark.parametrize("old", [True, False])
def test_a_failure_leaves_what_was_there(tmp_path: Path, error: BaseException, old: bool) -> None:
    path = tmp_path / "bundle"
    if old:
        make(path, "old")

    def fail() -> None:
        with replace_folder(path, owned, force=True) as folder:
            (folder / MARKER).write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert names(tmp_path) == (["bundle"] if old else [])
    if old:
        assert (path / "inner" / "file").read_text() == "old"


@pytest.mark.parametrize("old", [True, False])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, old: bool) -> None:
    path = tmp_path / "bundle"
    if old:
        make(path, "old")

    def fill() -> None:
        with replace_folder(path, owned, force=True):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UsageError, match="No space left") as caught:
        fill()
    assert "unchanged" in str(caught.value)
    assert names(tmp_path) == (["bundle"] if old else [])


@pytest.mark.parametrize("error", [OSError("no"), KeyboardInterrupt()])
def test_a_failure_between_the_renames_brings_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "bundle"
    make(path, "old")
    monkeypatch.setattr("fxelastic.backends.staging.exchange", lambda *_: False)
    rename = Path.rename

    def fail_second(self: Path, target: Path) -> Path:
        if ".new-" in self.name:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_second)
    with pytest.raises((UsageError, KeyboardInterrupt)):
        make(path, "new", force=True)
    assert (path / MARKER).read_text() == "old"
    assert names(tmp_path) == ["bundle"]


def test_force_replaces_a_bundle(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    make(path, "old")
    with pytest.raises(UsageError, match="exists already"):
        make(path, "new")
    assert (path / MARKER).read_text() == "old"
    make(path, "new", force=True)
    assert (path / MARKER).read_text() == "new"
    assert names(tmp_path) == ["bundle"]


def test_no_other_folder_is_ever_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("…")
    file = tmp_path / "file"
    file.write_text("…")
    link = tmp_path / "link"
    make(tmp_path / "bundle", "old")
    link.symlink_to(tmp_path / "bundle")
    for path in (mine, file, link):
        with pytest.raises(UsageError, match="exists and is not a bundle"):
            make(path, "new", force=True)
    assert (mine / "thesis.tex").exists()


def test_what_an_export_did_not_write_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    make(path, "old")
    (path / "inner" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"inner/notes\.txt"):
        make(path, "new", force=True)
    assert (path / "inner" / "notes.txt").read_text() == "mine"
    assert (path / MARKER).read_text() == "old"


def test_a_folder_with_another_manifest_is_no_bundle(tmp_path: Path) -> None:
    for number, text in enumerate(('{"manifest_version": 3}', "no json", "{}")):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / MARKER).write_text(text)
        assert files_in(folder) is None
    assert files_in(tmp_path / "none") is None


def test_what_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "bundle"

    def race() -> None:
        with replace_folder(path, owned) as folder:
            (folder / MARKER).write_text("mine")
            make(path, "theirs")

    with pytest.raises(UsageError, match="exists already"):
        race()
    assert (path / MARKER).read_text() == "theirs"


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    make(tmp_path / "bundle", "new")
    assert (tmp_path / "bundle" / MARKER).read_text() == "new"


KILLED = """
import sys, time
from pathlib import Path
from fxelastic.backends.staging import replace_folder

files = {"manifest.json", "inner/file"}
with replace_folder(Path(sys.argv[1]), lambda _: files, force=True) as folder:
    (folder / "manifest.json").write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("old", [True, False])
def test_kill_9_leaves_the_old_folder_or_none(
    tmp_path: Path, old: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "bundle"
    if old:
        make(path, "old")
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    assert path.exists() == old
    if old:
        assert (path / MARKER).read_text() == "old"
    with caplog.at_level(logging.WARNING):
        make(path, "new", force=True)
    assert "was left by a process that was killed" in caplog.text
    assert (path / MARKER).read_text() == "new"
    assert names(tmp_path) == ["bundle"]


def test_another_process_that_writes_the_same_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        with pytest.raises(UsageError, match="another process is writing") as caught:
            make(path, "new")
        assert caught.value.got == f"process {process.pid}"
    finally:
        process.kill()
        process.wait(timeout=60)
    make(path, "new")
    assert names(tmp_path) == ["bundle"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_there_is_always_a_bundle_while_it_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    """Where folders can be exchanged; where they can't, the old one comes back after a kill."""
    path = tmp_path / "bundle"
    make(path, "0")
    if not exchanges:
        monkeypatch.setattr("fxelastic.backends.staging.exchange", lambda *_: False)
    elif not can_exchange(tmp_path):
        pytest.skip("this system can't exchange folders")
    missing, over = 0, threading.Event()

    def read() -> None:
        nonlocal missing
        while not over.is_set():
            missing += not (path / MARKER).exists()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for i in range(200):
            make(path, str(i), force=True)
    finally:
        over.set()
        reader.join()
    assert (path / MARKER).read_text() == "199"
    assert names(tmp_path) == ["bundle"]
    assert exchanges <= (missing == 0)


def can_exchange(folder: Path) -> bool:
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    found = exchange(folder / "a", folder / "b")
    (folder / "a").rmdir()
    (folder / "b").rmdir()
    return found


@pytest.mark.parametrize("alive", [True, False])
def test_a_folder_between_two_renames_is_brought_back(tmp_path: Path, alive: bool) -> None:
    path = tmp_path / "bundle[1]"
    make(path, "old")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(timeout=60)
    pid = os.getpid() if alive else ended.pid
    path.rename(tmp_path / f".bundle[1].old-{pid}-0123abcd")
    recover_folder(path)
    assert path.exists() != alive  # a living process goes on by itself
