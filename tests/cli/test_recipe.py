"""``fxelastic.toml``: reading, writing, and what a command takes from it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fxelastic.cli.app import build_parser, main, parser_of
from fxelastic.cli.recipe import FOUND, NAME, Recipe, changes, moved, with_recipe
from fxelastic.cli.run_pipeline import check_recipe
from fxelastic.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a run's folder in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "bundle").mkdir(parents=True)
    (tmp_path / "net.py").write_text("")
    (tmp_path / "data.npz").write_bytes(b"")
    return tmp_path


def words(command: str, *argv: str) -> list[str]:
    parser = parser_of(build_parser(), command)
    assert parser is not None
    return with_recipe(parser, command, argv)


def test_paths_are_relative_to_the_folder(folder: Path) -> None:
    given = {"model": {"model": "net.py:build"}, "train": {"data": "data.npz", "seed": 3}}
    Recipe(Path("run")).changed(given).write()
    found = Recipe.read(Path("run"))
    assert found.options("model", "train") == {
        "model": "../net.py:build",
        "data": "../data.npz",
        "seed": 3,
    }
    assert moved("model", "../net.py:build", Path("run"), Path()) == "net.py:build"
    assert moved("model", "torchvision.models:resnet18", Path("run"), Path()).startswith("torch")
    assert moved("kind", ["net.py:Mine:factor=2"], Path(), Path("run")) == [
        "../net.py:Mine:factor=2"
    ]


def test_what_the_run_found_out_wins(folder: Path) -> None:
    Recipe(Path("run"), {"model": {"weights": "mine.pt", "gamma": 0.2}}).write()
    Recipe(Path("run"), {"model": {"weights": "model.pt"}}).write(FOUND)
    assert Recipe.read(Path("run"), NAME, FOUND).options("model") == {
        "weights": "model.pt",
        "gamma": 0.2,
    }


def test_options_on_the_command_line_win(folder: Path) -> None:
    sections = {"search": {"budget": ["60%", "80%"], "seed": 2}, "profile": {"samples": 5}}
    Recipe(Path("run"), {**sections, "model": {"kinds": "all", "gamma": 0.3}}).write()
    budgets = ["--budget=60%", "--budget=80%"]
    assert words("search", "run/bundle", "--data", "x.npz") == [*budgets, "--seed=2"]
    assert words("search", "run/bundle", "--budget", "5ms") == ["--seed=2"]
    assert words("search", "run/bundle", "--budget=5ms", "--se", "1") == []
    assert words("profile", "run/bundle") == ["--samples=5"]
    # One option for the kinds of branches stands for all of them.
    assert words("train", "--out", "run/more", "--spans", "1") == ["--gamma=0.3"]
    assert words("search", "elsewhere") == words("search", "run/bundle", "--help") == []


def test_a_recipe_does_not_choose_what_a_command_writes(folder: Path) -> None:
    Recipe(Path("run"), {"profile": {"out": "../../x", "force": True, "samples": 5}}).write()
    assert words("profile", "run/bundle") == ["--samples=5"]


@pytest.mark.parametrize(
    "text", ["gamma = nan", "gamma = 1e999", "seed = 9223372036854775808", 'data = "\\u0000"']
)
def test_a_value_that_no_command_takes_is_refused(folder: Path, text: str) -> None:
    """Symptom: a ValueError, OverflowError or TypeError of the commands that read it."""
    (folder / "run" / NAME).write_text(f"[model]\n{text}\n")
    with pytest.raises(UsageError, match="can't be read") as raised:
        Recipe.read(Path("run"))
    assert f"[model] {text.partition(' ')[0]} = " in str(raised.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[search]\nmax-subnets = "many"', "argument --max-subnets: invalid int value: 'many'"),
        ("[train]\ntune-epochs = true", "argument --tune-epochs: expected one argument"),
        ('[run]\nsamples = "few"', "argument --samples: invalid int value: 'few'"),
        ("[train]\nbatch-size = 0", "argument --batch-size: must be at least 1, got 0"),
        ("[model]\ngamma = 7", "argument --gamma: must be above 0 and at most 1, got 7"),
        ("[search]\nmax-subnets = 0", "argument --max-subnets: must be at least 1, got 0"),
    ],
)
def test_a_value_of_another_type_is_refused_before_the_run(
    text: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Symptom: the step that reads it fails, after hours of training."""
    given = {"model": {"model": "net.py:build"}, "train": {"data": "data.npz"}}
    Recipe(Path("run")).changed(given).write()
    path = folder / "run" / NAME
    section = text.partition("\n")[0]
    old = path.read_text()
    new = old.replace(section, text) if section in old else f"{old}\n{text}\n"
    path.write_text(new)
    assert main(["run", "--out", "run", "--dry-run"]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "pass the option again" in err


def test_a_recipe_nested_deeply_is_refused(folder: Path) -> None:
    """Symptom: RecursionError."""
    (folder / "run" / NAME).write_text(f"[model]\nkind = {'[' * 5000}\n")
    with pytest.raises(UsageError, match="nested hundreds deep"):
        Recipe.read(Path("run"))


def test_the_bundle_and_the_model_need_no_name_in_the_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Recipe(Path("run")).changed({"model": {"model": "net.py:build"}}).write()
    monkeypatch.chdir(folder / "run")
    for command, name, value in (("profile", "bundle", "bundle"), ("explain", "model", "")):
        top = build_parser()
        parser = parser_of(top, command)
        assert parser is not None
        given = with_recipe(parser, command, [])
        found = getattr(top.parse_args([command, *given]), name)
        assert found == (value or "../net.py:build")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gamma = 0.1\n", "outside of a section"),
        ("[model\n", "can't be read"),
        ("[model]\ngama = 0.1\n", "did you mean gamma"),
        ("[modle]\ngamma = 0.1\n", r"unknown section \[modle\]"),
    ],
)
def test_a_recipe_of_another_form_is_refused(folder: Path, text: str, expected: str) -> None:
    (folder / "run" / NAME).write_text(text)
    with pytest.raises(UsageError, match=expected):
        check_recipe(Recipe.read(Path("run")))


def test_writing_needs_a_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tomli_w", None)
    with pytest.raises(UsageError, match=r"pip install 'fxelastic\[torch\]'"):
        Recipe(Path("run"), {"model": {"gamma": 0.2}}).write()


def test_changes_are_shown() -> None:
    old = {"gamma": 0.1, "kind": ["skip"], "seed": 0}
    new = {"gamma": 0.1, "kind": ["skip", "exit"], "threads": 2}
    assert changes(old, new) == [
        "kind: skip -> skip exit",
        "seed: 0 -> (default)",
        "threads: (default) -> 2",
    ]
