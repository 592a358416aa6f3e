"""``fxelastic check``: equal, drift, missing, invalid, update; for people and for programs."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from fxelastic.cli import main
from fxelastic.errors import PartitionError
from fxelastic.ir import Partition, golden
from tests.cli.commands import fxelastic
from tests.cli.conftest import Partitioner

CHECK = ["check", "model.py:build", "--golden", "golden.txt", "--quiet"]
# The partition that stands in for the model's is valid at this gamma.
VALID = ["--gamma", "0.6"]


@pytest.fixture
def checked(partitioner: Partitioner, folder: Path) -> Path:
    """A golden file of the model as it is."""
    assert main([*CHECK, *VALID, "--update"]) == 0
    return folder / "golden.txt"


def drift(partitioner: Partitioner) -> None:
    made = partitioner.result
    renamed = tuple(replace(b, name="root") if b.name == "stem" else b for b in made.blocks)
    cuts = tuple(replace(cut, block="root") for cut in made.untaken_cuts)
    partitioner.result = replace(made, blocks=renamed, untaken_cuts=cuts, model_name="Other")


def test_equal(checked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(CHECK) == 0
    assert capsys.readouterr().out == "golden.txt: Net, 5 blocks, verified, as in the golden file\n"


def test_gamma_and_fusion_come_from_the_golden_file(
    checked: Path, partitioner: Partitioner
) -> None:
    assert main(CHECK) == 0
    assert partitioner.calls[-1]["gamma"] == 0.6
    assert partitioner.calls[-1]["fusion"] == "test"
    assert main([*CHECK, "--update"]) == 0
    assert partitioner.calls[-1]["gamma"] == 0.6


def test_given_gamma_and_fusion_win(checked: Path, partitioner: Partitioner) -> None:
    assert main([*CHECK, "--gamma", "0.7", "--fusion", "none"]) == 1
    assert partitioner.calls[-1]["gamma"] == 0.7
    assert partitioner.calls[-1]["fusion"] == "none"


def test_first_golden_file_gets_the_defaults(partitioner: Partitioner) -> None:
    main([*CHECK, "--update"])
    assert partitioner.calls[-1]["gamma"] == 0.1
    assert partitioner.calls[-1]["fusion"] == "onnxruntime"


def test_drift_fails_with_a_readable_diff(
    checked: Path, partitioner: Partitioner, capsys: pytest.CaptureFixture[str]
) -> None:
    before = checked.read_bytes()
    drift(partitioner)
    capsys.readouterr()
    assert main(CHECK) == 1
    out = capsys.readouterr().out
    assert out.startswith("golden.txt: the partition of Other is not the golden one\n")
    assert "  block renamed: stem -> root\n" in out
    assert "\n-block stem\n+block root\n" in out
    assert out.endswith("accept it with --update\n")
    assert checked.read_bytes() == before


def test_drift_as_json(
    checked: Path, partitioner: Partitioner, capsys: pytest.CaptureFixture[str]
) -> None:
    drift(partitioner)
    capsys.readouterr()
    assert main([*CHECK, "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert (data["schema"], data["status"], data["exit_code"]) == ("fxelastic.check/1", "drift", 1)
    assert data["renamed"] == [{"golden": "stem", "actual": "root"}]
    assert data["settings"] == [{"key": "model", "golden": "Net", "actual": "Other"}]
    assert "+block root" in data["diff"]


def test_equal_as_json(checked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main([*CHECK, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["status"], data["exit_code"], data["n_blocks"]) == ("equal", 0, 5)
    assert "diff" not in data


def test_missing_golden_file_fails_at_once(
    partitioner: Partitioner, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(CHECK) == 1
    out = capsys.readouterr().out
    assert "there is no golden file golden.txt" in out
    assert "--update" in out
    assert partitioner.calls == []
    assert main([*CHECK, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["status"] == "missing"


def test_update_says_what_it_did_and_shows_the_diff(
    partitioner: Partitioner, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*CHECK, *VALID, "--update"]
    argv[argv.index("golden.txt")] = "new/folder/golden.txt"
    assert main(argv) == 0
    assert capsys.readouterr().out.startswith("created new/folder/golden.txt: Net, 5 blocks")
    assert main(argv) == 0
    assert capsys.readouterr().out.startswith("unchanged new/folder/golden.txt: ")
    drift(partitioner)
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert out.startswith("updated new/folder/golden.txt: Other, 5 blocks")
    assert "\n+block root\n" in out
    assert os.listdir(folder / "new" / "folder") == ["golden.txt"]


def invalid(partition: Partition) -> Partition:
    return replace(partition, blocks=partition.blocks[:-1])


@pytest.mark.parametrize("update", [False, True])
@pytest.mark.parametrize("by", ["verify", "partition"])
def test_invalid_partition_fails_and_is_never_written(
    checked: Path,
    partitioner: Partitioner,
    capsys: pytest.CaptureFixture[str],
    update: bool,
    by: str,
) -> None:
    before = checked.read_bytes()
    if by == "verify":
        partitioner.result = invalid(partitioner.result)
    else:
        partitioner.error = PartitionError("block 'x' has two inputs")
    capsys.readouterr()
    assert main([*CHECK, *(["--update"] if update else [])]) == 1
    captured = capsys.readouterr()
    assert "is not valid" in captured.out
    assert ("is unchanged" in captured.out) == update
    assert "Traceback" not in captured.err
    assert checked.read_bytes() == before


def test_failed_write_keeps_the_golden_file(
    checked: Path,
    partitioner: Partitioner,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = checked.read_bytes()
    drift(partitioner)

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(golden.os, "replace", fail)
    assert main([*CHECK, "--update"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert checked.read_bytes() == before
    assert not list(checked.parent.glob("*.tmp")) + list(checked.parent.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not a partition\n", "is not a partition text of fxelastic"),
        ("fxelastic partition text, format 99\n", "has format 99, fxelastic writes 1 now"),
        ("", "is not a partition text"),
    ],
)
def test_golden_file_of_another_kind(
    partitioner: Partitioner,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    content: str,
    message: str,
) -> None:
    (folder / "golden.txt").write_text(content)
    assert main([*CHECK, *VALID]) == 1
    assert message in capsys.readouterr().out


def test_golden_file_without_a_usable_gamma(
    checked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checked.write_text(checked.read_text().replace("gamma       0.6", "gamma       much"))
    assert main(CHECK) == 2
    assert "has no usable gamma" in capsys.readouterr().err
    assert main([*CHECK, *VALID]) == 1


def test_a_real_model_end_to_end(folder: Path) -> None:
    check = ["check", "model.py:build", "--golden", "golden.txt", "--example-input", "2x3x16x16"]
    made = fxelastic(*check, "--update", "--gamma", "0.3", cwd=folder)
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("created golden.txt: Net")
    same = fxelastic(*check, cwd=folder)
    assert same.returncode == 0, same.stdout
    other = fxelastic(*check, "--model-arg", "depth=4", cwd=folder)
    assert other.returncode == 1
    assert "parameters 2021 -> 2605" in other.stdout
    assert "Traceback" not in other.stderr
