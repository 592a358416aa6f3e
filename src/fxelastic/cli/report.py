"""``fxelastic report``: write the results of a run as a page with plots."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from fxelastic.cli import options
from fxelastic.cli.options import HelpFormatter
from fxelastic.errors import UsageError

SCHEMA = "fxelastic.report/1"

_DESCRIPTION = """\
Write one HTML page with plots, also as PNG, of the results in a run's folder:
bundle/, bundle.latency.json, bundle.pool.json, search.json, measured.json,
trace.jsonl and explain.json. Missing parts are left out. With --trace, plot a trace alone;
with --devices, compare the tables and pools of several devices."""

# What a report may be of, as on the command line.
_SPELLINGS = {"run_folder": "RUN", "trace": "--trace", "devices": "--devices"}

_EPILOG = """\
examples:
  fxelastic report build/demo
  fxelastic report build/demo --out report/
  fxelastic report --trace trace.jsonl --out trace.png
  fxelastic report --devices measured/

exit codes: 0 success, 2 usage error"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser(
        "report",
        help="write a page with plots of a run",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("run_folder", metavar="RUN", nargs="?", help="the folder of a run")
    parser.add_argument(
        "--trace", metavar="FILE", help="plot this trace of fxelastic serve, and nothing else"
    )
    parser.add_argument(
        "--devices",
        metavar="FOLDER",
        help="compare the tables *.latency.json in this folder, and the pools *.pool.json beside "
        "them, and nothing else",
    )
    parser.add_argument(
        "-o",
        "--out",
        metavar="PATH",
        help="the folder to write to (default: RUN, or FOLDER of --devices); with --trace the "
        ".png, .svg or .pdf file (default: beside the trace)",
    )
    options.add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0; raises an error on failure.
    """
    given = [name for name in _SPELLINGS if getattr(args, name) is not None]
    if len(given) != 1:
        raise UsageError(
            "RUN, --trace and --devices exclude one another" if given else "nothing to report",
            expected="RUN, the folder of a run, or --trace, or --devices",
            got=", ".join(_SPELLINGS[name] for name in given) or "no argument",
        )
    files = _trace(args) if args.trace is not None else _folder(args)
    if args.json:
        print(json.dumps({"schema": SCHEMA, "files": [str(file) for file in files]}, indent=2))
    elif not args.quiet:
        print("\n".join(f"wrote {file}" for file in files))
    return 0


def _trace(args: argparse.Namespace) -> list[Path]:
    from fxelastic.report.trace import read_trace
    from fxelastic.report.trace_figure import write_plot

    out = Path(args.out) if args.out is not None else Path(args.trace).with_suffix(".png")
    write_plot(read_trace(args.trace), out)
    return [out]


def _folder(args: argparse.Namespace) -> list[Path]:
    from fxelastic.report.devices import read_devices, write_devices
    from fxelastic.report.page import write_report
    from fxelastic.report.run_folder import RunFolder

    folder = Path(args.run_folder if args.devices is None else args.devices)
    found = RunFolder.read(folder) if args.devices is None else read_devices(folder)
    out = Path(args.out) if args.out is not None else folder
    try:
        out.mkdir(parents=True, exist_ok=True)
        if isinstance(found, RunFolder):
            return write_report(found, out)
        return write_devices(found, f"{len(found)} devices", out)
    except OSError as e:
        raise UsageError(
            f"the report can't be written to {out}",
            expected="a writable folder, on a disk with free space",
            got=f"{type(e).__name__}: {e.strerror or e}",
        ) from e
