"""Rows of bytes by key in a file, written once and checked before they are used again."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from fxelastic.errors import TrainingError
from fxelastic.files import open_regular, read_regular, sync, write_durably
from fxelastic.spec.bounded_json import loads

SCHEMA = "fxelastic.rows/1"
#: Bytes of a key.
KEY_BYTES = 16

_ROWS, _INDEX, _FACTS = "rows.bin", "index.npy", "rows.json"
_CHUNK = 2**22
# A key as two numbers.
_HALVES = struct.Struct(">QQ")
_FEW = 2**12
_ENTRY = np.dtype([("key", f"S{KEY_BYTES * 2}"), ("offset", "<i8"), ("form", "<i4")])

Array: TypeAlias = np.ndarray[Any, Any]

logger = logging.getLogger(__name__)


class _Places:
    """Where each row begins, and its form, by key, in 28 bytes each: a dictionary takes 250.

    The last ones that were added are in a dictionary all the same: up to 4,096, or a fifth of all.
    """

    def __init__(self, index: Array | None = None) -> None:
        """Take what an index holds.

        Args:
            index: An `_ENTRY` for each row.

        Raises:
            ValueError: A key is not of `KEY_BYTES` bytes in hexadecimal digits.
        """
        found = np.empty(0, _ENTRY) if index is None else index
        packed = bytes.fromhex(b"".join(found["key"].tolist()).decode())
        keys = np.frombuffer(packed, ">u8").reshape(len(found), 2)
        self._recent: dict[bytes, tuple[int, int]] = {}
        self._sort(keys, found["offset"], found["form"])

    def __len__(self) -> int:
        return len(self._firsts) + len(self._recent)

    def __contains__(self, key: bytes) -> bool:
        return key in self._recent or self._number(key) is not None

    def __getitem__(self, key: bytes) -> tuple[int, int]:
        if key in self._recent:
            return self._recent[key]
        i = self._number(key)
        if i is None:
            raise KeyError(key)
        return int(self._offsets[i]), int(self._forms[i])

    def add(self, key: bytes, offset: int, form: int) -> None:
        """Note a row whose key is new."""
        self._recent[key] = offset, form
        if len(self._recent) >= max(_FEW, len(self._firsts) // 4):
            self._compact()

    def index(self) -> Array:
        """An `_ENTRY` for each row, in the order of the file."""
        self._compact()
        found = np.empty(len(self), _ENTRY)
        keys = np.stack([self._firsts, self._seconds], axis=1).astype(">u8")
        found["key"] = np.frombuffer(keys.tobytes().hex().encode(), found.dtype["key"])
        found["offset"], found["form"] = self._offsets, self._forms
        return found[np.argsort(found["offset"], kind="stable")]

    def _number(self, key: bytes) -> int | None:
        """Where the arrays have a key."""
        first, second = _HALVES.unpack(key)
        i = int(np.searchsorted(self._firsts, np.uint64(first)))
        while i < len(self._firsts) and self._firsts[i] == first:
            if self._seconds[i] == second:
                return i
            i += 1
        return None

    def _compact(self) -> None:
        """Move the recent rows to the arrays."""
        own = np.stack([self._firsts, self._seconds], axis=1)
        keys = np.frombuffer(b"".join(self._recent), ">u8").reshape(-1, 2)
        places = np.array(list(self._recent.values()), np.int64).reshape(-1, 2)
        self._recent = {}
        self._sort(
            np.concatenate([own, keys]),
            np.concatenate([self._offsets, places[:, 0]]),
            np.concatenate([self._forms, places[:, 1]]),
        )

    def _sort(self, keys: Array, offsets: Array, forms: Array) -> None:
        order = np.argsort(keys[:, 0], kind="stable")
        self._firsts, self._seconds = (keys[order, i].astype(np.uint64) for i in range(2))
        self._offsets, self._forms = offsets[order], forms[order].astype(np.int32)


class RowStore:
    """Rows in a folder.

    The folder gets its name when it is on disk as a whole, so that a killed process leaves no
    partial rows under that name. Rows are read from the file when they are needed: the store takes
    no memory but for its keys.

    Attributes:
        folder: The folder.
        forms: What the rows hold: for each form the shapes of its tensors.
        n_bytes: Bytes of all rows.
    """

    def __init__(self, folder: Path, facts: Mapping[str, str]) -> None:
        """Begin to write rows.

        Args:
            folder: The folder; its parent exists.
            facts: What the rows depend on, by name.

        Raises:
            OSError: The folder can't be written.
        """
        self.folder = folder
        self.forms: list[tuple[tuple[int, ...], ...]] = []
        self.n_bytes = 0
        self._facts = dict(facts)
        self._places = _Places()
        self._digest = hashlib.sha256()
        self._temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        discard(folder)
        self._temporary.mkdir(parents=True)
        self._file: Any = (self._temporary / _ROWS).open("wb")

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def add(self, key: bytes, shapes: tuple[tuple[int, ...], ...], parts: Sequence[Any]) -> None:
        """Append a row.

        Args:
            key: Its key, of `KEY_BYTES` bytes.
            shapes: The shapes of its tensors.
            parts: The bytes of each tensor.

        Raises:
            OSError: The disk is full.
        """
        if shapes not in self.forms:
            self.forms.append(shapes)
        self._places.add(key, self.n_bytes, self.forms.index(shapes))
        for part in parts:
            self._file.write(part)
            self._digest.update(part)
            self.n_bytes += len(part)

    def seal(self) -> None:
        """Give the folder its name; rows can be read from then on.

        Raises:
            OSError: The disk is full.
        """
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        index = self._places.index()
        write_durably(self._temporary / _INDEX, index.tobytes())
        record = {
            "schema": SCHEMA,
            "facts": self._facts,
            "forms": self.forms,
            "n_bytes": self.n_bytes,
            "rows": self._digest.hexdigest(),
            "index": hashlib.sha256(index.tobytes()).hexdigest(),
        }
        write_durably(self._temporary / _FACTS, json.dumps(record).encode())
        sync(self._temporary)
        shutil.rmtree(self.folder, ignore_errors=True)
        self._temporary.rename(self.folder)
        sync(self.folder.parent)
        self._open()

    @classmethod
    def existing(cls, folder: Path, facts: Mapping[str, str]) -> RowStore | None:
        """The rows of an earlier process; None if they are not there, not whole, or others."""
        if not (folder / _FACTS).is_file():
            return None
        try:
            record = loads(read_regular(folder / _FACTS))
            packed = read_regular(folder / _INDEX)
            if record["schema"] != SCHEMA or record["facts"] != dict(facts):
                raise ValueError("it is of another run")
            index = np.frombuffer(packed, _ENTRY)
            forms, n_bytes = _forms(record["forms"]), int(record["n_bytes"])
            known = (index["form"] >= 0) & (index["form"] < len(forms))
            known &= (index["offset"] >= 0) & (index["offset"] <= n_bytes)
            whole = (
                hashlib.sha256(packed).hexdigest() == record["index"]
                and _digest_of(folder / _ROWS) == record["rows"]
            )
            if not whole or not known.all():
                raise ValueError("it is damaged")
            places = _Places(index)
        except (OSError, ValueError, KeyError, TypeError, ArithmeticError) as e:
            logger.warning("%s can't be used again: %s", folder, e)
            return None
        store = cls.__new__(cls)
        store.folder, store.forms, store.n_bytes, store._places = folder, forms, n_bytes, places
        store._open()
        return store

    def form(self, keys: Sequence[bytes]) -> int | None:
        """The form of rows; None if they differ in it."""
        found = {self._places[key][1] for key in keys}
        return found.pop() if len(found) == 1 else None

    def read(self, keys: Sequence[bytes], size: int) -> Array:
        """Rows of one form.

        Args:
            keys: Their keys.
            size: Bytes of a row.

        Returns:
            The bytes, ``(len(keys), size)``.

        Raises:
            TrainingError: The file is shorter than it was.
        """
        rows = np.empty((len(keys), size), np.uint8)
        for row, key in zip(rows, keys, strict=True):
            self._file.seek(self._places[key][0])
            if self._file.readinto(row.data) != size:
                raise TrainingError(
                    f"{self.folder / _ROWS} is shorter than it was",
                    expected="that no other program writes to the folder of checkpoints",
                    got="the end of the file",
                    fix="run again: missing values are computed again",
                )
        return rows

    def close(self) -> None:
        """Close the file, which stays."""
        self._file.close()

    def discard(self) -> None:
        """Remove the folder, and what killed processes left of it."""
        self.close()
        discard(self.folder)

    def _open(self) -> None:
        self._file = (self.folder / _ROWS).open("rb", buffering=0)


def discard(folder: Path) -> None:
    """Remove the folder of a store, and what killed processes left of it."""
    if folder.parent.is_dir():
        for path in (folder, *folder.parent.glob(f".{folder.name}.*.tmp")):
            shutil.rmtree(path, ignore_errors=True)


def _forms(value: Any) -> list[tuple[tuple[int, ...], ...]]:
    """The forms that a file states.

    Raises:
        TypeError, ValueError: They are not lists of shapes.
    """
    forms = [tuple(map(tuple, form)) for form in value]
    if not all(type(n) is int and 0 <= n < 2**31 for f in forms for shape in f for n in shape):
        raise ValueError("a shape is not of counts")
    return forms


def _digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
