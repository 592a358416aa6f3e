"""Read untrusted JSON: every field is checked, and every error names the field's path."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fxelastic.errors import BundleError, printable
from fxelastic.spec.bounded_json import loads

T = TypeVar("T")

# JSON does not limit integers; no machine holds more than this of anything.
MAX_COUNT = 2**62

#: The most bytes of a manifest, and the most characters of a name in it.
MAX_BYTES, MAX_NAME = 2**24, 1024

_MAX_SHOWN = 60


def parse_object(data: bytes, file: str) -> Fields:
    """Parse a JSON file that holds an object.

    Args:
        data: The file's bytes: JSON in UTF-8.
        file: The file's name, for messages.

    Raises:
        BundleError: The data is not JSON or not an object, or breaks a limit of `bounded_json`.
    """
    try:
        value = loads(data, MAX_BYTES)
    except ValueError as e:
        raise BundleError(f"{file} is not JSON", expected="JSON in UTF-8", got=str(e)) from e
    if not isinstance(value, dict):
        raise BundleError(f"{file} is not a JSON object", expected="a JSON object", got=show(value))
    return Fields(value, file, "")


class Fields:
    """A JSON object whose fields are read one by one; each read checks the field's type.

    Attributes:
        value: The object.
        file: The file's name, for messages.
        path: The path of the object in the file, such as ``values[3]``; empty at the top level.
    """

    def __init__(self, value: Mapping[str, Any], file: str, path: str) -> None:
        """Create a reader that has not read any fields yet."""
        self.value = value
        self.file = file
        self.path = path
        self._taken: set[str] = set()

    def take(self, name: str) -> Any:
        """The value of a required field."""
        if name not in self.value:
            raise self.error(name, "is missing", expected=f"a field {name!r}", got="no such field")
        self._taken.add(name)
        return self.value[name]

    def end(self) -> None:
        """Raise an error if a field was not read."""
        unknown = [name for name in self.value if name not in self._taken]
        if unknown:
            raise self.error(
                unknown[0],
                "is an unknown field",
                expected=", ".join(sorted(self._taken)),
                got=show(unknown[0]),
            )

    def text(self, name: str, pattern: str | None = None, what: str = "a string") -> str:
        """A string; if ``pattern`` is given, all of the string must match it.

        It has escapes for control characters, so that it can be printed.
        """
        value = self.take(name)
        if isinstance(value, str) and pattern is not None and len(value) > MAX_NAME:
            expected = f"at most {MAX_NAME} characters"
            raise self.error(name, "is too long", expected=expected, got=f"{len(value):,}")
        if not isinstance(value, str) or (pattern is not None and not re.fullmatch(pattern, value)):
            raise self.error(name, f"is not {what}", expected=what, got=show(value))
        return printable(value)

    def optional_text(self, name: str) -> str | None:
        """A string or null."""
        return None if self.take(name) is None else self.text(name)

    def count(self, name: str, low: int = 0, high: int = MAX_COUNT) -> int:
        """An integer in ``[low, high]``."""
        value = self.take(name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            expected = f"an integer from {low} to {high}"
            raise self.error(name, "is out of range", expected=expected, got=show(value))
        return value

    def number(self, name: str) -> float:
        """A finite number of at least 0."""
        value = self.take(name)
        if type(value) not in (int, float):
            raise self.error(name, "is not a number", expected="a number", got=show(value))
        if not 0 <= value < math.inf:
            raise self.error(name, "is out of range", expected="at least 0", got=show(value))
        return float(value)

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self.take(name)
        if not isinstance(value, bool):
            raise self.error(name, "is not a flag", expected="true or false", got=show(value))
        return value

    def optional_flag(self, name: str) -> bool | None:
        """True, false or null."""
        return None if self.take(name) is None else self.flag(name)

    def array(self, name: str) -> list[Any]:
        """An array; its items are not checked."""
        value = self.take(name)
        if not isinstance(value, list):
            raise self.error(name, "is not an array", expected="an array", got=show(value))
        return value

    def texts(
        self, name: str, pattern: str | None = None, what: str = "a string"
    ) -> tuple[str, ...]:
        """An array of distinct strings."""
        items = self.array(name)
        for i, item in enumerate(items):
            if not isinstance(item, str) or (pattern and not re.fullmatch(pattern, item)):
                raise self.error(f"{name}[{i}]", f"is not {what}", expected=what, got=show(item))
        if len(set(items)) != len(items):
            seen: set[str] = set()
            double = next(item for item in items if item in seen or seen.add(item))  # type: ignore[func-returns-value]
            raise self.error(
                name, "has a duplicate item", expected="distinct items", got=show(double)
            )
        return tuple(map(printable, items))

    def object(self, name: str) -> Fields:
        """An object."""
        value = self.take(name)
        if not isinstance(value, dict):
            raise self.error(name, "is not an object", expected="an object", got=show(value))
        return Fields(value, self.file, self._where(name))

    def objects(self, name: str, read: Callable[[Fields], T]) -> tuple[T, ...]:
        """An array of objects, each read by ``read``, which must read all fields."""
        result = []
        for i, item in enumerate(self.array(name)):
            where = f"{name}[{i}]"
            if not isinstance(item, dict):
                raise self.error(where, "is not an object", expected="an object", got=show(item))
            fields = Fields(item, self.file, self._where(where))
            result.append(read(fields))
            fields.end()
        return tuple(result)

    def error(
        self, name: str, problem: str, *, expected: str | None = None, got: str | None = None
    ) -> BundleError:
        """An error about a field."""
        return BundleError(
            f"{self.file}: {self._where(name)} {problem}",
            expected=expected,
            got=got,
            fix="export the bundle again",
        )

    def _where(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name


def show(value: Any) -> str:
    """A value in one short line, for messages."""
    text = ascii(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
