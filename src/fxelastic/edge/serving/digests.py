"""Digests of files, taken little by little."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

# This much takes about 0.1 ms.
_PIECE_BYTES = 2**16


def digest(path: Path, pace: Callable[[float], None] = lambda piece_s: None) -> str:
    """Sha256 of a file.

    Args:
        path: The file.
        pace: Called after each piece of work with the seconds that it took: may wait.

    Raises:
        OSError: The file can't be read.
    """
    found = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        while True:
            begin_s = time.monotonic()
            piece = stream.read(_PIECE_BYTES)
            if not piece:
                return found.hexdigest()
            found.update(piece)
            pace(time.monotonic() - begin_s)
