"""The ``fxelastic`` command: its parser, and how every command reports errors."""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from fxelastic import __version__
from fxelastic.cli import (
    assemble,
    check,
    explain,
    export,
    inspect,
    monitor,
    plan,
    prepare,
    profile,
    report,
    run,
    search,
    serve,
    sign,
    specialise,
    table,
    train,
    verify,
)
from fxelastic.cli.options import HelpFormatter
from fxelastic.cli.recipe import NAME as RECIPE
from fxelastic.cli.recipe import with_recipe
from fxelastic.cli.warning_lines import warning_lines
from fxelastic.errors import FxElasticError, InternalError, UsageError, printable
from fxelastic.extras import without_torch

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

# Errors of the system that no code can prevent: full disks, permissions, limits, broken disks.
_SYSTEM_ERRORS = (
    *("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM"),
    *("EMFILE", "ENFILE", "ENOMEM", "EIO", "ENAMETOOLONG", "ELOOP"),
)

COMMANDS = (
    run,
    explain,
    check,
    train,
    specialise,
    export,
    inspect,
    assemble,
    profile,
    table,
    plan,
    search,
    prepare,
    serve,
    monitor,
    sign,
    verify,
    report,
)

# The most characters of a message of the parser, which repeats an argument.
_MOST = 1000

_DESCRIPTION = """\
Turn a PyTorch model into a supernet of subnets that share its weights, and find the best subnet on
each device."""
_EPILOG = """\
example:
  fxelastic explain torchvision.models:resnet50 --gamma 0.25

exit codes: 0 success, 1 failure, 2 usage error, 130 interrupted
`fxelastic COMMAND --help` explains a command."""

_EXAMPLE_INPUT = "on the command line it is --example-input, e.g. --example-input 1x3x224x224"


class Parser(argparse.ArgumentParser):
    """A parser whose messages can be printed, whatever the arguments are."""

    def error(self, message: str) -> NoReturn:
        """Print a message, and exit."""
        shown = printable(message)
        super().error(shown if len(shown) <= _MOST else f"{shown[:_MOST]}…")


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``fxelastic`` with all of its commands."""
    parser = Parser(
        prog="fxelastic", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=HelpFormatter
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def parser_of(parser: argparse.ArgumentParser, command: str) -> argparse.ArgumentParser | None:
    """The parser of a command; None if there is no such command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found: argparse.ArgumentParser | None = action.choices.get(command)
            return found
    return None


def main(argv: Sequence[str] | None = None, *, read_recipe: bool = True) -> int:
    """Run ``fxelastic``.

    Args:
        argv: Arguments without the program's name; ``sys.argv`` by default.
        read_recipe: Whether a command that works in the folder of a run reads the recipe there.

    Returns:
        The exit code: 0 success, 1 failure, 2 usage error, 130 interrupted, 141 if the reader
        of the output closed the pipe.
    """
    _prepare_streams()
    parser = build_parser()
    # Otherwise onnxruntime writes an identifier to TMPDIR/.ses, and through a link of this name to
    # any file; and it sends reports. It reads the variable when it is imported.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    given = list(sys.argv[1:] if argv is None else argv)
    own = parser_of(parser, given[0]) if given and read_recipe else None
    if own is not None:
        try:
            words = with_recipe(own, given[0], given[1:])
        except FxElasticError as e:
            return _fail(e, argparse.Namespace(json="--json" in given, debug="--debug" in given))
        if words and "--quiet" not in given:
            print(f"fxelastic: from {RECIPE}: {shlex.join(words)}", file=sys.stderr)
        given = [given[0], *words, *given[1:]]
    return run_parser(parser, given)


