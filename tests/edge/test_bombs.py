"""Small files that claim to be large cost what they are, in time and memory."""

from __future__ import annotations

import io
import json
import resource
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fxelastic.edge.array_bytes import read_arrays, read_npy
from fxelastic.edge.npz_files import names_in_npz, read_npz
from fxelastic.errors import BundleError, UsageError
from fxelastic.spec.bounded_json import MAX_DEPTH, loads
from fxelastic.spec.json_fields import parse_object
from fxelastic.spec.latency_table import LatencyTable

MAX = 2**24


def npy_header(n_bytes: int) -> bytes:
    """An array whose header states so many bytes, all of them spaces."""
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", n_bytes) + b" " * min(n_bytes, 2**22)


def archive(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return stream.getvalue()


def array(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def long_header() -> bytes:
    """A header of 1 GiB, which packs to 1 MiB; written without holding it."""
    packer, size, crc = zlib.compressobj(9, zlib.DEFLATED, -15), 0, 0
    data = bytearray()
    head = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**30)
    for part in (head, *(b" " * 2**20 for _ in range(1024))):
        data += packer.compress(part)
        size, crc = size + len(part), zlib.crc32(part, crc)
    data += packer.flush()
    local = struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 8, 0, 0, crc, len(data), size, 5, 0)
    central = struct.pack(
        "<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 8, 0, 0, crc, len(data), size, 5, 0, 0, 0, 0, 0, 0
    )
    begin = len(local) + 5 + len(data)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, len(central) + 5, begin, 0)
    return local + b"x.npy" + bytes(data) + central + b"x.npy" + end


BOMBS: dict[str, Callable[[], bytes]] = {
    "header": long_header,
    "array": lambda: archive({"x.npy": array(np.zeros(2**23, np.float32))}),
    "members": lambda: archive({f"{i}.npy": b"" for i in range(20_000)}),
    "bzip2": lambda: archive({"x.npy": array(np.zeros(9, np.float32))}, zipfile.ZIP_BZIP2),
    "other names": lambda: archive({"y.npy": array(np.zeros(9, np.float32))}),
    "more data": lambda: archive({"x.npy": array(np.zeros(9, np.float32)) + b"x" * 2**20}),
    "plain header": lambda: npy_header(2**32 - 1),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_request_is_refused_in_the_time_of_its_bytes(bomb: str) -> None:
    data = BOMBS[bomb]()
    begin = time.process_time()
    good = archive({"x.npy": array(np.zeros(2**21, np.float32))})
    read_arrays(good, ["x"], MAX)
    of_good = time.process_time() - begin
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.process_time()
    with pytest.raises(UsageError) as caught:
        read_arrays(data, ["x"], MAX)
    assert time.process_time() - begin < 20 * of_good + 0.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17  # KiB
    assert len(str(caught.value)) < 2048


def test_a_header_on_a_pipe_is_not_awaited() -> None:
    with pytest.raises(UsageError, match=r"not a \.npy array"):
        read_npy(io.BytesIO(npy_header(2**31)), MAX)


def test_a_data_file_unpacks_to_a_stated_multiple(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fxelastic.edge.npz_files.MAX_BYTES", 2**20)
    path = tmp_path / "x.npz"
    np.savez_compressed(path, x=np.zeros(2**21, np.float32))
    with pytest.raises(UsageError, match="too large"):
        read_npz(path)
    np.savez(path, x=np.zeros(2**21, np.float32))
    assert read_npz(path)["x"].shape == (2**21,)


def test_names_are_read_within_the_same_limits(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(archive({f"{i}.npy": b"" for i in range(50_000)}))
    for reading in (names_in_npz, read_npz):
        with pytest.raises(UsageError, match="its directory has"):
            reading(path)
    np.savez(path, x=np.zeros(3), y=np.zeros(3))
    assert names_in_npz(path) == ["x", "y"]


def test_a_stated_checksum_is_compared(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=np.zeros(1000, np.float32))
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)
    with pytest.raises(UsageError, match="can't be read"):
        read_npz(path)


DOCUMENTS: dict[str, bytes] = {
    "deep": b"[" * 100_000,
    "deep object": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "many keys twice": b"{" + b",".join(b'"%d":1' % i for i in range(200_000)) + b',"7":1}',
    "infinite": b'{"a": 1e999}',
    "NaN": b'{"a": NaN}',
    "digits": b'{"a": ' + b"9" * 400 + b"}",
    "no text": b'{"a": "\xff"}',
    "no end": b'{"a": "',
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_are_refused_in_the_time_of_their_bytes(name: str) -> None:
    begin = time.process_time()
    with pytest.raises(ValueError, match=r".") as caught:
        loads(DOCUMENTS[name])
    assert len(str(caught.value)) < 500
    with pytest.raises(BundleError, match=r"manifest\.json is not JSON"):
        parse_object(DOCUMENTS[name], "manifest.json")
    with pytest.raises(UsageError, match="not a latency table"):
        LatencyTable.from_json(DOCUMENTS[name])
    assert time.process_time() - begin < 10


def test_brackets_in_texts_are_not_nesting() -> None:
    text = "[" * 100 + '\\"{' * 50
    value = {"a": text, "b": [[1, -2.5e3, True, None]]}
    assert loads(json.dumps(value).encode()) == value
    deep = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert loads(deep)
    with pytest.raises(ValueError, match="nested"):
        loads(b"[" + deep + b"]")


def test_a_manifest_has_a_largest_size() -> None:
    with pytest.raises(BundleError, match="not JSON") as caught:
        parse_object(b'{"a": "' + b"x" * 2**24 + b'"}', "manifest.json")
    assert "at most 16,777,216 are read" in str(caught.value)
