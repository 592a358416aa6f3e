"""``fxelastic profile`` and ``fxelastic search``, from a bundle to a pool that serves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxelastic import edge
from fxelastic.cli import main, options
from fxelastic.spec.latency_table import LatencyTable
from tests.edge.serving.tiny_bundle import CLASSES, write_bundle

QUICK = ("--samples", "3", "--subnets", "3", "--held-out", "2", "--quiet")
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> edge.Bundle:
    return write_bundle(tmp_path_factory.mktemp("cli-search") / "bundle")


@pytest.fixture(scope="module")
def table(bundle: edge.Bundle) -> Path:
    # No whole subnets: the few runs of so small a model may be marked unusable.
    assert main(["profile", str(bundle.path), *QUICK, "--subnets", "0", "--held-out", "0"]) == 0
    return bundle.path.with_name("bundle.latency.json")


@pytest.fixture(scope="module")
def data(bundle: edge.Bundle) -> Path:
    path = bundle.path.with_name("local.npz")
    x = RNG.standard_normal((40, 8, 8, 8)).astype(np.float32)
    np.savez(path, x=x, targets=RNG.integers(0, CLASSES, 40))
    return path


def test_a_table_is_printed_and_written(
    bundle: edge.Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table.json"
    assert main(["profile", str(bundle.path), "-o", str(out), *QUICK]) == 0
    printed = capsys.readouterr()
    # What this machine does meanwhile is said even so.
    known = ("fxelastic: warning: other processes", "fxelastic: warning: latencies of")
    assert all(line.startswith(known) for line in printed.err.splitlines())
    for spec in bundle.space.branches:
        assert spec.id in printed.out
    assert "assembled" in printed.out
    assert "paged" in printed.out
    assert LatencyTable.load(out).bundle_digest == bundle.digest
    assert list(tmp_path.iterdir()) == [out]


def test_a_table_as_json(
    bundle: edge.Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table.json"
    assert main(["profile", str(bundle.path), "-o", str(out), "--json", *QUICK]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["schema"] == "fxelastic.profile/1"
    assert set(report["modes"]) == {"assembled", "paged"}
    assert report["modes"]["paged"]["error"]["n_held_out"] == 2


def test_other_files_are_not_written_over(
    bundle: edge.Bundle, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "notes.json"
    out.write_text("mine")
    assert main(["profile", str(bundle.path), "-o", str(out), *QUICK]) == 2
    assert "would be overwritten" in capsys.readouterr().err
    assert out.read_text() == "mine"
    value: dict[str, Any] = json.loads(table.read_text())
    del value["sha256"]
    out.write_text(json.dumps({**value, "device": {"processor": "another"}}))
    assert main(["profile", str(bundle.path), "-o", str(out), *QUICK]) == 2
    assert "another device" in capsys.readouterr().err
    assert main(["profile", str(bundle.path), "-o", str(out), "--force", *QUICK]) == 0


@pytest.mark.parametrize("command", ["profile", "table"])
def test_force_replaces_no_folder_and_no_file_of_the_bundle(
    command: str,
    bundle: edge.Bundle,
    table: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    begin = {"profile": ["profile", str(bundle.path)], "table": ["table", "match"]}[command]
    begin += [] if command == "profile" else [str(bundle.path), str(table)]
    for out, message in (
        (tmp_path, "is a folder"),
        (bundle.path / "manifest.json", "would change the bundle"),
    ):
        assert main([*begin, "-o", str(out), "--force"]) == 2
        assert message in capsys.readouterr().err
    assert edge.load(bundle.path).digest == bundle.digest


def test_a_matched_table_lies_beside_the_bundle_from_any_folder(
    bundle: edge.Bundle, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Symptom: in the bundle's own folder, the command refused its default path."""
    shutil.copytree(bundle.path, tmp_path / "bundle")
    monkeypatch.chdir(tmp_path / "bundle")
    assert main(["table", "match", ".", str(table)]) == 0
    assert (tmp_path / "bundle.latency.json").exists()


