"""What holds for every command: help, exit codes, errors, interruption."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fxelastic as package
from fxelastic.cli import inspect as inspect_command
from fxelastic.cli import main
from fxelastic.cli.app import COMMANDS
from fxelastic.errors import CaptureError, InternalError, PartitionError, UsageError
from tests import warm
from tests.cli.commands import ROOT, environment
from tests.cli.conftest import Partitioner

NAMES = [command.__name__.rpartition(".")[2] for command in COMMANDS]


@pytest.mark.parametrize(
    "argv", [["--help"], ["--version"], ["explain", "--help"], ["check", "-h"]]
)
def test_help_imports_no_torch(argv: list[str]) -> None:
    script = (
        "import sys\nfrom fxelastic.cli import main\n"
        f"code = main({argv!r})\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
        "assert 'numpy' not in sys.modules, 'numpy was imported'\n"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_help_with_an_example_and_its_exit_codes(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"examples?:\n  fxelastic {name} \S+", out)
    assert "exit codes: 0 " in out
    for option in ("--json", "--quiet", "--debug"):
        assert option in out


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name in NAMES:
        assert re.search(rf"^    {name} +\w", out, re.MULTILINE)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fxelastic {package.__version__}\n"


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nonsense"],
        ["explain"],
        ["explain", "model.py:build", "--nonsense"],
        ["explain", "model.py:build", "--gamma", "much"],
        ["check", "model.py:build"],
    ],
)
def test_wrong_arguments_exit_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "usage: fxelastic" in captured.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("wrong", expected="a", got="b", fix="c"), 2),
        (CaptureError("not captured", fix="pass example_inputs=..."), 1),
        (PartitionError("not valid"), 1),
    ],
)
def test_errors_are_messages_without_a_traceback(
    partitioner: Partitioner, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    partitioner.error = error
    assert main(["explain", "model.py:build", "--quiet"]) == code
    err = capsys.readouterr().err
    assert f"fxelastic: error: {error}" in err
    assert "Traceback" not in err
    assert ("--example-input" in err) == isinstance(error, CaptureError)


@pytest.mark.parametrize("error", [ZeroDivisionError("odd"), KeyError(), InternalError("odd")])
def test_internal_errors_ask_for_a_report(
    partitioner: Partitioner, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    partitioner.error = error
    assert main(["explain", "model.py:build", "--quiet"]) == 1
    err = capsys.readouterr().err
    assert (
        f"internal error: {error if isinstance(error, InternalError) else type(error).__name__}"
        in err
    )
    assert "report" in err
    assert "--debug" in err
    assert "Traceback" not in err


def test_debug_prints_the_traceback(
    partitioner: Partitioner, capsys: pytest.CaptureFixture[str]
) -> None:
    partitioner.error = ZeroDivisionError("odd")
    assert main(["explain", "model.py:build", "--debug"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "ZeroDivisionError: odd" in err


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (UsageError("wrong", expected="a", got="b", fix="c"), "usage", 2),
        (CaptureError("not captured"), "failure", 1),
        (ZeroDivisionError("odd"), "internal", 1),
    ],
)
def test_errors_as_json(
    partitioner: Partitioner,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    kind: str,
    code: int,
) -> None:
    partitioner.error = error
    assert main(["explain", "model.py:build", "--json"]) == code
    report = json.loads(capsys.readouterr().out)
    assert (report["schema"], report["kind"], report["exit_code"]) == (
        "fxelastic.error/1",
        kind,
        code,
    )
    if kind == "usage":
        assert [report[key] for key in ("what", "expected", "got", "fix")] == ["wrong", *"abc"]


def test_interruption_is_one_line_and_130(
    partitioner: Partitioner, capsys: pytest.CaptureFixture[str]
) -> None:
    partitioner.error = KeyboardInterrupt()
    assert main(["explain", "model.py:build", "--quiet"]) == 130
    assert capsys.readouterr().err.strip().splitlines()[-1] == "fxelastic: interrupted"


def test_ctrl_c_that_an_import_swallows_is_one_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: object) -> int:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise AttributeError("module 'numpy' has no attribute 'nonzero'")

    monkeypatch.setattr(inspect_command, "run", run)
    before = signal.getsignal(signal.SIGINT)
    assert main(["inspect", "bundle"]) == 130
    assert capsys.readouterr().err == "\nfxelastic: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_of_a_real_process(folder: Path) -> None:
    (folder / "slow.py").write_text(
        "import time\n\ndef build():\n    open('started', 'w').close()\n    time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "fxelastic.cli", "explain", "slow.py:build"],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (folder / "started").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.rstrip().endswith("fxelastic: interrupted")
    assert "Traceback" not in err


def test_closed_pipe_is_silent(folder: Path) -> None:
    """Symptom: ``fxelastic explain … | head`` ends in a BrokenPipeError traceback."""
    script = (
        "import fxelastic, sys\n"
        "from tests.ir.hand_written import convolutional\n"
        "from fxelastic.cli import main\n"
        "fxelastic.partition = lambda *args, **kwargs: convolutional()\n"
        "sys.exit(main(['explain', 'model.py:build', '--quiet']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=folder,
        env={**environment(), "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read().decode()
    assert process.wait(timeout=120) == 141
    assert "Traceback" not in err
    assert "BrokenPipe" not in err


def test_closed_and_full_streams_give_an_exit_code(folder: Path) -> None:
    for redirect in (">&-", "<&- >&-", "2>&- >&-"):
        done = _shell(f"-m fxelastic monitor --count 1 --interval 0.1 {redirect}", folder)
        assert done.returncode == 0
        assert "internal error" not in done.stderr
    if Path("/dev/full").exists():
        done = _shell("-m fxelastic inspect . --json >/dev/full", folder)
        assert done.returncode == 1
        assert done.stderr.startswith("fxelastic: error: ")
        assert "Traceback" not in done.stderr


def test_help_is_printed_where_only_ascii_can_be(folder: Path) -> None:
    done = _shell("-m fxelastic search --help", folder, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--budget" in done.stdout


def _shell(command: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", f"{shlex.quote(sys.executable)} {command}"],
        cwd=folder,
        env={**environment(), **variables},
        capture_output=True,
        text=True,
    )


def test_names_that_the_terminal_cannot_show_are_escaped(folder: Path) -> None:
    """Symptom: UnicodeEncodeError where the locale is not UTF-8."""
    script = (
        "import fxelastic, sys\n"
        "from dataclasses import replace\n"
        "from tests.ir.hand_written import convolutional\n"
        "from fxelastic.cli import main\n"
        "made = replace(convolutional(), model_name='N\u00e4t')\n"
        "fxelastic.partition = lambda *args, **kwargs: made\n"
        "sys.exit(main(['explain', 'model.py:build', '--quiet']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={
            **environment(),
            "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
            "PYTHONIOENCODING": "ascii",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(r"N\xe4t: 288 parameters")


def test_commands_leave_the_import_path_as_it_was(partitioner: Partitioner) -> None:
    before = list(sys.path)
    assert main(["explain", "model.py:build", "--quiet"]) == 0
    assert sys.path == before


@pytest.mark.parametrize("module", ["fxelastic", "fxelastic.cli"])
def test_commands_run_as_a_module(module: str, tmp_path: Path) -> None:
    done = warm.run(module, "--version", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("fxelastic ")


def test_a_long_argument_is_repeated_in_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["monitor", "--count", "9" * 100_000]) == 2
    assert main(["monitor", "\x1b[2J"]) == 2
    err = capsys.readouterr().err
    assert len(err) < 4000
    assert "invalid int value" in err
    assert "\x1b" not in err
