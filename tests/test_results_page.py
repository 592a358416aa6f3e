"""benchmarks/RESULTS.md is what its raw results say, missed bars too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import public_models, public_sizes, results_page, run_all
from tests.cli.commands import ROOT

FOLDER = ROOT / "benchmarks"
EXPAND: dict[str, Any] = {
    "commands": ["python benchmarks/expand.py"],
    "machine": {"cores": "2"},
    "result": {
        "time": {"ratio": 1.2},
        "memory": {"ratio": 2.6},
        "sizes": [],
        "calibration": {
            "subnets": 3,
            "as_made": 0.5,
            "model_accuracy": 0.9,
            "calibrated": 0.7,
        },
    },
}


def test_the_page_is_of_the_raw_results() -> None:
    """Where it is not, ``python benchmarks/run_all.py --page`` writes it anew."""
    found = {p.stem: json.loads(p.read_text()) for p in sorted(FOLDER.glob("results/*.json"))}
    assert (FOLDER / "RESULTS.md").read_text("utf-8") == results_page.page(found)


def test_every_benchmark_has_a_section() -> None:
    assert set(results_page.SECTIONS) == set(run_all.COMMANDS)
    for commands in run_all.COMMANDS.values():
        for command in commands:
            assert (FOLDER / command.split()[0]).exists()


def test_a_missed_bar_says_so() -> None:
    page = results_page.page({"expand": EXPAND})
    assert "| 1.20 | ≤ 1.5 |  | met |" in page
    assert "| 2.60 | ≤ 2.5 |  | **missed** |" in page
    assert "python benchmarks/expand.py" in page
    assert "cores 2" in page


def test_public_models_that_do_not_get_through_are_named_with_the_reason() -> None:
    models = [
        {"library": "timm", "name": "a", "stage": "done"},
        {"library": "timm", "name": "b", "stage": "export", "reason": "E: no | such\noperator"},
        {"library": "timm", "name": "c", "stage": "make", "reason": "not ours"},
    ]
    result = {"summary": public_models.summary(models), "models": models}
    one, other = results_page.public_models(result)
    assert "2 models" in one.what
    assert one.measured.startswith("2 expanded")
    assert one.measured.endswith("1 exported")
    assert (other.what, other.measured) == (
        "timm b: ends at `export`",
        "E: no / such operator",
    )


def test_of_rows_of_a_model_with_sizes_the_last_counts(tmp_path: Path) -> None:
    rows = [
        {"library": "a", "name": "x", "kind": "text", "stage": "expand", "reason": "old"},
        {"library": "a", "name": "y", "kind": "text", "stage": "sizes", "reason": "fixed | mask"},
        {"library": "a", "name": "z", "kind": "text", "stage": "export", "reason": "aten.x at y"},
        {"library": "a", "name": "x", "kind": "text", "stage": "done", "difference": 0.0},
    ]
    public_sizes.write(tmp_path / "out.json", rows)
    result = json.loads((tmp_path / "out.json").read_text())
    assert len(result["models"]) == 4
    first, *_, y, z = results_page.public_sizes(result)
    assert first.what == "text: 2 models that take other sizes, of 3"
    assert first.measured.startswith("2 captured")
    assert first.met is False
    assert (y.measured, z.what) == ("fixed / mask", "a z: ends at `export`")


def test_results_are_kept_with_their_commands() -> None:
    kept = run_all.described("expand", {"a": 1})
    assert kept["result"] == {"a": 1}
    assert kept["commands"] == ["python benchmarks/expand.py --out OUT"]
    assert kept["machine"]["onnxruntime"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Benchmarks that write what they were run with, each in a line of a log, in a folder."""
    (tmp_path / "one.py").write_text(
        "import json, pathlib, sys\n"
        "with open('log', 'a') as log: print(sys.argv[1], file=log)\n"
        "if pathlib.Path('broken').exists() and sys.argv[1] == 'second': sys.exit(3)\n"
        "print(json.dumps({'of': sys.argv[1]}))\n"
    )
    (tmp_path / "results").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_all, "FOLDER", tmp_path)
    monkeypatch.setattr(run_all, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(run_all, "page", lambda found: " ".join(found))
    monkeypatch.setattr(run_all, "COMMANDS", {n: (f"one.py {n}",) for n in ("first", "second")})
    return tmp_path


def test_an_interrupted_run_goes_on_where_it_stopped(folder: Path) -> None:
    (folder / "broken").touch()
    with pytest.raises(SystemExit, match="second ended without a result"):
        run_all.run_all(["first", "second"])
    assert (folder / "RESULTS.md").read_text() == "first"
    (folder / "broken").unlink()
    run_all.run_all(["first", "second"])
    assert (folder / "log").read_text().split() == ["first", "second", "second"]
    assert json.loads((folder / "results/second.json").read_text())["result"] == {"of": "second"}
    assert not list((folder / "build/bench").iterdir())
    run_all.run_all(["first"])
    assert (folder / "log").read_text().split()[3:] == ["first"]


def test_fresh_forgets_an_interrupted_run(folder: Path) -> None:
    (folder / "broken").touch()
    with pytest.raises(SystemExit):
        run_all.run_all(["first", "second"])
    with pytest.raises(SystemExit):
        run_all.run_all(["first", "second"], fresh=True)
    assert (folder / "log").read_text().split() == ["first", "second"] * 2


def test_a_run_of_some_leaves_what_another_has_not_finished(folder: Path) -> None:
    (folder / "broken").touch()
    with pytest.raises(SystemExit):
        run_all.run_all(["first", "second"])
    (folder / "build/bench/second/seed-0.json").write_text("{}")
    run_all.run_all(["first"])
    assert (folder / "build/bench/second/seed-0.json").exists()


def test_a_model_that_takes_too_long_is_said_to_be_where_it_was() -> None:
    """Or it would count as one that can't be made."""
    output = 'a warning\n{"stage": "make"}\n{"stage": "expand", "n_params": 3}\n{"stage": "ru'
    assert public_models.last_of(output) == {"stage": "expand", "n_params": 3}
    assert public_models.last_of("") == {}
    cut_short = {"library": "timm", "name": "a", "stage": "expand", "reason": "not done after 9 s"}
    assert public_models.summary([cut_short])["timm"]["models"] == 1