def test_a_search_prints_the_bests_and_writes_the_pool(
    bundle: edge.Bundle, table: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budgets = ["--budget", "100%", "--budget", "1000ms"]
    assert main(["search", str(bundle.path), "--data", str(data), *budgets]) == 0
    printed = capsys.readouterr()
    assert "blocks replaced" in printed.out
    assert "subnets evaluated" in printed.out
    assert "limits 1000 ms" in printed.err
    pool = edge.SubnetPool.load(bundle.path.with_name("bundle.pool.json"))
    assert len(pool) > 1
    arguments = ["search", str(bundle.path), "--data", str(data), *budgets, "--json", "--quiet"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert report["schema"] == "fxelastic.search/1"
    assert report["evaluations"]["subnets"] == 0, "the pool knows them all"
    assert len(report["budgets"]) == 2
    # Neither progress nor the table; only warnings.
    assert "limits" not in printed.err
    assert "blocks replaced" not in printed.err


def test_a_search_needs_a_table(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_bundle(tmp_path / "other", depth=2)
    arguments = ["search", str(other.path), "--data", str(data), "--budget", "60%"]
    assert main(arguments) == 2
    assert "fxelastic profile" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more",
    [
        ("--budget", "1%"),
        ("--budget", "soon"),
        ("--budget", "100%", "--strategy", "luck"),
        ("--budget", "100%", "--score", "beauty"),
        ("--budget", "100%", "--score", "none.py:score"),
        ("--budget", "100%", "--cache-mb", "0"),
        ("--budget", "100%", "--max-subnets", "0"),
        ("--budget", "100%", "--memory-mb", "-1"),
        ("--budget", "100%", "--held-out", "1"),
        ("--budget", "100%", "--confidence", "2"),
    ],
)
def test_wrong_options_are_usage_errors(
    bundle: edge.Bundle,
    table: Path,
    data: Path,
    tmp_path: Path,
    more: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = str(tmp_path / "pool.json")
    assert main(["search", str(bundle.path), "--data", str(data), "-o", out, *more]) == 2
    error = capsys.readouterr().err
    assert any(said in error for said in ("expected", "must be above 0", "must be at least 1"))
    assert not Path(out).exists()


def test_a_score_of_ones_own(bundle: edge.Bundle, table: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def score(outputs, targets):\n"
        "    return float((outputs[0].argmax(1) == targets).sum()), float(len(targets))\n"
    )
    arguments = ["--budget", "100%", "--score", f"{tmp_path / 'mine.py'}:score", "--quiet"]
    out = tmp_path / "pool.json"
    assert main(["search", str(bundle.path), "--data", str(data), "-o", str(out), *arguments]) == 0
    assert len(edge.SubnetPool.load(out)) > 1


@pytest.mark.parametrize("name", [".", "../bundle", "..//bundle/."])
def test_files_go_beside_the_bundle_however_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "bundle").mkdir()
    monkeypatch.chdir(tmp_path / "bundle")
    assert options.beside(name, "pool").resolve() == tmp_path / "bundle.pool.json"


def test_a_batch_of_none_is_refused_with_data_too(
    bundle: edge.Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, x=np.zeros((4, 8, 8, 8), np.float32), targets=np.zeros(4, np.int64))
    assert main(["profile", str(bundle.path), "--batch-size", "-1", "--data", str(data)]) == 2
    assert "at least 1" in capsys.readouterr().err


def test_a_plan_is_printed_before_a_search(
    bundle: edge.Bundle, table: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["plan", str(bundle.path), "--data", str(data), "--subnets", "4", "--quiet"]
    assert main([*argv, "--budget", "1%", "--budget", "95%"]) == 0
    out = capsys.readouterr().out
    assert "no subnet keeps it" in out
    assert "5 subnets measured; each predicted from the others: median error" in out
    assert main([*argv, "--json", "--table", str(table)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["score"] is None for row in report["budgets"]] == sorted(
        (row["score"] is None for row in report["budgets"]), reverse=True
    )
    assert report["n_measured"] == 5
    assert main([*argv, "--subnets", "1"]) == 2
