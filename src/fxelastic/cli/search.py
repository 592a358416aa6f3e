"""``fxelastic search``: find the best subnets within limits on this device."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxelastic.cli import options
from fxelastic.cli.budgets import HELP, budgets_of
from fxelastic.cli.kinds import parse_strategy
from fxelastic.cli.options import HelpFormatter
from fxelastic.cli.progress_line import progress_line
from fxelastic.cli.size_options import sizes_of
from fxelastic.errors import UsageError

if TYPE_CHECKING:
    from fxelastic.edge.bundle import Bundle
    from fxelastic.edge.searching.result import SearchResult
    from fxelastic.edge.searching.study import Study
    from fxelastic.spec.latency_table import LatencyTable

SCHEMA = "fxelastic.search/1"

_DESCRIPTION = """\
Search for the most accurate subnets within limits on latency and other resources,
using the latency table of this device and samples of its data. Writes the pool that
fxelastic serve chooses from. Does not need torch."""

_EPILOG = """\
examples:
  fxelastic search bundle/ --data local.npz --budget 60%
  fxelastic search bundle/ --data local.npz --budget 50% --budget 70% --budget 90%
  fxelastic search bundle/ --data local.npz --budget 60% --limit weight_bytes=70%
  fxelastic search bundle/ --data local.npz --budget 60% --weight flops=1
  fxelastic search bundle/ --data local.npz --budget 20ms --size-percentile 95
  fxelastic search bundle/ --data local.npz --budget 12.5ms --score negative_loss --mode paged
  fxelastic search bundle/ --data local.npz --budget 60% --strategy annealing:width=0.2

local.npz contains an array for each input (or x for a single input) and targets.
Without targets, subnets are compared with the results of the original.
Samples of different sizes are padded, with an array lengths, or joined, with offsets.
Ctrl-C ends the search with the best subnets so far; a later search with the same
pool resumes from there.

