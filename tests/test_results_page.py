"""benchmarks/RESULTS.md is what its raw results say, missed bars too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import results_page, run_all
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


def test_results_are_kept_with_their_commands(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(run_all, "RESULTS", tmp_path)
    run_all.keep("expand", {"a": 1})
    kept = json.loads((tmp_path / "expand.json").read_text())
    assert kept["result"] == {"a": 1}
    assert kept["commands"] == ["python benchmarks/expand.py --out OUT"]
    assert kept["machine"]["onnxruntime"]
