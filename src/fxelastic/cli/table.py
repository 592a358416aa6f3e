"""``fxelastic table``: work with latency tables of several devices."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxelastic.cli import options
from fxelastic.cli.options import HelpFormatter
from fxelastic.errors import UsageError

if TYPE_CHECKING:
    from fxelastic.edge.table_match import TableMatch

SCHEMA = "fxelastic.table_match/1"

_SUFFIX = ".latency.json"

_DESCRIPTION = """\
Find the table, of those measured on other devices, that fits this device best. Some of the
bundle's branches are measured, which takes seconds. The table found is scaled and written,
to search and serve with until fxelastic profile has measured this device. Does not need
torch."""

_EPILOG = """\
examples:
  fxelastic table match bundle/ devices/
  fxelastic table match bundle/ phone.latency.json board.latency.json --share 20%

exit codes: 0 success, 1 the bundle is damaged, 2 usage error, 130 interrupted"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser(
        "table",
        help="find a measured table for a new device",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("action", metavar="match", choices=("match",), help="what to do")
    options.add_bundle(parser)
    parser.add_argument(
        "tables",
        metavar="TABLE",
        nargs="+",
        help=f"a latency table, or a folder that is searched for files *{_SUFFIX}",
    )
    parser.add_argument(
        "--share",
        metavar="SHARE",
        default="5%",
        help="the share of the branches to measure, eight at least (default: 5%%)",
    )
    parser.add_argument(
        "-o", "--out", metavar="FILE", help="the table to write (default: BUNDLE.latency.json)"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace a table that is there already"
    )
    options.add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0; raises an error on failure.
    """
    from fxelastic.edge.table_match import match_table
    from fxelastic.spec.latency_table import LatencyTable

    share = _share(args.share)
    bundle = options.load_bundle(args)
    out = options.beside(args.bundle, "latency") if args.out is None else Path(args.out)
    options.check_written(out, bundle)
    if out.exists() and not args.force:
        raise UsageError(
            f"{out} exists already",
            expected="a new file",
            got="a file that may be this device's own table",
            fix="choose another --out, or pass --force",
        )
    tables = {str(path): LatencyTable.load(path) for path in _files(args.tables)}
    options.progress(args, f"measuring branches of {args.bundle}")
    found = match_table(bundle, tables, share=share)
    found.table.save(out)
    if args.json:
        print(json.dumps(_report(found, out), indent=2))
    else:
        print("\n".join(_lines(found)))
    options.progress(args, f"the latency table is {out}")
    return 0


def _share(text: str) -> float:
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError as e:
        raise UsageError(
            "--share must be a share", expected="for example 5%", got=repr(text)
        ) from e


def _files(given: list[str]) -> list[Path]:
    """The files of tables, those in folders included."""
    found: list[Path] = []
    for text in given:
        path = Path(text)
        inside = sorted(path.rglob(f"*{_SUFFIX}")) if path.is_dir() else [path]
        if not inside:
            raise UsageError(
                f"{path} has no latency tables",
                expected=f"files named *{_SUFFIX}, in it or in its folders",
                got="no such file",
            )
        found += inside
    return list(dict.fromkeys(found))


def _lines(found: TableMatch) -> list[str]:
    from fxelastic.spec.columns import aligned

    rows = [("table", "error")]
    rows += [(name, f"{e:.1%}") for name, e in sorted(found.errors.items(), key=lambda x: x[1])]
    return [
        *aligned(rows, right={1}),
        "",
        f"{found.name} fits best: latencies here are {found.factor:.3g} times its own, with an "
        f"error of {found.error:.1%} for a branch ({len(found.measured_ms)} branches measured)",
    ]


def _report(found: TableMatch, out: Path) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "exit_code": 0,
        "table": str(out),
        "matched": found.name,
        "factor": found.factor,
        "error": found.error,
        "errors": dict(found.errors),
        "measured_ms": dict(found.measured_ms),
    }
