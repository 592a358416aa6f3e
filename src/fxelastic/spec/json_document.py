"""Objects that are saved as JSON files with a schema."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from fxelastic.errors import UsageError
from fxelastic.files import read_regular, replace_file
from fxelastic.spec.bounded_json import loads

D = TypeVar("D", bound="JsonDocument")

_CHECKSUM = "sha256"

logger = logging.getLogger(__name__)


class JsonDocument(ABC):
    """An object that can be saved to a JSON file and loaded from it.

    The file has a checksum of its content, so that a damaged number is noticed. A file without one,
    as earlier versions wrote them, is read with a warning.

    Attributes:
        what: What to call such an object in messages.
        schemas: The schemas that can be read; the first one is written.
        command: The command that writes such files.
    """

    what: ClassVar[str]
    schemas: ClassVar[tuple[str, ...]]
    command: ClassVar[str]

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The object as data for ``json.dumps``, without its schema."""

    @classmethod
    @abstractmethod
    def from_dict(cls: type[D], value: Mapping[str, Any]) -> D:
        """Read the data that `to_dict` returns, in any of the schemas.

        Raises:
            KeyError, TypeError, ValueError, AttributeError, UsageError: The data is malformed.
        """

    def to_json(self) -> bytes:
        """The object as JSON, with a checksum: equal bytes for equal objects."""
        value = {"schema": self.schemas[0], **self.to_dict()}
        value[_CHECKSUM] = _checksum(value)
        return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()

    @classmethod
    def from_json(cls: type[D], data: bytes, where: str | None = None) -> D:
        """Read the bytes that `to_json` returns.

        Args:
            data: The bytes.
            where: The origin of the bytes, for messages.

        Raises:
            UsageError: The bytes don't contain a valid object; the message names the cause.
        """
        try:
            value = loads(data)
            schema = value.get("schema") if isinstance(value, dict) else value
            if schema not in cls.schemas:
                raise ValueError(f"schema {schema!r}")
            stated = value.pop(_CHECKSUM, None)
            if stated is None:
                logger.warning(
                    "%s has no checksum: an earlier version wrote it, or it was edited",
                    where or f"the {cls.what}",
                )
            elif stated != _checksum(value):
                raise ValueError("its content does not match its checksum")
            return cls.from_dict(value)
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as e:
            raise cls._other(where or "the data", f"{type(e).__name__}: {str(e)[:500]}") from e

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the object as JSON, atomically.

        Raises:
            UsageError: The file can't be written; an existing file is left unchanged.
        """
        write(path, self.to_json(), f"the {self.what}")

    @classmethod
    def load(cls: type[D], path: str | os.PathLike[str]) -> D:
        """Read a file written by `save` of this or an earlier version.

        Raises:
            UsageError: The file does not exist, or does not contain a valid object.
        """
        try:
            data = read_regular(Path(path), follow=True)
        except OSError as e:
            raise UsageError(
                f"the {cls.what} {path} can't be read",
                expected=f"a file written by {cls.command}",
                got=e.strerror or str(e),
                fix=f"check the path, or write it: {cls.command}",
            ) from e
        return cls.from_json(data, str(path))

    @classmethod
    def _other(cls, where: str, got: str) -> UsageError:
        return UsageError(
            f"{where} is not a {cls.what}",
            expected=f"a file of schema {cls.schemas[0]}",
            got=got,
            fix=f"write it again: {cls.command}",
        )


def _checksum(value: Mapping[str, Any]) -> str:
    """SHA-256 of the content, whatever its layout."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write(path: str | os.PathLike[str], data: bytes, what: str) -> None:
    """Write a file atomically.

    Raises:
        UsageError: The file can't be written; an existing file is left unchanged.
    """
    try:
        replace_file(Path(path), data)
    except OSError as e:
        raise UsageError(
            f"{what} can't be written to {path}",
            expected="a path in an existing, writable folder, on a disk with free space",
            got=f"{type(e).__name__}: {e.strerror or e}",
        ) from e
