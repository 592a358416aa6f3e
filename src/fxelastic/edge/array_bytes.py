"""Read and write arrays as .npy and .npz bytes; senders are not trusted."""

from __future__ import annotations

import io
import math
import tokenize
import zipfile
from collections.abc import Collection, Mapping, Sequence
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from fxelastic.edge.executor import Array
from fxelastic.errors import UsageError

_MAX_HEADER_BYTES = 10_000
# numpy parses the header with ast and tokenize, which raise their own errors.
_HEADER_ERRORS = (
    *(ValueError, TypeError, EOFError, MemoryError, RecursionError),
    *(SyntaxError, tokenize.TokenError),
)
_NPZ_MAGIC = b"PK\x03\x04"
# The end of a zip file: its signature, the offset of the directory's size in it, and its length.
_END, _SIZE_AT, _END_BYTES = b"PK\x05\x06", 12, 22
_END_64 = b"PK\x06\x07"
_MAX_COMMENT = 2**16
# Arrays in a file whose names are not known before.
_MOST_MEMBERS = 1000
# The most bytes that the directory has for a member.
_MEMBER_BYTES = 2048


def read_npy(stream: BinaryIO, max_bytes: int) -> Array | None:
    """Read one array. Nothing is unpickled, and memory is allocated only for bytes that arrive.

    Args:
        stream: The source; afterwards its position is behind the array, where another may follow.
        max_bytes: The maximum size of the data, in bytes.

    Returns:
        The array, in C order; None at the end of the stream.

    Raises:
        UsageError: The data is not an array of numbers, is too large, or is incomplete.
    """
    first = stream.read(1)
    if not first:
        return None
    try:
        version = npy.read_magic(_Whole(io.BytesIO(first), stream))
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} of the format is not supported")
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        # numpy reads a header of the length that it states before it compares it with the limit.
        limited = _Whole(stream, most=_MAX_HEADER_BYTES)
        shape, fortran_order, dtype = header(limited, max_header_size=_MAX_HEADER_BYTES)
    except _HEADER_ERRORS as e:
        raise UsageError(
            "the data is not a .npy array", expected="bytes from numpy.save", got=_first_line(e)
        ) from e
    if dtype.hasobject or dtype.kind not in "biufc" or any(size < 0 for size in shape):
        raise UsageError(
            "the .npy array does not contain numbers",
            expected="booleans, integers, floating-point or complex numbers",
            got=f"{dtype}, shape {shape}",
        )
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes > max_bytes:
        raise UsageError(
            "the array is too large", expected=f"at most {max_bytes:,} bytes", got=f"{n_bytes:,}"
        )
    data = _read_all(stream, n_bytes)
    if len(data) < n_bytes:
        raise UsageError(
            "the array ends too early", expected=f"{n_bytes:,} bytes", got=f"{len(data):,}"
        )
    try:
        array = np.frombuffer(data, dtype)
        ordered = array.reshape(shape[::-1]).T if fortran_order else array.reshape(shape)
        return np.asarray(ordered, dtype.newbyteorder("="), order="C")
    except ValueError as e:
        # Too many dimensions for numpy, or a size of 0 together with too large sizes.
        raise UsageError(
            "an array can't have this shape", expected="at most 64 dimensions", got=str(e)
        ) from e


