"""Parse untrusted JSON in time and memory that are linear in its bytes, with stated limits."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np

#: The most bytes of a document.
MAX_BYTES = 2**26
#: The most objects and arrays inside of each other.
MAX_DEPTH = 32
#: The most digits of an integer: no count in a document is larger.
MAX_DIGITS = 20

_STRING = re.compile(rb'"[^"]*"?')
_OTHERS = bytes(set(range(256)) - set(b"[]{}"))
_PIECE = 2**20


def loads(data: bytes, max_bytes: int = MAX_BYTES, *, finite: bool = True) -> Any:
    """Parse JSON in UTF-8.

    Args:
        data: The bytes.
        max_bytes: The most bytes.
        finite: Whether numbers must be finite. If not, ``NaN`` and ``Infinity`` are read, too.

    Raises:
        ValueError: It is not JSON, is too large or too deep, or has a duplicate key, a number that
            is not finite, or an integer of too many digits.
    """
    if len(data) > max_bytes:
        raise ValueError(f"it has {len(data):,} bytes, and at most {max_bytes:,} are read")
    depth = _depth(data)
    if depth > MAX_DEPTH:
        raise ValueError(f"objects and arrays are nested {depth} deep, and at most {MAX_DEPTH}")
    text = data.decode()
    return json.loads(
        text,
        object_pairs_hook=_unique,
        parse_constant=_constant if finite else None,
        parse_float=_float if finite else None,
        parse_int=_integer,
    )


def _depth(data: bytes) -> int:
    """How deep objects and arrays are nested, in linear time and without recursion."""
    # Without escapes, a string is what is between two quotes.
    plain = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    brackets = _STRING.sub(b"", plain).translate(None, delete=_OTHERS)
    deepest = depth = 0
    for at in range(0, len(brackets), _PIECE):
        found = np.frombuffer(brackets[at : at + _PIECE], np.uint8)
        opened = (found == ord("[")) | (found == ord("{"))
        depths = depth + np.cumsum(np.where(opened, 1, -1))
        deepest = max(deepest, int(depths.max()))
        depth = int(depths[-1])
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"an object has a duplicate key: {ascii(key)[:60]}")
            seen.add(key)
    return result


def _constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:60]} is not a finite number")
    return value


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"an integer has {len(text)} digits, and at most {MAX_DIGITS}")
    return int(text)
