"""Read ``.npz`` files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fxelastic.edge import array_bytes
from fxelastic.edge.executor import Array
from fxelastic.errors import UsageError
from fxelastic.files import open_regular

#: The most that a file may unpack to: so many times its size, or so many bytes.
MAX_RATIO, MAX_BYTES = 100, 2**28


def read_npz(path: Path) -> dict[str, Array]:
    """Read all arrays of a file. Nothing is unpickled, so a data file can't run code.

    Raises:
        UsageError: The file can't be read, is not an ``.npz`` file, or unpacks to more than 256 MiB
            and 100 times its size.
    """
    try:
        with _opened(path) as file:
            most = max(MAX_BYTES, MAX_RATIO * os.fstat(file.fileno()).st_size)
            return array_bytes.read_npz(file, most)
    except (OSError, UsageError) as e:
        raise _unreadable(path, e) from e


def names_in_npz(path: Path) -> list[str]:
    """The names of a file's arrays.

    Raises:
        UsageError: The file can't be read, or is not an ``.npz`` file.
    """
    try:
        with _opened(path) as file:
            return array_bytes.names_in_npz(file)
    except (OSError, UsageError) as e:
        raise _unreadable(path, e) from e


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with open_regular(path, follow=True) as raw, open(raw.fileno(), "rb", closefd=False) as file:
        yield file


def _unreadable(path: Path, error: Exception) -> UsageError:
    what = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
    return UsageError(
        f"{path} can't be read",
        expected="an .npz file of arrays, as written by numpy.savez",
        got=what,
        fix="write samples of different sizes padded, with an array of their lengths"
        if isinstance(error, UsageError) and "object" in what
        else None,
    )