def write_npy(array: Array) -> bytes:
    """An array as the bytes of a .npy file."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def read_arrays(data: bytes, names: Sequence[str], max_bytes: int) -> dict[str, Array]:
    """Read the inputs of a request: one .npy array, or a .npz file with one for each input.

    Args:
        data: The bytes.
        names: Names of the inputs. A .npy array is for a model with one input.
        max_bytes: The maximum total size of the unpacked arrays, in bytes.

    Raises:
        UsageError: The bytes are neither an .npy array nor an .npz file, or are too large.
    """
    if data.startswith(_NPZ_MAGIC):
        return read_npz(io.BytesIO(data), max_bytes, names)
    if len(names) != 1:
        raise UsageError(
            f"the model has {len(names)} inputs",
            expected=f"a .npz file with {', '.join(names)}",
            got="other data",
            fix="send a file written by numpy.savez(file, **inputs)",
        )
    stream = io.BytesIO(data)
    array = read_npy(stream, max_bytes)
    if array is None:
        raise UsageError("the request is empty", expected="a .npy or .npz file", got="no bytes")
    if stream.read(1):
        raise UsageError("there is data after the array", expected="one array", got="more bytes")
    return {names[0]: array}


def write_arrays(arrays: Mapping[str, Array]) -> bytes:
    """Arrays as the bytes of a .npz file."""
    stream = io.BytesIO()
    # numpy.savez can't store an array under the name of one of its own parameters.
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), write_npy(array))
    return stream.getvalue()


def read_npz(
    file: BinaryIO, max_bytes: int, names: Collection[str] | None = None
) -> dict[str, Array]:
    """Read the arrays of a .npz file. Nothing is unpickled.

    Args:
        file: The file, open for reading in binary.
        max_bytes: The maximum total size of the unpacked arrays, in bytes.
        names: The arrays that may occur; None for any, some 1,000 at most.

    Raises:
        UsageError: The file is not an .npz file, or too large, or has another array.
    """
    arrays: dict[str, Array] = {}
    try:
        _check_directory(file, _MOST_MEMBERS if names is None else len(names))
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                if names is not None and name not in names:
                    raise UsageError(
                        f"{name[:60]!r} is not an input",
                        expected=", ".join(names),
                        got=ascii(name)[:60],
                    )
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(f"member {ascii(name)[:60]} has an unknown compression")
                with archive.open(info) as stream:
                    # Reads only the array's bytes, so a zip bomb is never unpacked.
                    array = read_npy(stream, max_bytes)  # type: ignore[arg-type]
                    if stream.read(1):  # also compares the checksum at the member's end
                        raise ValueError(f"member {ascii(name)[:60]} goes on after its array")
                if array is None or name in arrays:
                    raise UsageError(
                        f"the .npz file's member {ascii(name)[:60]} is empty or occurs twice",
                        expected="one array for each name",
                        got=ascii(name)[:60],
                    )
                arrays[name] = array
                max_bytes -= array.nbytes
    except (UsageError, MemoryError):
        raise
    except Exception as e:
        # zipfile raises unrelated errors for an encrypted member and broken data.
        raise UsageError(
            "the data is not a .npz file", expected="bytes from numpy.savez", got=_first_line(e)
        ) from e
    return arrays


def names_in_npz(file: BinaryIO) -> list[str]:
    """The names of the arrays of a .npz file, of which nothing else is read.

    Raises:
        UsageError: The file is not a .npz file, or has far more than 1,000 arrays.
    """
    try:
        _check_directory(file, _MOST_MEMBERS)
        with zipfile.ZipFile(file) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (ValueError, zipfile.BadZipFile, NotImplementedError) as e:
        raise UsageError(
            "the data is not a .npz file", expected="bytes from numpy.savez", got=_first_line(e)
        ) from e


def _check_directory(file: BinaryIO, n_members: int) -> None:
    """Check the size of a zip file's directory, which zipfile reads as a whole.

    Raises:
        ValueError: It is not a zip file, or has far more members than expected.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _MAX_COMMENT - _END_BYTES))
    tail = file.read()
    file.seek(0)
    at = tail.rfind(_END)
    if at < 0 or len(tail) < at + _END_BYTES:
        raise ValueError("it is not a zip file")
    n_bytes = int.from_bytes(tail[at + _SIZE_AT : at + _SIZE_AT + 4], "little")
    if n_bytes > (n_members + 1) * _MEMBER_BYTES or tail[at - 20 : at].startswith(_END_64):
        raise ValueError(f"its directory has {n_bytes:,} bytes, too many for {n_members} arrays")


def _read_all(stream: BinaryIO, n_bytes: int) -> bytearray:
    """Read ``n_bytes``, or fewer at the end; allocates memory only for bytes that arrive."""
    chunks: list[bytes] = []
    missing = n_bytes
    while missing > 0:
        chunk = stream.read(min(missing, 2**20))
        if not chunk:
            break
        chunks.append(chunk)
        missing -= len(chunk)
    return bytearray().join(chunks)


class _Whole:
    """A stream whose ``read`` returns as many bytes as requested, across several sources.

    A pipe may return fewer bytes, which numpy's header reader takes for the end of the file.
    """

    def __init__(self, *sources: BinaryIO, most: int | None = None) -> None:
        self._sources = sources
        self._most = most

    def read(self, n_bytes: int = -1, /) -> bytes:
        if self._most is not None and n_bytes > self._most:
            raise ValueError(
                f"its header has {n_bytes:,} bytes, and at most {self._most:,} are read"
            )
        data = bytearray()
        for source in self._sources:
            data += _read_all(source, n_bytes - len(data))
        return bytes(data)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
