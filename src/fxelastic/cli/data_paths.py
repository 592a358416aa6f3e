"""Files and folders of data: which they are, and whether they have changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from fxelastic.edge.digests import digest

#: The separators of tables, by the files' suffix.
TABLES = {".csv": ",", ".tsv": "\t"}


def is_data_file(text: str) -> bool:
    """Whether ``--data`` names a file or folder of samples, not Python code."""
    return Path(text).suffix.lower() in (".npz", ".npy", *TABLES) or Path(text).is_dir()


def digest_of(path: Path) -> str:
    """Sha256 of a file; of a folder, the names, sizes and times of its files; or ``missing``."""
    if path.is_dir():
        found = hashlib.sha256()
        for file in _files(path):
            # Of a link's target, where it has one.
            stat = file.stat() if file.exists() else file.lstat()
            # The bytes of a name need not be UTF-8.
            name = file.relative_to(path).as_posix().encode(errors="surrogateescape")
            found.update(name + f" {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return found.hexdigest()
    return digest(path.resolve()) if path.is_file() else "missing"


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(place) / name for name in sorted(files))
