"""Thousands of damaged and forged files: each is read, or refused with a message, in bounds."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxelastic.edge.array_bytes import read_arrays, write_arrays, write_npy
from fxelastic.edge.pool import SubnetPool
from fxelastic.edge.prepared import Item, PreparedFiles
from fxelastic.spec.bounded_json import loads
from fxelastic.spec.json_document import _CHECKSUM, _checksum
from fxelastic.spec.latency_table import LatencyTable
from fxelastic.spec.manifest import Manifest
from tests.edge.bundles import manifest
from tests.edge.serving.tiny_bundle import write_bundle
from tests.hostile.mutations import documents, of_bytes, plain
from tests.hostile.reading import N, check, document, is_read, put, resealed

EARLIER = Path(__file__).parent.parent / "fixtures" / "earlier"


def sealed(value: Any) -> bytes:
    """A table or pool with the checksum of its content."""
    return resealed(value, _CHECKSUM, _checksum)


KINDS: dict[str, Callable[[], tuple[Any, Callable[[bytes], Any], Callable[[Any], bytes]]]] = {
    "manifest": lambda: (json.loads(manifest().to_json()), Manifest.from_json, plain),
    "table": lambda: (
        *document(LatencyTable.from_json, EARLIER / "bundle.latency.json"),
        sealed,
    ),
    "pool": lambda: (*document(SubnetPool.from_json, EARLIER / "bundle.pool.json"), sealed),
}


@pytest.mark.parametrize("kind", KINDS)
def test_documents(kind: str) -> None:
    good, read, seal = KINDS[kind]()
    check(read, seal(good), documents(good, N, kind, seal))


def test_arrays() -> None:
    rng = random.Random("arrays")
    arrays = {"x": np.arange(24, dtype=np.float32).reshape(2, 12), "y": np.zeros(3, np.int64)}
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    goods = (write_arrays(arrays), packed.getvalue(), write_npy(arrays["x"]))
    names = (("x", "y"), ("x", "y"), ("x",))
    for good, wanted in zip(goods, names, strict=True):
        variants = (of_bytes(good, rng) for _ in range(N // 3 + 1))

        def read(data: bytes, wanted: tuple[str, ...] = wanted) -> Any:
            return read_arrays(data, wanted, 2**20)

        check_some(read, good, variants)


def check_some(read: Callable[[bytes], Any], good: bytes, variants: Iterator[bytes]) -> None:
    found = [is_read(read, data) for data in itertools.chain([good], variants)]
    assert found[0]
    assert not all(found)


def test_prepared_files(tmp_path: Path) -> None:
    """They are ignored unless they are whole: nothing is raised, and nothing else is opened."""
    bundle = write_bundle(tmp_path / "bundle", depth=1)
    files = PreparedFiles(bundle, tmp_path / "prepared")
    item = Item.branch("original@0")
    folder = files.make(item).parent
    good = {path.name: path.read_bytes() for path in folder.iterdir()}
    whole = files.read(item)
    assert whole is not None
    entry = json.loads(good["entry.json"])
    rng = random.Random("prepared")
    n_ignored = 0
    for i, data in enumerate(documents(entry, N, "prepared", plain)):
        for name, own in good.items():
            put(folder / name, own)
        name = "entry.json" if i % 2 else rng.choice(sorted(good))
        put(folder / name, data if i % 2 else of_bytes(good[name], rng))
        found = files.read(item)
        assert found is None or found.data == whole.data
        n_ignored += found is None
    assert n_ignored > N / 2


QUADRATIC = {
    "escaped quotes": b'"' + b'\\"' * 500_000,
    "quotes": b'"' * 1_000_000,
    "a long string": b'["' + b"x" * 2_000_000,
    "brackets": b"[]," * 700_000,
    "open brackets": b"[" * 1_000_000,
    "keys": b"{" + b",".join(b'"%d":0' % i for i in range(200_000)) + b',"7":1}',
    "a long number": b"9" * 1_000_000,
    "a long fraction": b"0." + b"1" * 1_000_000 + b"e",
}


@pytest.mark.parametrize("name", QUADRATIC)
def test_reading_takes_time_in_proportion_to_the_bytes(name: str) -> None:
    """Four times the bytes take nowhere near sixteen times the time."""
    data = QUADRATIC[name]
    times_s = []
    for part in (data[: len(data) // 4], data):
        begin_s = time.process_time()
        with contextlib.suppress(ValueError):
            loads(part)
        times_s.append(time.process_time() - begin_s)
    assert times_s[1] < 10 * max(times_s[0], 0.1)
