"""Read and hash files piece by piece."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

_PIECE_BYTES = 2**20


def pieces(path: Path) -> Iterator[bytes]:
    """Read a file piece by piece.

    Raises:
        OSError: The file can't be read.
    """
    with path.open("rb", buffering=0) as stream:
        while piece := stream.read(_PIECE_BYTES):
            yield piece


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Raises:
        OSError: The file can't be read.
    """
    found = hashlib.sha256()
    for piece in pieces(path):
        found.update(piece)
    return found.hexdigest()
