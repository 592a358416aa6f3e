"""Files, read and hashed piece by piece."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

Pace: TypeAlias = Callable[[float], None]

# A piece takes about 0.1 ms.
_PIECE_BYTES = 2**16


def at_once(piece_s: float) -> None:
    """A pace that does not wait."""


def pieces(path: Path, pace: Pace = at_once) -> Iterator[bytes]:
    """A file, piece by piece.

    Args:
        path: The file.
        pace: Called after each piece with the seconds that it and its processing took.

    Raises:
        OSError: The file can't be read.
    """
    with path.open("rb", buffering=0) as stream:
        while True:
            begin_s = time.monotonic()
            piece = stream.read(_PIECE_BYTES)
            if not piece:
                return
            yield piece
            pace(time.monotonic() - begin_s)


def digest(path: Path, pace: Pace = at_once) -> str:
    """Sha256 of a file.

    Args:
        path: The file.
        pace: As of `pieces`.

    Raises:
        OSError: The file can't be read.
    """
    found = hashlib.sha256()
    for piece in pieces(path, pace):
        found.update(piece)
    return found.hexdigest()
