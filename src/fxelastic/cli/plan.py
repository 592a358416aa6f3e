"""``fxelastic plan``: the expected score at each latency, before anything is searched."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxelastic.cli import options
from fxelastic.cli.budgets import HELP, budgets_of
from fxelastic.cli.options import HelpFormatter
from fxelastic.cli.search import read_table, short
from fxelastic.cli.size_options import sizes_of

if TYPE_CHECKING:
    from fxelastic.edge.searching.planning import PlanPoint, ScorePlan

SCHEMA = "fxelastic.plan/1"

_DESCRIPTION = """\
Predict the best score within each budget from a few measured subnets, before a search:
branches are compared with the original's blocks, some subnets are scored, and a linear
model predicts all others. Does not need torch."""

_EPILOG = """\
examples:
  fxelastic plan bundle/ --data local.npz
  fxelastic plan bundle/ --data local.npz --budget 50% --budget 70% --subnets 20 --json

The band is the error to expect with a probability of 0.7. A search with the same data and
--out as its --out begins with the measured subnets.

exit codes: 0 success, 1 the bundle is damaged, 2 usage error, 130 interrupted"""

_SIZES = """\
the sizes of inputs that budgets are for, such as seq=128; by default, budgets are for the mean over
the samples"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser(
        "plan",
        help="predict the best score at each latency",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    options.add_bundle(parser)
    parser.add_argument(
        "--data",
        metavar="FILE",
        required=True,
        help="an .npz file of samples, with or without targets",
    )
    parser.add_argument(
        "--budget",
        metavar="BUDGET",
        action="append",
        help=f"{HELP} (default: 40%% to 90%% in steps of 10%%, and 95%%)",
    )
    parser.add_argument(
        "-o", "--out", metavar="FILE", help="a pool to write the measured subnets to"
    )
    options.add_score(parser, "top1; without targets agreement for class scores, else cosine")
    options.add_values(
        parser,
        ("--table", "FILE", str, None, "the latency table (default: BUNDLE.latency.json)"),
        ("--subnets", "N", options.at_least(4), 30, "subnets to measure"),
        ("--mode", "MODE", str, "assembled", "how subnets will be run: assembled or paged"),
        ("--batch-size", "N", options.at_least(1), 50, "samples in a batch"),
        ("--sizes", "NAME=SIZE,…", str, None, _SIZES),
        ("--seed", "N", int, 0, "seed of the measured subnets"),
    )
    parser.add_argument(
        "--force", action="store_true", help="plan although the table is marked unusable"
    )
    options.add_threads(parser)
    options.add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0; a failure raises.
    """
    from fxelastic import edge
    from fxelastic.edge.searching.planning import BUDGETS

    bundle = options.load_bundle(args)
    table = read_table(args.table, args.bundle, bundle)
    options.progress(args, f"measuring {args.subnets} subnets")
    plan = edge.plan(
        bundle,
        table,
        Path(args.data),
        budget=budgets_of(args.budget, bundle, table, args.mode) or BUDGETS,
        n_subnets=args.subnets,
        mode=args.mode,
        score=options.score(args.score),
        batch_size=args.batch_size,
        held_out=args.held_out,
        threads=args.threads,
        seed=args.seed,
        sizes=sizes_of(args.sizes),
        path=None if args.out is None else Path(args.out),
        force=args.force,
    )
    print(json.dumps(report(plan), indent=2) if args.json else "\n".join(sections(plan)))
    return 0


def report(plan: ScorePlan) -> dict[str, Any]:
    """The plan as data for ``json.dumps``."""
    return {
        "schema": SCHEMA,
        "score": plan.score,
        "original_ms": plan.original_ms,
        "original_score": plan.original_score,
        "standard_error": _number(plan.standard_error),
        "n_measured": len(plan.measured),
        "median_error": plan.median_error,
        "rank_correlation": plan.rank_correlation,
        "budgets": [_row(point) for point in plan.points],
    }


def _row(point: PlanPoint) -> dict[str, Any]:
    return {
        "budget_ms": point.budget_ms,
        "predicted_ms": _number(point.predicted_ms),
        "score": _number(point.score),
        "band": _number(point.band),
        "arch": None if point.arch is None else str(point.arch),
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def sections(plan: ScorePlan) -> list[str]:
    """The plan as lines of text."""
    from fxelastic.spec.columns import aligned

    rows = [("budget", "latency", "of original", f"expected {plan.score}", "subnet")]
    for point in plan.points:
        if point.arch is None:
            rows.append((f"{point.budget_ms:.3f} ms", "-", "-", "-", "no subnet keeps it"))
            continue
        rows.append(
            (
                f"{point.budget_ms:.3f} ms",
                f"{point.predicted_ms:.3f} ms",
                f"{point.predicted_ms / plan.original_ms:.0%}",
                f"{point.score:.4f} ± {point.band:.4f}",
                short(point.arch.branches),
            )
        )
    lines = aligned(rows, right={0, 1, 2, 3})
    return [
        lines[0],
        "-" * max(map(len, lines)),
        *lines[1:],
        "",
        f"original: {plan.original_score:.4f} at {plan.original_ms:.3f} ms",
        f"{len(plan.measured)} subnets measured; each predicted from the others: median error "
        f"{plan.median_error:.4f}, rank correlation {plan.rank_correlation:.2f}",
    ]
