"""What is no whole .npz file is refused, whatever is wrong with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fxelastic.edge.npz_files import read_npz
from fxelastic.errors import UsageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "data.npz"
    np.savez_compressed(file, x=np.arange(1000), targets=np.zeros(1000, int))
    return file


def test_arrays_are_read(path: Path) -> None:
    found = read_npz(path)
    assert list(found) == ["x", "targets"]
    assert found["x"].tolist() == list(range(1000))


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_off(path: Path, share: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UsageError, match=r"data\.npz can't be read"):
        read_npz(path)


@pytest.mark.parametrize("at", [0.1, 0.2, 0.3])
def test_a_file_with_damaged_bytes(path: Path, at: float) -> None:
    damaged = bytearray(path.read_bytes())
    begin = int(at * len(damaged))
    damaged[begin : begin + 20] = bytes(byte ^ 0xFF for byte in damaged[begin : begin + 20])
    path.write_bytes(damaged)
    with pytest.raises(UsageError, match="can't be read"):
        read_npz(path)


def test_a_file_of_another_kind(path: Path) -> None:
    for content in (b"text", b"PK\x03\x04"):
        path.write_bytes(content)
        with pytest.raises(UsageError, match="can't be read"):
            read_npz(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(UsageError, match="can't be read"):
        read_npz(path)


def test_objects_are_not_unpickled(path: Path) -> None:
    np.savez(path, x=np.array([{}], dtype=object))
    with pytest.raises(UsageError, match="can't be read"):
        read_npz(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="FileNotFoundError"):
        read_npz(tmp_path / "missing.npz")


def test_the_advice_is_for_the_file_and_not_its_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_npz(tmp_path / "objects.npz")
    assert "padded" not in str(caught.value)
