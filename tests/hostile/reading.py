"""Reads hostile files: each is read, or refused with a short message, in bounds."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fxelastic.errors import FxElasticError, InternalError
from tests.hostile.mutations import plain

#: Files of each kind.
N = 5000
# A message is read by people, in a terminal.
_MOST_CHARACTERS = 4096
# Times the processor time of reading the good file; the least is for the clock's steps.
_TIMES, _LEAST_S = 20.0, 0.25
_MOST_KIB = 2**18


def is_read(read: Callable[[bytes], Any], data: bytes) -> bool:
    """Whether a file is read; an error must be the user's, and have a short message."""
    try:
        read(data)
    except InternalError:
        raise
    except FxElasticError as e:
        text = str(e)
        assert len(text) <= _MOST_CHARACTERS
        assert all(c.isprintable() or c in "\n\t" for c in text)
        return False
    return True


def check(
    read: Callable[[bytes], Any],
    good: bytes,
    variants: Iterator[bytes],
    *,
    least_refused: float = 0.25,
) -> None:
    """Check that a good file is read, and that all variants end within bounds.

    Args:
        read: Reads a file; returns anything.
        good: The good file.
        variants: The hostile files.
        least_refused: The least share of them that are refused.
    """
    begin_s = time.process_time()
    assert is_read(read, good)
    good_s = time.process_time() - begin_s
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    n = n_refused = 0
    for data in variants:
        begin_s = time.process_time()
        n_refused += not is_read(read, data)
        assert time.process_time() - begin_s < max(_LEAST_S, _TIMES * good_s)
        n += 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < _MOST_KIB
    assert n_refused > least_refused * n


def put(path: Path, data: bytes) -> None:
    """Write a file as a new one: some file systems flush one that is overwritten to the disk."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def resealed(value: Any, field: str, seal: Callable[[Any], str]) -> bytes:
    """A document with the checksum of its content in a field of its own."""
    if isinstance(value, dict):
        value = {k: v for k, v in value.items() if k != field}
        return plain({**value, field: seal(value)})
    return plain(value)


def document(read: Callable[[bytes], Any], path: Path) -> tuple[Any, Callable[[bytes], Any]]:
    """A good document, and what reads it."""
    return json.loads(read(path.read_bytes()).to_json()), read
