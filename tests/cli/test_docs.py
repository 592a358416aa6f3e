"""docs/cli.md and docs/ci.md say what the commands do: every option, example and session."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from fxelastic.cli.app import build_parser
from fxelastic.cli.explain_json import SCHEMA, report
from tests import warm
from tests.cli.commands import ROOT
from tests.cli.docs_sessions import fenced, refreshed
from tests.ir.hand_written import tied

CLI = (ROOT / "docs" / "cli.md").read_text("utf-8")
CI = (ROOT / "docs" / "ci.md").read_text("utf-8")


def commands() -> dict[str, argparse.ArgumentParser]:
    (action,) = [
        action
        for action in build_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    ]
    return dict(action.choices)


def test_every_command_that_opens_a_bundle_can_require_its_signature() -> None:
    opening = {
        name: parser
        for name, parser in commands().items()
        if any(action.dest == "bundle" and not action.option_strings for action in parser._actions)
    }
    found = {
        name for name, p in opening.items() if "--require-signature" in p._option_string_actions
    }
    # These write a signature, and read it.
    assert opening.keys() - found == {"sign", "verify"}
    assert len(found) > 5


def section(name: str) -> str:
    """A page's text under a second-level title."""
    return CLI.split(f"\n## {name}\n")[1].split("\n## ")[0]


def lines_of_commands(text: str) -> list[str]:
    """Every line that calls fxelastic in a console session or a CI job."""
    found = re.findall(r"^(?:\$ |.*\brun: )(fxelastic(?:-export)? .*)$", text, re.MULTILINE)
    return [line.partition(" | ")[0].partition(" > ")[0] for line in found]


@pytest.mark.parametrize("name", list(commands()))
def test_every_option_is_documented_and_no_other(name: str) -> None:
    documented = re.findall(r"^\| `([^`]+)` \|", section(name), re.MULTILINE)
    parser = commands()[name]
    actual = []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        value = action.metavar if action.nargs != 0 else ""
        if action.nargs == "?":
            value = f"[{value}]"
        names = action.option_strings
        # --verify has --no-verify; other options may have a short name before the long one.
        names = ["/".join(names)] if "--no-verify" in names else names[-1:]
        actual.append(" ".join([*names, str(value)]).strip())
    assert sorted(documented) == sorted(actual)


@pytest.mark.parametrize("line", [*lines_of_commands(CLI), *lines_of_commands(CI)])
def test_every_command_line_is_accepted_by_the_parser(line: str) -> None:
    program, *argv = shlex.split(line)
    arguments = build_parser().parse_args(["export", *argv] if "-" in program else argv)
    assert hasattr(arguments, "run")


def test_there_are_command_lines() -> None:
    assert len(lines_of_commands(CLI)) >= 5
    assert len(lines_of_commands(CI)) >= 4


def test_sessions_print_what_the_page_shows(tmp_path: Path) -> None:
    """Where they do not, ``python -m tests.cli.docs_sessions`` writes the page anew."""
    assert sum(block.count("\n") > 1 for block in fenced(CLI, "console")) >= 7
    assert refreshed(CLI, tmp_path) == CLI


def test_a_stale_session_is_found(tmp_path: Path) -> None:
    stale = CLI.replace("8 blocks: 2 basic", "9 blocks: 3 basic")
    assert stale != CLI
    assert refreshed(stale, tmp_path) != stale


def test_json_fields_are_documented() -> None:
    (row,) = re.findall(rf"^\| `{SCHEMA}` \| (.*) \|$", CLI, re.MULTILINE)
    assert ["schema", *re.findall(r"`(\w+)`", row)] == list(report(tied()))


def test_the_recipe_for_pytest_works(tmp_path: Path) -> None:
    conftest, test = fenced(CI, "python")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "conftest.py").write_text(conftest)
    (tmp_path / "tests" / "test_partition.py").write_text(test)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")

    def pytest_run(*argv: str) -> subprocess.CompletedProcess[str]:
        return warm.run("pytest", "-q", "-p", "no:cacheprovider", *argv, cwd=tmp_path)

    updated = pytest_run("--update-golden")
    assert updated.returncode == 0, updated.stdout
    files = sorted(path.name for path in (tmp_path / "tests" / "golden").iterdir())
    assert files == ["small.txt", "wide.txt"]
    same = pytest_run()
    assert same.returncode == 0, same.stdout
    (tmp_path / "tests" / "golden" / "small.txt").unlink()
    changed = test.replace("(8, 64)", "(8, 32)").replace("(64, 4)", "(32, 4)")
    (tmp_path / "tests" / "test_partition.py").write_text(changed)
    drifted = pytest_run()
    assert "there is no golden file" in drifted.stdout
    assert drifted.returncode == 1
    assert "is not the golden one" in drifted.stdout
