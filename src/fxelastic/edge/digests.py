"""Copy and hash files, each opened once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fxelastic.files import open_regular

_PIECE_BYTES = 2**20


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
