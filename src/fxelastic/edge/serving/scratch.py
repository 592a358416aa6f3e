"""A folder for temporary files that does not stay behind, however its process ends."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path

import psutil

try:
    import fcntl
except ImportError:  # Windows has none; there, what a killed process leaves behind stays.
    fcntl = None  # type: ignore[assignment]

# File systems that hold their files in memory.
_IN_MEMORY = ("tmpfs", "ramfs")
_PREFIX = "fxelastic-serving-"
_LOCK = "lock"


def on_disk(folders: Sequence[str] | None = None) -> Path | None:
    """A folder for temporary files that are not held in memory; None where there is none.

    Args:
        folders: Those to choose from; by default the system's for temporary files, and the one for
            those that outlast a start.
    """
    for folder in map(Path, folders or (tempfile.gettempdir(), "/var/tmp")):
        if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK) and not _in_memory(folder):
            return folder
    return None


def _in_memory(folder: Path) -> bool:
    try:
        mounts = {mount.mountpoint: mount.fstype for mount in psutil.disk_partitions(all=True)}
    except (OSError, RuntimeError):
        return False
    parents = (str(parent) for parent in (folder.resolve(), *folder.resolve().parents))
    return mounts.get(next((p for p in parents if p in mounts), "")) in _IN_MEMORY


class Scratch:
    """A folder that only this user can open; deleted with `close`, or at the end of the process.

    What killed processes have left behind is deleted when one is made: each holds a lock on a file
    in its folder while it lives. A forked child has no say in its parent's folder.
    """

    def __init__(self, parent: Path | None = None) -> None:
        """Make one.

        Args:
            parent: The folder to make it in; the system's for temporary files by default.

        Raises:
            OSError: It can't be made.
        """
        self._parent = Path(parent or tempfile.gettempdir())
        self._closed = False
        self._make()

    def path(self) -> Path:
        """The folder; another one where it has been deleted, as some systems do with old files.

        Raises:
            OSError: It can't be made, or was closed.
        """
        if self._closed:
            raise FileNotFoundError("the folder for temporary files was closed")
        if not self._folder.is_dir():
            self._end()
            self._make()
        return self._folder

    def close(self) -> None:
        """Delete the folder and what is in it, for good."""
        self._closed = True
        self._end()

    def _make(self) -> None:
        _sweep(self._parent)
        self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self._parent))
        lock = _locked(self._folder)
        self._end = weakref.finalize(self, _remove, self._folder, lock, os.getpid())


def _locked(folder: Path) -> TextIOWrapper:
    """A lock on a folder; it has its name only when it is held."""
    temporary = folder / f".{_LOCK}"
    lock = temporary.open("w")
    if fcntl is not None:
        # Some file systems have no locks.
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            temporary.rename(folder / _LOCK)
    return lock


def _remove(folder: Path, lock: TextIOWrapper, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def _sweep(parent: Path) -> None:
    """Delete folders whose processes are no more."""
    if fcntl is None:
        return
    for folder in parent.glob(f"{_PREFIX}*"):
        # Other users' folders, those in use, and those that go at this moment.
        with suppress(OSError):
            if folder.lstat().st_uid != os.getuid():
                continue
            with (folder / _LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