exit codes: 0 success, 1 the bundle is damaged, 2 usage error, 130 interrupted"""

_STRATEGIES = """\
evolutionary, annealing, additive, exhaustive, plain-evolutionary, plain-annealing, or an installed
strategy, optionally with its options"""

_CONFIDENCE = """\
stop evaluating a candidate when it is not the best with this probability, from 0.5 to 1; at 1, no
winner is lost; for top1, agreement, cosine and spearman"""

_SIZES = """\
the sizes of inputs that budgets are for, such as seq=128; by default, budgets are for the mean over
the samples"""

_MAX_LOSS = """\
also find cascades, in which a sample leaves at the first early exit that is confident: at most this
share of samples gets a wrong answer where the original is right; several shares, such as 0.01,0.03,
give several cascades, among which serving chooses under load"""

_PERCENTILE = """\
budgets are for the sample whose original latency is this percentile, from 0 to 100"""
_OF_RUNS = (
    """budgets are for this percentile of the runs, such as 95, by the spread of the measurements"""
)


_EXAMPLE = {"--limit": "70%", "--weight": "0.3"}


def add_parser(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser(
        "search",
        help="search for the best subnets within limits",
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
        help=HELP,
    )
    parser.add_argument(
        "--limit",
        metavar="RESOURCE=BOUND",
        action="append",
        default=[],
        help="a bound on another resource for every budget, a number or a share of the original's "
        "cost: weight_bytes=70%%, flops=2e9; may be repeated",
    )
    parser.add_argument(
        "-o", "--out", metavar="FILE", help="the pool to write (default: BUNDLE.pool.json)"
    )
    options.add_score(parser, "top1; without targets agreement for class scores, else cosine")
    parser.add_argument(
        "--weight",
        metavar="RESOURCE=WEIGHT",
        action="append",
        default=[],
        help="how much a resource counts among subnets nearly as good as the best, for example "
        "energy_mj=0.7; may be repeated",
    )
    options.add_values(
        parser,
        ("--table", "FILE", str, None, "the latency table (default: BUNDLE.latency.json)"),
        ("--strategy", "NAME[:OPTION=VALUE,…]", str, "evolutionary", _STRATEGIES),
        ("--mode", "MODE", str, "assembled", "how subnets will be run: assembled or paged"),
        ("--max-subnets", "N", options.at_least(1), 400, "subnets to try for each budget"),
        ("--time-budget", "SECONDS", float, None, "end after this time, for all budgets together"),
        ("--batch-size", "N", options.at_least(1), 50, "samples in a batch"),
        ("--cache-mb", "MB", float, 256.0, "memory for features that subnets share"),
        ("--memory-mb", "MB", float, None, "memory for the sessions and models of subnets"),
        ("--weight-mb", "MB", float, None, "maximum size of a subnet's weights"),
        ("--confidence", "P", float, 1.0, _CONFIDENCE),
        ("--sizes", "NAME=SIZE,…", str, None, _SIZES),
        ("--size-percentile", "P", float, None, _PERCENTILE),
        ("--latency-percentile", "P", float, None, _OF_RUNS),
        ("--max-loss", "SHARE[,SHARE]", _shares, None, _MAX_LOSS),
        ("--delta", "P", float, 0.05, "the probability that a cascade loses more than --max-loss"),
        ("--exit-confidence", "NAME", str, "max_softmax", "max_softmax, margin or entropy"),
        ("--tolerance", "SCORE", float, 0.01, "how far below the best score, for --weight"),
        ("--seed", "N", int, 0, "seed of the search"),
    )
    parser.add_argument(
        "--force", action="store_true", help="search although the table is marked unusable"
    )
    options.add_threads(parser)
    options.add_output(parser)
    parser.set_defaults(run=run)


def _shares(text: str) -> tuple[float, ...]:
    """Numbers with commas between them."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        problem = f"expected numbers such as 0.01 or 0.01,0.03, got {text!r}"
        raise argparse.ArgumentTypeError(problem) from None


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0, or 130 if Ctrl-C ended the search; the best subnets so far are written and printed.
    """
    from fxelastic import edge

    bundle = options.load_bundle(args)
    table = read_table(args.table, args.bundle, bundle)
    out = Path(args.out) if args.out is not None else options.beside(args.bundle, "pool")
    score = options.score(args.score)
    with progress_line(quiet=args.quiet) as line:

        def show(budget_ms: float, study: Study) -> None:
            details = f"{study.tried} subnets tried"
            if study.best is not None:
                score, best_ms = study.scores[study.best], study.predict_ms(study.best)
                details += f", best {score:.4f} at {best_ms:.3f} ms"
            line.update(f"limits {study.limits}", study.tried / study.max_subnets, details)

        result = edge.search(
            bundle,
            table,
            Path(args.data),
            budget=budgets_of(args.budget, bundle, table, args.mode),
            limits=_by_resource("--limit", args.limit) or None,
            weights=_weights(args.weight),
            tolerance=args.tolerance,
            strategy=parse_strategy(args.strategy),
            mode=args.mode,
            score=score,
            max_subnets=args.max_subnets,
            time_budget_s=args.time_budget,
            batch_size=args.batch_size,
            held_out=args.held_out,
            cache_bytes=options.megabytes(args.cache_mb),
            memory_bytes=options.megabytes(args.memory_mb),
            weight_bytes=options.megabytes(args.weight_mb),
            confidence=args.confidence,
            threads=args.threads,
            seed=args.seed,
            sizes=sizes_of(args.sizes),
            size_percentile=args.size_percentile,
            latency_percentile=args.latency_percentile,
            path=out,
            progress=show,
            max_loss=args.max_loss,
            delta=args.delta,
            exit_confidence=args.exit_confidence,
            force=args.force,
        )
    code = 130 if result.interrupted else 0
    if args.json:
        print(json.dumps(report(bundle, result, out, code, args.mode), indent=2))
    else:
        print("\n".join(sections(bundle, result, args.mode, args.max_loss is not None)))
        options.progress(args, f"the pool is {out}")
    return code


def _weights(texts: Sequence[str]) -> dict[str, float] | None:
    """The values of ``--weight``.

    Raises:
        UsageError: A text is malformed.
    """
    found = {}
    for name, value in _by_resource("--weight", texts).items():
        try:
            found[name] = float(value)
        except ValueError as e:
            raise UsageError(
                "--weight must be RESOURCE=WEIGHT",
                expected="for example --weight energy_mj=0.7",
                got=repr(f"{name}={value}"),
            ) from e
    return found or None


def _by_resource(option: str, texts: Sequence[str]) -> dict[str, str]:
    """Split the values of an option into resources and what follows.

    Raises:
        UsageError: A text is malformed, or a resource is named twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, sign, bound = text.partition("=")
        name = name.strip()
        if not sign or name in found:
            raise UsageError(
                f"{option} must be RESOURCE=VALUE, once for each resource",
                expected=f"for example {option} weight_bytes=" + _EXAMPLE[option],
                got=repr(text) if not sign else f"{name}={found[name]} and {text}",
            )
        found[name] = bound
    return found


def read_table(path: str | None, folder: str, bundle: Bundle) -> LatencyTable:
    """Read the latency table.

    Raises:
        UsageError: The file does not exist, or belongs to another bundle.
    """
    from fxelastic.spec.latency_table import LatencyTable

    file = Path(path) if path is not None else options.beside(folder, "latency")
    if not file.exists():
        raise UsageError(
            f"the latency table {file} does not exist",
            expected="the file that fxelastic profile wrote",
            got="no such file",
            fix=f"measure this device: fxelastic profile {folder}",
        )
    table = LatencyTable.load(file)
    table.check_bundle(bundle.digest, lambda: bundle.structure_digest)
    return table


