"""Change and check options that are given as keyword arguments."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from numbers import Real
from typing import Any, TypeVar

from fxelastic.errors import UsageError

T = TypeVar("T")


def options_of(options: T, changes: Mapping[str, Any]) -> T:
    """A copy of options with some fields changed.

    Args:
        options: An instance of a dataclass.
        changes: The new values by field name.

    Raises:
        UsageError: A name is not a field, or a value is out of range.
    """
    known = [field.name for field in fields(options)]  # type: ignore[arg-type]
    for name in changes:
        if name not in known:
            close = difflib.get_close_matches(name, known)
            raise UsageError(
                f"there is no option {name!r}",
                expected=", ".join(known),
                got=repr(name),
                fix=f"did you mean {' or '.join(close)}?" if close else None,
            )
    return replace(options, **changes)  # type: ignore[type-var]


def check_count(name: str, value: object, least: int = 1) -> None:
    """Check that an option is an integer of at least ``least``.

    Raises:
        UsageError: The value is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(
            f"{name} must be at least {least}, got {value!r}",
            expected=f"an integer of at least {least}",
            got=repr(value),
        )


def check_word(name: str, value: object, known: Iterable[str]) -> None:
    """Check that an option is one of the known words.

    Raises:
        UsageError: The value is something else.
    """
    known = tuple(known)
    if value not in known:
        words = ", ".join(map(repr, known))
        raise UsageError(
            f"{name} must be one of {words}, got {value!r}", expected=words, got=repr(value)
        )


def is_number(value: object) -> bool:
    """Whether an option is a single number; NaN and infinity are, truth values are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_seed(value: object) -> None:
    """Check that a seed is an integer that torch takes.

    Raises:
        UsageError: The value is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**64:
        raise UsageError(
            f"seed must be an integer, got {value!r}",
            expected="an integer of at most 64 bits",
            got=repr(value),
        )


def check_callable(name: str, value: object) -> None:
    """Check that an option is a function, or None.

    Raises:
        UsageError: The value is something else.
    """
    if value is not None and not callable(value):
        raise UsageError(
            f"{name} must be a function, got {value!r}", expected="a function", got=repr(value)
        )


def check_positive(name: str, value: object) -> None:
    """Check that an option is a finite number above 0.

    Raises:
        UsageError: The value is something else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise UsageError(
            f"{name} must be above 0, got {value!r}",
            expected="a finite number above 0",
            got=repr(value),
        )
