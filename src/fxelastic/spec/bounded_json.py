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

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


def loads(data: bytes, max_bytes: int = MAX_BYTES) -> Any:
    """Parse JSON in UTF-8.

    Args:
        data: The bytes.
        max_bytes: The most bytes.

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
        parse_constant=_constant,
        parse_float=_float,
        parse_int=_integer,
    )


def _depth(data: bytes) -> int:
    """How deep objects and arrays are nested, without recursion."""
    found = np.frombuffer(_STRING.sub(b"", data), np.uint8)
    steps = np.zeros(len(found), np.int64)
    steps[(found == ord("[")) | (found == ord("{"))] = 1
    steps[(found == ord("]")) | (found == ord("}"))] = -1
    return int(np.cumsum(steps).max(initial=0))


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
