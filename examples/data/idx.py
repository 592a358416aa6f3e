"""Images and classes in the format of MNIST and Fashion-MNIST: four compressed IDX files."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np

#: The parts of a split: images and classes.
PARTS = ("images-idx3-ubyte", "labels-idx1-ubyte")


def read_split(folder: Path, name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The images ``(n, 28, 28)`` and classes ``(n,)`` of a split.

    Args:
        folder: Holds the files as published.
        name: ``"train"`` or ``"t10k"``, the test split.

    Raises:
        FileNotFoundError: A file is missing.
    """
    images, classes = (_read(folder / f"{name}-{part}.gz") for part in PARTS)
    return images, classes


def _read(path: Path) -> np.ndarray[Any, Any]:
    """The array of an IDX file: two zero bytes, type, rank, the sizes (big-endian), the values."""
    data = gzip.decompress(path.read_bytes())
    rank = data[3]
    shape = np.frombuffer(data, ">u4", rank, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)
