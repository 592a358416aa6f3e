"""Write files so that a crash leaves the old or the new one, never half of one."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_durably(path: Path, data: bytes) -> None:
    """Write a file and wait until the disk has it.

    Raises:
        OSError: The disk is full, or the file can't be written.
    """
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file, or make it, in one step.

    A link's target is replaced, not the link; the file keeps its mode.

    Raises:
        OSError: The disk is full, or the folder can't be written. The old file is as it was.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        write_durably(temporary, data)
        if target.exists():
            temporary.chmod(target.stat().st_mode & 0o777)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    sync(target.parent)


def sync(path: Path) -> None:
    """Wait until the disk has a file, or a folder's entries where the system can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # A folder can't be opened on Windows.
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
