"""A folder that only this user can read: nobody replaces the files in it before their use."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import tempfile
import weakref
from contextlib import suppress
from functools import cache
from pathlib import Path

from fxelastic.files import is_over

logger = logging.getLogger(__name__)


class PrivateFolder:
    """A temporary folder of mode 0700, which goes with the object and at the end of the process.

    Sessions may map files of it and outlive it. A forked child does not remove its parent's.
    A killed process leaves its folder behind; the next one that makes a folder removes it.

    Attributes:
        path: The folder.
    """

    def __init__(self) -> None:
        """Make the folder, in the system's folder for temporary files.

        Raises:
            OSError: It can't be made.
        """
        prefix = _prefix()
        _sweep(Path(tempfile.gettempdir()), prefix)
        self.path = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-"))
        weakref.finalize(self, _remove, self.path, os.getpid())


def _remove(path: Path, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(path, ignore_errors=True)


@cache
def _sweep(parent: Path, prefix: str) -> None:
    """Remove, once in a process, what killed processes of this machine and user left."""
    own = getattr(os, "getuid", lambda: 0)()
    for left in sorted(parent.glob(f"{prefix}*-*")):
        pid = left.name.removeprefix(prefix).partition("-")[0]
        # Another process that starts at the same time may remove it first.
        with suppress(FileNotFoundError):
            if pid.isdigit() and is_over(int(pid)) and left.lstat().st_uid == own:
                logger.warning("%s was left by a process that was killed, and is removed", left)
                shutil.rmtree(left, ignore_errors=True)


def _prefix() -> str:
    # Several machines or containers may share the parent, but each knows only its own processes.
    return f"fxelastic-{hashlib.sha256(platform.node().encode()).hexdigest()[:8]}-"
