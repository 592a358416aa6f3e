"""Arrays from whoever may send them."""

from __future__ import annotations

import io
import pickle
import random
import struct
import zipfile
from typing import Any

import numpy as np
import pytest

from fxelastic.edge.array_bytes import read_arrays, read_npy, write_arrays, write_npy
from fxelastic.errors import UsageError

MAX = 10_000


class Pipe(io.RawIOBase):
    """A stream that gives a few bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self._stream = io.BytesIO(data)

    def read(self, n: int = -1) -> bytes:
        return self._stream.read(min(n, 7))


ARRAYS = [
    np.arange(12, dtype=np.float32).reshape(3, 4),
    np.asfortranarray(np.arange(12, dtype=np.float64).reshape(3, 4)),
    np.arange(6, dtype=">i4"),
    np.array(3, np.int64),
    np.zeros((0, 4), np.float16),
    np.array([True, False]),
]


@pytest.mark.parametrize("shape", [f"({'1, ' * 65})", f"(0, {2**62}, {2**62})"])
def test_shapes_that_numpy_does_not_have_are_refused(shape: str) -> None:
    data = header(shape) + b"\0" * 4
    with pytest.raises(UsageError, match=r"can't have this shape|too large"):
        read_npy(io.BytesIO(data), MAX)


@pytest.mark.parametrize("array", ARRAYS)
def test_an_array_survives(array: np.ndarray[Any, Any]) -> None:
    read = read_npy(io.BytesIO(write_npy(array)), MAX)
    assert read is not None
    assert read.shape == array.shape
    np.testing.assert_array_equal(read, array)
    assert read.dtype == array.dtype.newbyteorder("=")
    assert read.flags.c_contiguous


def test_arrays_follow_one_another_in_a_pipe() -> None:
    pipe: Any = Pipe(b"".join(map(write_npy, ARRAYS)))
    for array in ARRAYS:
        np.testing.assert_array_equal(read_npy(pipe, MAX), array)
    assert read_npy(pipe, MAX) is None


def header(shape: str, descr: str = "'<f4'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"x", r"not a \.npy"),
        (b"\x93NUMPY\x03\x00", r"not a \.npy"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, r"not a \.npy"),
        (header("(4,"), r"not a \.npy"),
        (header("(4.5,)"), r"not a \.npy"),
        (header("(-4,)"), "does not contain numbers"),
        (header("(1000000000000,)"), "too large"),
        (header("(4,)"), "ends too early"),
        (header("(4,)", "'|O'") + b"0" * 32, "does not contain numbers"),
        (header("(1,)", "'<U4'") + b"0" * 16, "does not contain numbers"),
        (header("(1,)", "[('a', '<f4')]") + b"0" * 4, "does not contain numbers"),
    ],
)
def test_what_is_no_array_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_npy(io.BytesIO(data), MAX)


def test_nothing_is_unpickled() -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return pytest.fail, ("unpickled",)

    stream = io.BytesIO()
    np.save(stream, np.array([1], object), allow_pickle=True)
    data = stream.getvalue()[:128] + pickle.dumps(Bomb())
    with pytest.raises(UsageError, match="does not contain numbers"):
        read_npy(io.BytesIO(data), MAX)


def test_named_arrays_survive() -> None:
    named = {"ids": np.arange(3), "mask": np.ones((1, 3), bool)}
    read = read_arrays(write_arrays(named), ("ids", "mask"), MAX)
    assert list(read) == ["ids", "mask"]
    for name, array in named.items():
        np.testing.assert_array_equal(read[name], array)


def test_one_input_needs_no_name() -> None:
    read = read_arrays(write_npy(ARRAYS[0]), ("x",), MAX)
    np.testing.assert_array_equal(read["x"], ARRAYS[0])
    with pytest.raises(UsageError, match="2 inputs"):
        read_arrays(write_npy(ARRAYS[0]), ("x", "y"), MAX)
    with pytest.raises(UsageError, match="after the array"):
        read_arrays(write_npy(ARRAYS[0]) + b"!", ("x",), MAX)
    with pytest.raises(UsageError, match="request is empty"):
        read_arrays(b"", ("x",), MAX)


def test_a_zip_bomb_is_not_unpacked() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header("(250000000,)") + bytes(10**7))
    with pytest.raises(UsageError, match="too large"):
        read_arrays(stream.getvalue(), ("x",), MAX)


def test_all_members_share_one_limit() -> None:
    named = {name: np.zeros(MAX // 8, np.float32) for name in "abc"}
    with pytest.raises(UsageError, match="too large"):
        read_arrays(write_arrays(named), tuple("abc"), MAX)


def test_mutated_bytes_are_read_or_refused() -> None:
    rng = random.Random(0)
    good = [write_npy(ARRAYS[0]), write_arrays({"x": ARRAYS[0], "y": ARRAYS[2]})]
    refused = 0
    for _ in range(2_000):
        data = bytearray(rng.choice(good))
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        del data[rng.choice((len(data), rng.randrange(len(data)))) :]
        try:
            read_arrays(bytes(data), ("x",), MAX)
        except UsageError:
            refused += 1
    assert refused > 500
