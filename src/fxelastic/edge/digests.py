"""Read, copy and hash files, each opened once."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_PIECE_BYTES = 2**20


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading that is neither a link nor a device; never waits for a writer.

    Raises:
        OSError: It can't be opened, or is not a regular file.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)
    # Without O_NONBLOCK, opening a named pipe would wait until somebody writes to it.
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    stream = os.fdopen(os.open(path, flags), "rb", buffering=0)
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise OSError(f"{path.name} is not a regular file")
    return stream


def read_regular(path: Path) -> bytes:
    """Read a file, as far as it went when it was opened.

    Raises:
        OSError: It can't be read, or is not a regular file.
    """
    with open_regular(path) as raw, open(raw.fileno(), "rb", closefd=False) as stream:
        return stream.read(os.fstat(raw.fileno()).st_size)


def pieces(path: Path) -> Iterator[bytes]:
    """Read a file piece by piece.

    Raises:
        OSError: It can't be read, or is not a regular file.
    """
    with open_regular(path) as stream:
        while piece := stream.read(_PIECE_BYTES):
            yield piece


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Raises:
        OSError: The file can't be read.
    """
    found = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        while piece := stream.read(_PIECE_BYTES):
            found.update(piece)
    return found.hexdigest()


def copy_hashed(source: BinaryIO, target: Path) -> str:
    """Copy a file, as far as it went when it was opened, and hash what is copied.

    Args:
        source: The file, from `open_regular`.
        target: The new file.

    Returns:
        The SHA-256 digest of the copy, in hexadecimal.

    Raises:
        OSError: The file can't be read, or the copy can't be written.
    """
    found = hashlib.sha256()
    left = os.fstat(source.fileno()).st_size
    with target.open("xb") as copy:
        while piece := source.read(min(_PIECE_BYTES, left)):
            left -= len(piece)
            found.update(piece)
            copy.write(piece)
    return found.hexdigest()
