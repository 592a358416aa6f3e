"""Read ``.npz`` files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fxelastic.edge.executor import Array
from fxelastic.errors import UsageError

T = TypeVar("T")


def read_npz(path: Path) -> dict[str, Array]:
    """Read all arrays of a file. Nothing is unpickled, so a data file can't run code.

    Raises:
        UsageError: The file can't be read, or is not an ``.npz`` file.
    """
    return _read(path, lambda file: {name: file[name] for name in file.files})


def names_in_npz(path: Path) -> list[str]:
    """The names of a file's arrays.

    Raises:
        UsageError: The file can't be read, or is not an ``.npz`` file.
    """
    return _read(path, lambda file: list(file.files))


def _read(path: Path, reading: Callable[[Any], T]) -> T:
    try:
        with np.load(path, allow_pickle=False) as file:
            return reading(file)
    except MemoryError:
        raise
    except Exception as e:
        # Damaged files raise errors of zipfile, zlib, struct or numpy, without a common class.
        raise UsageError(
            f"{path} can't be read",
            expected="an .npz file of arrays, as written by numpy.savez",
            got=f"{type(e).__name__}: {e}",
            fix="write samples of different sizes padded, with an array of their lengths"
            if "Object arrays" in str(e)
            else None,
        ) from e