def report(
    bundle: Bundle, result: SearchResult, out: Path, code: int, mode: str = "assembled"
) -> dict[str, Any]:
    """The result as data for ``json.dumps``."""
    from fxelastic.spec.resources import LATENCY

    return {
        "schema": SCHEMA,
        "exit_code": code,
        "bundle": str(bundle.path),
        "pool": str(out),
        "interrupted": result.interrupted,
        "score": result.pool.score,
        "targets": result.pool.targets,
        "n_subnets": len(result.pool),
        "original_ms": result.table.predict_ms(bundle.space.original, mode),
        "original": _original(bundle, result, mode),
        "sizes": result.table.sizes_text,
        "cascades": [found.to_json() for found in result.cascades],
        "evaluations": {**vars(result.counts), "saved": result.counts.saved},
        "budgets": [
            {
                "budget_ms": limits.get(LATENCY),
                "limits": dict(limits),
                "arch": str(best.arch),
                **best.costs,
                "accuracy": None if best.n_samples == 0 else best.accuracy,
                "held_out_accuracy": best.held_out_accuracy,
                "n_samples": best.n_samples,
                "mark": mark,
                "history": [vars(step) for step in history],
            }
            for limits, best, mark, history in zip(
                result.limits, result.bests, result.marks, result.histories, strict=True
            )
        ],
    }


def _original(bundle: Bundle, result: SearchResult, mode: str) -> dict[str, Any]:
    """The original as the subnets of the budgets; without scores if the search ended early."""
    found = result.original
    if found is None:
        costs = result.table.predict(bundle.space.original, mode=mode)
        return {**costs, "accuracy": None, "held_out_accuracy": None}
    scores = {"accuracy": found.accuracy, "held_out_accuracy": found.held_out_accuracy}
    return {**found.costs, **scores}


def sections(bundle: Bundle, result: SearchResult, mode: str, looked: bool) -> list[str]:
    """The result as lines of text; ``looked``: whether cascades were looked for."""
    from fxelastic.spec.columns import aligned

    original_ms = result.table.predict_ms(bundle.space.original, mode)
    rows: list[tuple[str, ...]]
    rows = [("limits", "latency", "of original", "score", "held out", "blocks replaced", "subnet")]
    own = _original(bundle, result, mode)
    scores = (own[name] for name in ("accuracy", "held_out_accuracy"))
    rows.append(
        (
            *("original", f"{original_ms:.3f} ms", "100%"),
            *("-" if score is None else f"{score:.4f}" for score in scores),
            *(f"0 of {bundle.space.n_blocks}", "original"),
        )
    )
    for limits, best, mark in zip(result.limits, result.bests, result.marks, strict=True):
        specs = bundle.space.specs(best.arch)
        replaced = sum(spec.stop - spec.start for spec in specs if spec.kind != "original")
        held = best.held_out_accuracy
        rows.append(
            (
                str(limits),
                f"{best.ms:.3f} ms",
                f"{best.ms / original_ms:.0%}",
                "-" if best.n_samples == 0 else f"{best.accuracy:.4f}",
                "-" if held is None else f"{held:.4f}",
                f"{replaced} of {bundle.space.n_blocks}",
                short(best.arch.branches) + (f" ({mark})" if mark else ""),
            )
        )
    lines = aligned(rows, right={0, 1, 2, 3, 4, 5})
    counts = result.counts
    saved = f", {counts.saved:.0%} of the branch runs saved by sharing" if counts.executed else ""
    return [
        lines[0],
        "-" * max(map(len, lines)),
        *lines[1:],
        "",
        f"{counts.subnets} subnets evaluated{saved}; {len(result.pool)} in the pool",
        f"score: {result.pool.score}"
        + (" with the original's own results" if result.pool.targets == "original" else ""),
        *([f"latencies are for {result.table.sizes_text}"] if result.table.sizes else []),
        *(["interrupted: these are the best so far"] if result.interrupted else []),
        *_cascade_lines(result, original_ms, looked),
    ]


def _cascade_lines(result: SearchResult, original_ms: float, looked: bool) -> list[str]:
    """The cascades, quickest first, with the share of the samples that leave at each exit."""
    if not result.cascades:
        none = "no cascade keeps the limits and --max-loss, and is quicker than its subnet"
        return ["", none] if looked and not result.interrupted else []
    lines = ["", "cascades:"]
    for found in result.cascades:
        *exits, end = found.cascade.archs
        leaving = zip(exits, found.coverage, found.auroc, strict=False)
        shares = ", ".join(
            f"{share:.0%} at {arch.branches[-1]} (AUROC {auroc:.3f})"
            for arch, share, auroc in leaving
        )
        limit = "" if math.isnan(found.max_loss) else f"loss of at most {found.max_loss:g}: "
        lines.append(
            f"  {limit}{found.ms:.3f} ms, {found.ms / original_ms:.0%} of the "
            "original: "
            f"{shares} leave, the others end in {short(end.branches)}; at most {found.bound:.2%} "
            f"wrong where the original is right (accuracy lost on {found.n_tested} held-out "
            f"samples: {found.loss:.2%} against the original, {found.loss_of_end:.2%} against the "
            "end)"
        )
    return lines


def short(branches: tuple[str, ...]) -> str:
    """The text of a subnet without its original branches."""
    new = [branch for branch in branches if not branch.startswith("original")]
    return ",".join(new) or "original"
