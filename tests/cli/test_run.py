"""``fxelastic run``: its steps, what is made again, and what is left after ``kill -9``."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from fxelastic.cli import main
from fxelastic.cli.recipe import Recipe
from fxelastic.cli.run_loop import CurrentRun, _ended
from fxelastic.cli.run_pipeline import steps_of
from fxelastic.cli.run_steps import Step
from tests import warm

MODEL = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()) for _ in range(2)]
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
"""

OPTIONS = (
    *("--gamma", "0.6", "--kinds", "merged", "--distill-epochs", "2", "--tune-epochs", "2"),
    *("--batch-size", "4", "--budget", "100%", "--max-subnets", "8", "--out", "run", "--quiet"),
)
RUN = ("run", "model.py:build", "--data", "images.npz", *OPTIONS)
STEPS = ("inputs", "distil", "tune", "export", "profile", "search", "prepare")


def write_project(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(MODEL)
    generator = np.random.default_rng(0)
    np.savez(
        folder / "images.npz",
        x=generator.normal(size=(16, 3, 12, 12)).astype(np.float32),
        y=np.arange(16) % 5,
        val_x=generator.normal(size=(30, 3, 12, 12)).astype(np.float32),
        val_y=np.arange(30) % 5,
    )
    return folder


def run(folder: Path, *argv: str, point: str = "none") -> subprocess.CompletedProcess[str]:
    return warm.run("tests.cli.forked_run", point, *argv, cwd=folder)


def digests(folder: Path) -> dict[str, str]:
    """The weights and the bundle's files."""
    files = [folder / name / "supernet.safetensors" for name in ("distil", "tune")]
    files += sorted(path for path in (folder / "bundle").rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    folder = write_project(tmp_path_factory.mktemp("whole"))
    done = run(folder, *RUN, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [step["step"] for step in report["steps"]][: len(STEPS)] == list(STEPS)
    assert all(step["made"] for step in report["steps"])
    assert report["search"]["original"]["accuracy"] is not None
    return folder / "run"


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """A copy of the project with its run."""
    shutil.copytree(whole.parent, tmp_path / "project")
    return tmp_path / "project"


@pytest.mark.parametrize(
    "points",
    [
        tuple(f"{name}+" for name in STEPS),
        tuple(f"{name}-" for name in STEPS),
        ("distil/", "tune/", "export/", "search/", "prepare/"),
    ],
    ids=["after each record", "before each record", "at work"],
)
def test_a_run_that_is_killed_ends_as_one_that_is_not(
    points: tuple[str, ...], whole: Path, tmp_path: Path
) -> None:
    folder = write_project(tmp_path)
    for point in points:
        killed = run(folder, *RUN, point=point)
        at_work = point.endswith("/")
        assert killed.returncode in ((-signal.SIGKILL, 0) if at_work else (-signal.SIGKILL,))
    done = run(folder, *RUN)
    assert done.returncode == 0, done.stderr
    assert digests(folder / "run") == digests(whole)
    # With the same latency table, the search finds the same subnets.
    shutil.copy(whole / "bundle.latency.json", folder / "run")
    again = run(folder, *RUN, "--json")
    assert again.returncode == 0, again.stderr
    made = [step["step"] for step in json.loads(again.stdout)["steps"] if step["made"]]
    assert made[0] == "search"
    first, second = (
        json.loads((place / "search.json").read_text()) for place in (whole, folder / "run")
    )
    assert first["budgets"][0]["arch"] == second["budgets"][0]["arch"]
    pools = [(place / "bundle.pool.json").read_bytes() for place in (whole, folder / "run")]
    assert pools[0] == pools[1]


def test_nothing_is_made_twice(copy: Path) -> None:
    done = run(copy, "run", "--out", "run", "--quiet", "--json")
    assert done.returncode == 0, done.stderr
    assert not any(step["made"] for step in json.loads(done.stdout)["steps"])


@pytest.mark.parametrize(
    ("option", "first", "diff"),
    [
        (("--budget", "120%"), "search", "[search] budget: 100% -> 120%"),
        (("--tune-epochs", "1"), "tune", "[train] tune-epochs: 2 -> 1"),
        (("--gamma", "0.4"), "distil", "[model] gamma: 0.6 -> 0.4"),
        (("--samples", "20"), "inputs", "[run] samples: (default) -> 20"),
    ],
)
def test_a_changed_option_is_shown_and_redoes_what_depends_on_it(
    copy: Path,
    option: tuple[str, ...],
    first: str,
    diff: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(copy)
    assert main(["run", "--out", "run", *option, "--dry-run", "--json"]) == 0
    out, err = capsys.readouterr()
    assert f"fxelastic.toml: {diff}\n" in err
    rows = json.loads(out)["steps"]
    assert next(row["step"] for row in rows if row["to_do"]) == first
    assert all(row["to_do"] for row in rows[STEPS.index(first) :])
    assert all(row["seconds"] > 0 for row in rows)
    # A dry run changes nothing.
    assert main(["run", "--out", "run", "--dry-run", "--json"]) == 0
    assert not any(row["to_do"] for row in json.loads(capsys.readouterr().out)["steps"])


def test_an_edited_model_is_noticed(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(copy / "run")
    (copy / "model.py").write_text(MODEL.replace("manual_seed(0)", "manual_seed(1)"))
    assert main(["run", "--dry-run"]) == 0
    assert "model.py changed" in capsys.readouterr().out


def test_other_commands_read_the_recipe(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(copy)
    assert main(["search", "run/bundle", "--out", "pool.json", "--budget", "120%", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "from fxelastic.toml: --max-subnets=8 --data=run/samples.npz" in err
    assert len(json.loads(out)["budgets"]) == 1
    monkeypatch.chdir(copy / "run")
    assert main(["explain", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "--example-input=1x3x12x12" in err
    assert json.loads(out)["gamma"] == 0.6


@pytest.mark.parametrize(
    ("change", "argv", "expected"),
    [
        ({"x": np.zeros((16, 4, 12, 12), np.float32)}, (), "can't be run on the samples"),
        ({"x": np.zeros((16, 12, 12, 3), np.float32)}, (), "x.transpose(0, 3, 1, 2)"),
        ({"images": np.zeros((16, 3), np.float32)}, (), "the model's inputs (input)"),
        ({"y": np.arange(16)}, (), "classes from 0 to 4"),
        ({}, ("--data", "missing.npz"), "--data missing.npz does not exist"),
        ({}, ("--out", "."), "is not the folder of a run"),
        ({}, ("--dynamic", "input:1=a,input:2=b"), "repeat the option"),
        ({}, ("--kind", "pruend"), "pruend"),
    ],
)
def test_a_mismatch_is_found_before_any_work(
    tmp_path: Path, change: dict[str, np.ndarray], argv: tuple[str, ...], expected: str
) -> None:
    folder = write_project(tmp_path)
    arrays = dict(np.load(folder / "images.npz")) | change
    arrays = {name: array for name, array in arrays.items() if not name.startswith("val_")}
    np.savez(folder / "images.npz", **arrays)
    done = run(folder, *RUN, *argv)
    assert done.returncode in (1, 2)
    assert expected in done.stderr
    assert not (folder / "run" / "distil").exists()


def test_what_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(write_project(tmp_path))
    assert main(["run", "--data", "images.npz"]) == 2
    assert "MODEL is missing" in capsys.readouterr().err
    assert main(["run", "model.py:build"]) == 2
    assert "--data is missing" in capsys.readouterr().err


def test_steps_run_in_processes_of_their_own(tmp_path: Path) -> None:
    """The real processes, with an error in the first one."""
    folder = write_project(tmp_path)
    argv = [value if value != "model.py:build" else "model.py:nothing" for value in RUN]
    done = warm.run("fxelastic.cli", *argv, cwd=folder)
    assert done.returncode == 2
    assert "has no 'nothing'" in done.stderr


def test_a_measurement_that_cant_be_used_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[list[str]] = []

    def start(folder: Path, command: str, argv: list[str], stdout: object) -> int:
        made.append(argv)
        return 0

    monkeypatch.setattr("fxelastic.cli.run_loop.start_step", start)
    args = Namespace(quiet=True, debug=False)
    current = CurrentRun(args, tmp_path, Recipe(tmp_path))
    problems = iter(["noise", "", "noise", "noise", "noise"])
    step = Step(
        *("profile", "profile", ("bundle",), {}, {}, ()),
        problem=lambda: next(problems),
        thorough=("--samples=40",),
    )
    usual, thorough = ["bundle", "--quiet"], ["bundle", "--samples=40", "--quiet"]
    assert (current._made_well(step), made) == (0, [usual, thorough])
    assert (current._made_well(step), made[2:]) == (1, [usual, thorough, thorough])


def test_a_step_that_was_killed_is_called_so() -> None:
    assert _ended(2) == "ended with exit code 2"
    assert _ended(-9) == "was ended by signal 9, probably for lack of memory"
    assert _ended(-15) == "was ended by signal 15"


def test_a_longer_measurement_leaves_the_recipes_options(tmp_path: Path) -> None:
    """Of two values, the later one would count."""
    sections = {"model": {"model": "model.py:build"}, "train": {"data": "data.npz"}}
    for given, left in [
        ({}, ["samples", "subnets", "held-out"]),
        ({"subnets": 100}, ["samples", "held-out"]),
    ]:
        steps = steps_of(tmp_path, Recipe(tmp_path, {**sections, "profile": given}))
        (profile,) = (step for step in steps if step.name == "profile")
        assert [word.partition("=")[0] for word in profile.thorough] == [f"--{k}" for k in left]
