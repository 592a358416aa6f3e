"""``fxelastic profile``: measure a bundle's branches on this device."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxelastic.cli import options
from fxelastic.cli.options import HelpFormatter
from fxelastic.cli.progress_line import progress_line
from fxelastic.cli.size_options import sizes_to_measure
from fxelastic.errors import UsageError

if TYPE_CHECKING:
    from fxelastic.edge.bundle import Bundle
    from fxelastic.spec.latency_table import LatencyTable

SCHEMA = "fxelastic.profile/1"

_DESCRIPTION = """\
Measure the latency of each branch of a bundle on this device, and fit a model of
whole subnets. Writes the latency table that searches need. Does not need torch."""

_EPILOG = """\
examples:
  fxelastic profile bundle/
  fxelastic profile bundle/ --batch-size 8 --threads 1 --out table.json
  fxelastic profile bundle/ --time-budget 30
  fxelastic profile bundle/ --sizes seq=16,64,256

Run the command again to resume an interrupted measurement. Other programs may run:
if they keep the cores busy, the processor time of one thread is measured. A table
that does not predict whole subnets well is marked unusable, and searches stop with
an error: measure again, for longer.

exit codes: 0 success, 1 the bundle is damaged, 2 usage error, 130 interrupted"""

_DATA = """\
an .npz file as for fxelastic search, whose first samples are used; without it, inputs are
synthetic, which may be unsuitable if times depend on values"""

_SIZES = """\
the sizes of inputs to measure at, if others than the batch size may vary: seq=16,64,256; repeated
for several (default: the smallest, the example's, a larger one, and some in between)"""

_TIME_BUDGET = """\
end within this time, with fewer runs and subnets; each branch is always loaded and run five
times"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser(
        "profile",
        help="measure the branches of a bundle on this device",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    options.add_bundle(parser)
    parser.add_argument(
        "-o",
        "--out",
        metavar="FILE",
        help="the latency table to write (default: BUNDLE.latency.json)",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace a table of another bundle or device"
    )
    options.add_threads(parser)
    parser.add_argument(
        "--provider",
        metavar="NAME",
        action="append",
        help="execution provider of onnxruntime, the preferred one first; may be repeated "
        "(default: CPUExecutionProvider)",
    )
    parser.add_argument("--sizes", metavar="NAME=SIZE,…", action="append", default=[], help=_SIZES)
    options.add_values(
        parser,
        (
            "--batch-size",
            "N",
            options.at_least(1),
            None,
            "samples in a run (default: 1, or the model's fixed size)",
        ),
        ("--data", "FILE", str, None, _DATA),
        ("--samples", "N", options.at_least(3), 20, "minimum number of runs of each branch"),
        (
            "--subnets",
            "N",
            options.at_least(0),
            24,
            "whole subnets that correct the sum of branches",
        ),
        (
            "--held-out",
            "N",
            options.at_least(0),
            12,
            "other subnets, which measure the remaining error",
        ),
        ("--time-budget", "SECONDS", float, None, _TIME_BUDGET),
        ("--memory-mb", "MB", float, None, "maximum growth of the process's memory"),
        (
            "--cache-runs",
            "N",
            options.at_least(0),
            0,
            "runs with flushed caches, for cache hit rates; 20 ms each",
        ),
    )
    options.add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0; raises an error on failure.
    """
    from fxelastic import edge

    bundle = options.load_bundle(args)
    from fxelastic.spec.only_writer import only_writer

    out = Path(args.out) if args.out is not None else options.beside(args.bundle, "latency")
    _check_replaced(out, bundle, force=args.force)
    options.progress(args, f"measuring {len(bundle.space.branches)} branches of {args.bundle}")
    with only_writer(out), progress_line(quiet=args.quiet) as line:
        table = edge.profile(
            bundle,
            args.batch_size,
            args.threads,
            tuple(args.provider or ("CPUExecutionProvider",)),
            inputs=_inputs(bundle, args),
            sizes=sizes_to_measure(args.sizes),
            n_samples=args.samples,
            n_subnets=args.subnets,
            n_held_out=args.held_out,
            time_budget_s=args.time_budget,
            memory_bytes=options.megabytes(args.memory_mb),
            path=out.with_name(f"{out.name}.partial"),
            progress=line.update,
            cache_runs=args.cache_runs,
        )
        table.save(out)
    if args.json:
        print(json.dumps(report(bundle, table, out), indent=2))
    else:
        print("\n".join(sections(bundle, table)))
        options.progress(args, f"the latency table is {out}")
    return 0


def _inputs(bundle: Bundle, args: argparse.Namespace) -> dict[str, Any] | None:
    """The first samples of the data, as one batch.

    Raises:
        UsageError: There are too few samples, or they do not fit the model.
    """
    from fxelastic.edge.searching.data import batch_of, read_data

    if args.data is None:
        return None
    wanted = 1 if args.batch_size is None else args.batch_size
    size = batch_of(bundle, wanted)
    given = read_data(bundle, args.data)
    data = given.whole(size)
    if not len(data):
        raise UsageError(
            f"{args.data} has too few samples",
            expected=f"at least {size} of equal sizes, the batch size",
            got=str(len(given)),
        )
    inputs, _ = next(data.batches(size))
    return inputs


def report(bundle: Bundle, table: LatencyTable, out: Path) -> dict[str, Any]:
    """A summary of the table as data for ``json.dumps``."""
    return {
        "schema": SCHEMA,
        "bundle": str(bundle.path),
        "out": str(out),
        "device": dict(table.device),
        "batch_size": table.batch_size,
        "threads": table.threads,
        "provider": table.provider,
        "clock": table.clock,
        "refused": dict(table.refused),
        **_sizes(table),
        "modes": {mode: _mode(bundle, table, mode) for mode in table.modes},
    }


def _sizes(table: LatencyTable) -> dict[str, Any]:
    """The sizes of inputs besides the batch size."""
    measured = () if table.by_size is None else table.by_size.measured
    return {"sizes": table.sizes_text, "measured_sizes": list(measured)} if table.sizes else {}


def _mode(bundle: Bundle, table: LatencyTable, mode: str) -> dict[str, Any]:
    from fxelastic.edge.slow_branches import no_faster, used

    error = table.error(mode)
    return {
        "original_ms": table.predict_ms(bundle.space.original, mode),
        "quickest_ms": table.predict_ms(
            used(bundle, table, mode, ()).space.min_cost_arch(table.costs(mode)), mode
        ),
        "no_faster": no_faster(bundle, table, mode),
        "trusted": table.trusted(mode),
        "problem": table.problem(mode),
        "error": None if error is None else error.to_json(),
    }


def sections(bundle: Bundle, table: LatencyTable) -> list[str]:
    """The table as lines of text."""
    from fxelastic.spec.columns import aligned, engineering

    header = ("branch", "ms", "spread", "runs", "weights", "activations", "saves")
    rows = [header]
    for segment in bundle.manifest.segments:
        if segment.id not in table.rows:
            continue
        spec, row = segment.spec, table.rows[segment.id]
        replaced = bundle.space.original.branches[spec.start : spec.stop]
        saved = sum(table.costs()[branch] for branch in replaced) - table.costs()[spec.id]
        spread = (row.high_ms - row.ms) / row.median_ms if row.median_ms else 0.0
        rows.append(
            (
                spec.id,
                f"{row.ms:.3f}",
                f"{spread:.0%}",
                str(row.n),
                f"{engineering(row.weight_bytes)}B" if row.weight_bytes else "-",
                f"{engineering(row.activation_bytes)}B" if row.activation_bytes else "-",
                "-" if spec.kind == "original" else f"{saved:.3f} ms",
            )
        )
    lines = aligned(rows, right={1, 2, 3, 4, 5, 6})
    return [
        lines[0],
        "-" * max(map(len, lines)),
        *lines[1:],
        *(f"not used: {branch}: {reason}" for branch, reason in table.refused.items()),
        *_dropped_lines(bundle, table),
        "",
        *device_lines(table.device),
        f"batch size {table.batch_size}, {table.threads or 'all'} threads, {table.provider}, "
        f"{table.clock} time",
        *_size_lines(bundle, table),
        *(_mode_line(mode, _mode(bundle, table, mode)) for mode in table.modes),
    ]


def device_lines(device: Mapping[str, str]) -> list[str]:
    """The properties of a device."""
    return [
        f"{device.get('processor', 'unknown')}, {device.get('cores', '?')} cores, "
        f"{device.get('memory_gib', '?')} GiB, {device.get('system', '?')}, "
        f"onnxruntime {device.get('onnxruntime', '?')}"
    ]


def _dropped_lines(bundle: Bundle, table: LatencyTable) -> list[str]:
    """The branches that searches for latency leave out, and why."""
    from fxelastic.edge.slow_branches import no_faster

    found = no_faster(bundle, table, "assembled")
    if not found:
        return []
    derived = len(bundle.space.branches) - bundle.space.n_blocks
    return [
        f"{len(found)} of {derived} branches dropped: no faster than what they replace",
        *(f"  {branch}: {reason}" for branch, reason in found.items()),
    ]


def _size_lines(bundle: Bundle, table: LatencyTable) -> list[str]:
    """The latencies of the original at each of the measured sizes."""
    from fxelastic.spec.columns import aligned

    if not table.sizes:
        return []
    if table.by_size is None:
        return [f"for {table.sizes_text} alone"]
    rows = [("sizes", *(f"original, {mode}" for mode in table.modes))]
    for sizes in table.by_size.measured:
        each = (table.predict_ms(bundle.space.original, mode, sizes) for mode in table.modes)
        text = ", ".join(f"{name} = {size}" for name, size in sizes.items())
        rows.append((text, *(f"{ms:.3f} ms" for ms in each)))
    return ["", *aligned(rows, right={1, 2}), f"above and below: for {table.sizes_text}"]


def _mode_line(mode: str, values: dict[str, Any]) -> str:
    error = values["error"]
    if error is None:
        off = "error not measured"
    else:
        n_sizes = error.get("n_sizes", 0)
        at_sizes = f" at {n_sizes} held-out sizes" if n_sizes else ""
        off = (
            f"error {error['median']:.1%} (median), {error['p90']:.1%} (90th percentile) on "
            f"{error['n_held_out']} held-out subnets{at_sizes}"
        )
    doubt = "" if values["trusted"] else ": not reliable"
    if values["problem"]:
        doubt = f": UNUSABLE, searches stop with an error: {values['problem']}"
    return (
        f"{mode:9}  original {values['original_ms']:.3f} ms, quickest {values['quickest_ms']:.3f} "
        f"ms; {off}{doubt}"
    )


def _check_replaced(out: Path, bundle: Bundle, *, force: bool) -> None:
    """Check that ``out`` is a new file, or a table of this bundle and device."""
    options.check_written(out, bundle)
    if force or not out.exists():
        return
    from fxelastic.edge.fingerprint import fingerprint
    from fxelastic.spec.latency_table import LatencyTable

    try:
        old = LatencyTable.load(out)
        same = old.fits(bundle.digest, lambda: bundle.structure_digest)
        other = "" if same else "a table of another bundle"
        other = other or (
            "a table of another device" if old.different_device(fingerprint()) else ""
        )
    except UsageError:
        other = "another file"
    if other:
        raise UsageError(
            f"{out} would be overwritten",
            expected="a new file, or a table of this bundle and device",
            got=other,
            fix="pass --force to replace it, or --out for another file",
        )
