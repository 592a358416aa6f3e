"""Write files atomically: after a crash, either the old or the new file is complete."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_durably(path: Path, data: bytes) -> None:
    """Write a file and flush it to the disk.

    Raises:
        OSError: The disk is full, or the file can't be written.
    """
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Replace or create a file atomically.

    A symbolic link stays, and its target is replaced; the file keeps its mode.

    Raises:
        OSError: The disk is full, or the folder can't be written. The old file is unchanged.
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
    """Flush a file, or a folder's entries where the system supports it, to the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # A folder can't be opened on Windows.
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