def _prepare_streams() -> None:
    """Make sure that whatever is printed can be: streams may be closed, or take ASCII only."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Escape what the terminal can't encode, such as a module's name, instead of failing.
        sys.stdout.reconfigure(errors="backslashreplace")


def run_parser(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    """Run what a parser finds in arguments; returns the exit code, as `main` does."""
    try:
        args = parser.parse_args(argv)
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else EXIT_USAGE
    if getattr(args, "version", False):
        print(f"fxelastic {__version__}")
        return EXIT_OK
    if not hasattr(args, "run"):
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    return _run(args)


def export_main(argv: Sequence[str] | None = None) -> int:
    """Run ``fxelastic-export``, which is ``fxelastic export``.

    Args:
        argv: Arguments without the program's name; ``sys.argv`` by default.

    Returns:
        The exit code, as for `main`.
    """
    return main(["export", *(sys.argv[1:] if argv is None else argv)])


def _run(args: argparse.Namespace) -> int:
    import_path = list(sys.path)
    interrupts: list[int] = []
    try:
        with _noted(interrupts), warning_lines():
            code = args.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:
        # Python flushes stdout again at exit, which would raise once more.
        _discard_stdout()
        return EXIT_BROKEN_PIPE
    except Exception as e:  # noqa: BLE001 - the outermost frame: every error becomes a message
        if interrupts and not isinstance(e, FxElasticError):
            # A C extension that is interrupted in an import swallows the KeyboardInterrupt and then
            # fails for another reason.
            return _interrupted()
        return _fail(e, args)
    finally:
        sys.path[:] = import_path
    return int(code)


@contextmanager
def _noted(interrupts: list[int]) -> Iterator[None]:
    """Record each SIGINT before Python's own handler raises KeyboardInterrupt."""
    usual = signal.default_int_handler
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not usual
    ):
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        usual(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def _interrupted() -> int:
    print("\nfxelastic: interrupted", file=sys.stderr)
    return EXIT_INTERRUPTED


def _fail(error: Exception, args: argparse.Namespace) -> int:
    """Report an error on stderr, and on stdout too when the output is JSON."""
    error = without_torch(error, "this command") or _of_system(error)
    code = EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILURE
    internal = isinstance(error, InternalError) or not isinstance(error, FxElasticError)
    if args.debug:
        traceback.print_exception(error)
    if internal:
        print(f"fxelastic: internal error: {_describe(error)}", file=sys.stderr)
        hint = "" if args.debug else ", with what the same command prints with --debug"
        print(f"This is a bug in fxelastic. Please report it{hint}.", file=sys.stderr)
    else:
        print(f"fxelastic: error: {error}", file=sys.stderr)
        if "example_inputs" in (getattr(error, "fix", None) or ""):
            print(f"  here:     {_EXAMPLE_INPUT}", file=sys.stderr)
    if args.json:
        kind = "internal" if internal else "usage" if code == EXIT_USAGE else "failure"
        try:
            print(json.dumps(_as_json(error, kind, code), indent=2), flush=True)
        except OSError:
            _discard_stdout()
    return code


def _of_system(error: Exception) -> Exception:
    """What the system refuses, such as space on a disk, as an error that is not a bug."""
    if isinstance(error, MemoryError):
        return FxElasticError(
            "there is not enough memory",
            expected="more free memory",
            got=str(error) or None,
            fix="end other programs, or use smaller batches or --memory-mb",
        )
    if isinstance(error, OSError) and errno.errorcode.get(error.errno or 0) in _SYSTEM_ERRORS:
        place = "" if error.filename is None else f": {error.filename}"
        return FxElasticError(
            f"the system refuses to read or write a file{place}",
            got=error.strerror,
            fix="check the free space, the permissions and the limits of the system",
        )
    return error


def _as_json(error: Exception, kind: str, code: int) -> dict[str, object]:
    report: dict[str, object] = {
        "schema": "fxelastic.error/1",
        "kind": kind,
        "type": type(error).__name__,
        "exit_code": code,
        "what": _describe(error),
    }
    if isinstance(error, FxElasticError):
        parts = {"expected": error.expected, "got": error.got, "fix": error.fix}
        report |= {"what": error.what, **parts}
    return report


def _describe(error: Exception) -> str:
    text = str(error)
    if isinstance(error, FxElasticError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _discard_stdout() -> None:
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
