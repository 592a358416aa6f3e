"""Hostile variants of good files: seeded, and made faster than they are read."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

# What a field may hold instead: text for numbers, numbers that no machine has, nesting.
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**62,
    2**63,
    10**19,
    -1.5,
    1e308,
    "",
    "x",
    "../../etc/passwd",
    "\x1b[2J\x00",
    "é\u202e" * 600,
    [],
    {},
    [[]],
    {"a": {"b": []}},
    ["x", "x"],
    [1, "x", None],
)

# What JSON writes, or nearly: replaced in the text of a file.
TOKENS = (
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"1e999",
    b"9" * 400,
    b"-0",
    b"1.",
    b'"\\ud800"',
    b'"\\u0000"',
    b"[" * 40 + b"]" * 40,
    b"[" * 5000,
    b'{"a":1,"a":2}',
    b"\xff\xfe",
    b'"\\"\\"\\"\\"',
)


def of_bytes(good: bytes, rng: random.Random) -> bytes:
    """Flipped bits, truncation, repetition, and pieces moved elsewhere."""
    data = bytearray(good)
    kind = rng.randrange(5)
    at = rng.randrange(len(data))
    if kind == 0:
        for _ in range(rng.choice((1, 1, 2, 16))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        data[at:at] = data[at : at + rng.randrange(1, 2000)]
    elif kind == 3:
        del data[at : at + rng.randrange(1, 64)]
    else:
        data[at : at + 8] = rng.randbytes(8)
    return bytes(data)


def of_json(good: Any, rng: random.Random) -> Any:
    """A document with one to three fields that are changed, missing, doubled or new."""
    value = copy.deepcopy(good)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            break
        holder, key = rng.choice(places)
        kind = rng.randrange(4)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        elif kind == 1:
            holder[f"{key}{rng.randrange(9)}"] = holder[key]
        elif kind == 2:
            other, name = rng.choice(places)
            holder[key] = copy.deepcopy(other[name]) if name in _keys(other) else None
        else:
            holder[key] = copy.deepcopy(rng.choice(VALUES))
    return value


def documents(good: Any, n: int, seed: str, seal: Callable[[Any], bytes]) -> Iterator[bytes]:
    """Variants of a JSON file: of its fields, with their seal, of its text, and of its bytes.

    Args:
        good: The document.
        n: How many.
        seed: Names the corpus.
        seal: Writes a document as the program would, with its checksums.
    """
    rng = random.Random(seed)
    whole = seal(good)
    for i in range(n):
        if i % 4 < 2:
            yield seal(of_json(good, rng))
        elif i % 4 == 2:
            at = rng.choice([j for j, c in enumerate(whole) if c in b":,["]) + 1
            end = next((j for j in range(at, len(whole)) if whole[j] in b",]}"), len(whole))
            yield whole[:at] + rng.choice(TOKENS) + whole[end:]
        else:
            yield of_bytes(whole, rng)


def plain(value: Any) -> bytes:
    """A document without a seal."""
    return json.dumps(value).encode()


def _keys(holder: Any) -> Any:
    return range(len(holder)) if isinstance(holder, list) else holder


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    found = [value]
    while found:
        holder = found.pop()
        if isinstance(holder, (dict, list)):
            keys = list(_keys(holder))
            yield from ((holder, key) for key in keys)
            found += [holder[key] for key in keys]
