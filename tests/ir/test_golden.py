"""Golden files are written whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from fxelastic.errors import UsageError
from fxelastic.ir import golden
from fxelastic.ir.golden import read_golden, write_golden
from fxelastic.ir.text import TITLE

ONE, TWO, OLD, NEW = (f"{TITLE}1\n{word}\n" for word in ("one", "two", "old", "new"))


def test_missing_file_is_none(tmp_path: Path) -> None:
    assert read_golden(tmp_path / "none.txt") is None


def test_write_says_what_happened(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "golden.txt"
    assert write_golden(path, ONE) == "created"
    assert write_golden(path, ONE) == "unchanged"
    assert write_golden(path, TWO) == "updated"
    assert read_golden(path) == TWO
    assert os.listdir(path.parent) == ["golden.txt"]


def test_foreign_line_ends_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "golden.txt"
    path.write_bytes(ONE.encode().replace(b"\n", b"\r\n"))
    assert read_golden(path) == ONE
    assert write_golden(path, ONE) == "updated"
    assert path.read_bytes() == ONE.encode()


@pytest.mark.parametrize("broken", ["fsync", "replace", "chmod"])
def test_failed_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path = tmp_path / "golden.txt"
    path.write_text(OLD)

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(golden.os, broken, fail)
    with pytest.raises(UsageError, match="No space left"):
        write_golden(path, NEW)
    assert path.read_text() == OLD
    assert os.listdir(tmp_path) == ["golden.txt"]


def test_interrupted_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "golden.txt"
    path.write_text(OLD)

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(golden.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_golden(path, NEW)
    assert path.read_text() == OLD
    assert os.listdir(tmp_path) == ["golden.txt"]


def test_permissions_survive_an_update(tmp_path: Path) -> None:
    path = tmp_path / "golden.txt"
    path.write_text(OLD)
    path.chmod(0o640)
    write_golden(path, NEW)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_new_file_can_be_read_by_others_as_any_new_file(tmp_path: Path) -> None:
    write_golden(tmp_path / "golden.txt", NEW)
    (tmp_path / "plain.txt").write_text("plain\n")
    modes = {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    assert len(modes) == 1


def test_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_text(OLD)
    link = tmp_path / "link.txt"
    link.symlink_to("real.txt")
    write_golden(link, NEW)
    assert link.is_symlink()
    assert (tmp_path / "real.txt").read_text() == NEW


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't read the golden file"):
        read_golden(tmp_path)
    with pytest.raises(UsageError, match="can't write the golden file"):
        write_golden(tmp_path, "text\n")


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "golden.bin"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is not text"):
        read_golden(path)


def test_another_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "my_model.py"
    path.write_text("import torch\n")
    with pytest.raises(UsageError, match=r"my_model\.py is not a golden file"):
        write_golden(path, NEW)
    assert path.read_text() == "import torch\n"
    path.write_text("")
    assert write_golden(path, NEW) == "updated"
    path.write_text(f"<<<<<<< HEAD\n{OLD}=======\n{ONE}>>>>>>> other\n")
    assert write_golden(path, NEW) == "updated"
