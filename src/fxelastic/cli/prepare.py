"""``fxelastic prepare``: optimise a pool's subnets ahead of serving."""

from __future__ import annotations

import argparse
import json
from typing import Any

from fxelastic.cli import options
from fxelastic.cli.options import HelpFormatter
from fxelastic.cli.progress_line import progress_line
from fxelastic.cli.serve import add_limit, add_sizes, limits_of, read_pool, read_table
from fxelastic.cli.size_options import sizes_of

SCHEMA = "fxelastic.prepare/1"

_DESCRIPTION = """\
Prepare the files for serving a pool, on the device that will serve: one optimised
model for each subnet of the pool's Pareto table or, in paged mode, for each of
their branches. fxelastic serve maps these files. Does not need torch.

Existing files are kept. They are valid for this bundle, processor and version of
onnxruntime; you can delete the folder at any time to free disk space."""

_EPILOG = """\
examples:
  fxelastic prepare bundle/ --pool bundle.pool.json
  fxelastic prepare bundle/ --pool bundle.pool.json --mode paged --json

exit codes: 0 success, 1 the bundle is damaged or the disk is full, 2 usage error,
130 interrupted"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser(
        "prepare",
        help="optimise a pool's subnets ahead of serving",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    options.add_bundle(parser)
    parser.add_argument(
        "--pool", metavar="FILE", required=True, help="the pool that fxelastic search wrote"
    )
    parser.add_argument(
        "--table",
        metavar="FILE",
        help="the latency table that fxelastic profile wrote, if fxelastic serve will use it",
    )
    parser.add_argument(
        "--mode",
        metavar="MODE",
        default="auto",
        help="assembled, paged, or auto, which chooses as fxelastic serve does (default: auto)",
    )
    add_sizes(parser)
    add_limit(parser)
    parser.add_argument(
        "--prepared",
        metavar="DIR",
        help="the folder to write to (default: BUNDLE.prepared)",
    )
    parser.add_argument(
        "--memory-mb", metavar="MB", type=float, help="as for fxelastic serve: skip larger subnets"
    )
    options.add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0.
    """
    from fxelastic import edge

    bundle = options.load_bundle(args)
    with progress_line(quiet=args.quiet) as line:

        def show(done: int, total: int, name: str) -> None:
            line.update("preparing", done / total if total else 1.0, f"{done} of {total}")

        done = edge.prepare(
            bundle,
            read_pool(args.pool, bundle),
            read_table(args.table, bundle),
            mode=args.mode,
            prepared=args.prepared,
            limits=limits_of(args.limit),
            memory_bytes=options.megabytes(args.memory_mb),
            sizes=sizes_of(args.sizes),
            progress=show,
        )
    if args.json:
        report = {
            "schema": SCHEMA,
            "exit_code": 0,
            "folder": str(done.folder),
            "mode": done.mode,
            "n_subnets": done.n_subnets,
            "n_prepared": done.n_made,
            "n_ready_before": done.n_ready,
            "size_bytes": done.size_bytes,
            "seconds": round(done.seconds, 3),
        }
        print(json.dumps(report, indent=2))
    else:
        what = "subnets" if done.mode == "assembled" else "branches"
        print(
            f"{done.n_made} {what} prepared, {done.n_ready} were ready; "
            f"{done.size_bytes / 2**20:.1f} MiB in {done.folder}"
        )
    return 0
