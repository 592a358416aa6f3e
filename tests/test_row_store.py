"""Rows on disk: whole, of the same run, or not used."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from fxelastic import TrainingError
from fxelastic.row_store import RowStore

FACTS = {"weights": "a"}
KEYS = [bytes([i]) * 16 for i in range(3)]
FORM = ((2,), (1, 1))


def written(folder: Path) -> RowStore:
    store = RowStore(folder / "rows", FACTS)
    for i, key in enumerate(KEYS):
        store.add(key, FORM, [bytes([i, i]), bytes([9])])
    store.seal()
    return store


def test_rows_are_read_in_any_order_by_this_process_and_the_next(tmp_path: Path) -> None:
    again = RowStore.existing(written(tmp_path).folder, FACTS)
    assert again is not None
    for store in (written(tmp_path), again):
        assert len(store) == 3
        assert KEYS[1] in store
        assert b"x" * 16 not in store
        form = store.form(KEYS[1:])
        assert form is not None
        assert store.forms[form] == FORM
        found = store.read([KEYS[2], KEYS[0]], 3)
        assert np.array_equal(found, [[2, 2, 9], [0, 0, 9]])


def test_rows_of_several_forms_have_no_common_form(tmp_path: Path) -> None:
    store = RowStore(tmp_path / "rows", FACTS)
    store.add(KEYS[0], FORM, [b"ab", b"c"])
    store.add(KEYS[1], ((1,), (1, 1)), [b"a", b"c"])
    store.seal()
    assert store.form(KEYS[:2]) is None


@pytest.mark.parametrize("name", ["rows.bin", "index.npy", "rows.json"])
def test_damaged_rows_are_not_used(tmp_path: Path, name: str) -> None:
    path = written(tmp_path).folder / name
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    assert RowStore.existing(path.parent, FACTS) is None


def test_rows_of_another_run_are_not_used(tmp_path: Path) -> None:
    folder = written(tmp_path).folder
    assert RowStore.existing(folder, {"weights": "b"}) is None
    assert RowStore.existing(tmp_path / "none", FACTS) is None


def test_a_file_that_gets_shorter_is_an_error(tmp_path: Path) -> None:
    store = written(tmp_path)
    (store.folder / "rows.bin").write_bytes(b"abc")
    with pytest.raises(TrainingError, match="shorter than it was"):
        store.read(KEYS, 3)


def test_a_new_store_sweeps_what_a_killed_process_left(tmp_path: Path) -> None:
    (tmp_path / ".rows.123.tmp").mkdir()
    written(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]


def many_keys(n: int) -> list[bytes]:
    """Random keys; each has a neighbour with the same first half."""
    rng = np.random.default_rng(0)
    halves = rng.bytes(8 * n // 2)
    return [halves[i // 2 * 8 : i // 2 * 8 + 8] + rng.bytes(8) for i in range(n)]


def test_many_rows_are_found_while_they_are_written_and_after(tmp_path: Path) -> None:
    keys = many_keys(20_000)
    store = RowStore(tmp_path / "rows", FACTS)
    for i, key in enumerate(keys):
        assert key not in store
        store.add(key, ((2,),), [i.to_bytes(4, "little")])
        assert key in store
        assert keys[i // 2] in store
    store.seal()
    again = RowStore.existing(store.folder, FACTS)
    assert again is not None
    absent = [key[:8] + bytes(8) for key in keys[::50]]
    for found in (store, again):
        assert len(found) == len(keys)
        rows = found.read(keys[::7], 4).view("<u4").ravel()
        assert rows.tolist() == list(range(0, len(keys), 7))
        assert not any(key in found for key in absent)


def test_a_row_takes_few_bytes_of_memory(tmp_path: Path) -> None:
    keys = many_keys(40_000)
    tracemalloc.start()
    try:
        store = RowStore(tmp_path / "rows", FACTS)
        for key in keys:
            store.add(key, ((1,),), [b"x"])
        before, _ = tracemalloc.get_traced_memory()
        store.seal()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert before / len(keys) < 100
    assert after / len(keys) < 40
    assert peak / len(keys) < 400
    store.close()
