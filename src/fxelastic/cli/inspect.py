"""``fxelastic inspect``: show the contents of a bundle."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from fxelastic.cli import options
from fxelastic.cli.options import HelpFormatter
from fxelastic.cli.profile_table import table_lines, table_report
from fxelastic.cli.search import read_table

if TYPE_CHECKING:
    from fxelastic.edge.bundle import Bundle

SCHEMA = "fxelastic.inspect/1"

_DESCRIPTION = """\
Show the contents of a bundle: the model, its inputs and results, its branches with
their sizes, and the verification of the export. Does not need torch."""

_EPILOG = """\
examples:
  fxelastic inspect bundle/
  fxelastic inspect bundle/ --files
  fxelastic inspect bundle/ --table
  fxelastic inspect bundle/ --json

exit codes: 0 success, 1 the bundle is damaged, 2 usage error"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser(
        "inspect",
        help="show the contents of a bundle, and verify its files",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    options.add_bundle(parser)
    parser.add_argument(
        "--files", action="store_true", help="read and verify every file, not only the sizes"
    )
    parser.add_argument(
        "--table",
        metavar="FILE",
        nargs="?",
        const="",
        help="show what each branch costs on this device, from its latency table "
        "(default: BUNDLE.latency.json)",
    )
    options.add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0; raises an error on failure.
    """
    bundle = options.load_bundle(args)
    if args.files:
        options.progress(args, f"verifying {len(bundle.files)} files")
        bundle.verify()
    table = None if args.table is None else read_table(args.table or None, args.bundle, bundle)
    if args.json:
        found = report(bundle, files=args.files)
        costs = {} if table is None else {"table": table_report(bundle, table)}
        print(json.dumps({**found, **costs}, indent=2))
    elif table is not None:
        print("\n".join(table_lines(bundle, table)))
    else:
        print("\n".join(sections(bundle, files=args.files)))
    return 0


def report(bundle: Bundle, *, files: bool = False) -> dict[str, Any]:
    """The bundle as data for ``json.dumps``.

    Args:
        bundle: The bundle.
        files: Whether every file was verified.
    """
    manifest = bundle.manifest
    return {
        "schema": SCHEMA,
        "bundle": str(bundle.path),
        "digest": bundle.digest,
        "model": dict(vars(manifest.model)),
        "backend": {**vars(manifest.backend), "versions": dict(manifest.backend.versions)},
        "n_blocks": bundle.space.n_blocks,
        "n_branches": len(bundle.space.branches),
        "n_subnets": bundle.space.count(),
        "size_bytes": size_bytes(bundle),
        "files_verified": files,
        "inputs": [value.to_json() for value in bundle.inputs],
        "results": [
            {"name": result.name, "value": value.to_json()}
            for result, value in zip(manifest.results, bundle.outputs, strict=True)
        ],
        "structure": manifest.structure,
        "branches": [segment.to_json() for segment in manifest.segments],
        "verification": None if manifest.verification is None else manifest.verification.to_json(),
        **({} if manifest.int8 is None else {"int8": manifest.int8.to_json()}),
        **({} if manifest.storage is None else {"storage": manifest.storage.to_json()}),
    }


def size_bytes(bundle: Bundle) -> int:
    """The total size of all files except the manifest, in bytes."""
    return sum(file.size_bytes for file in bundle.files.values())


def sections(bundle: Bundle, *, files: bool = False) -> list[str]:
    """The bundle as lines of text."""
    manifest = bundle.manifest
    model, backend = manifest.model, manifest.backend
    batch = "any batch size" if model.dynamic_batch else f"batch size {model.batch_size} only"
    lines = [
        f"{model.name}: {model.n_params:,} parameters (P0), {batch}; "
        f"ONNX opset {backend.opset} for {backend.name}",
        "",
        *(f"input   {value}" for value in bundle.inputs),
        *(
            f"result  {result.name}: {str(value).partition(': ')[2]}"
            for result, value in zip(manifest.results, bundle.outputs, strict=True)
        ),
        "",
        *_branches(bundle),
        *_flops(bundle),
        "",
        f"{bundle.space}; {len(bundle.files)} files, {_bytes(size_bytes(bundle))}"
        + (", all verified" if files else ""),
        *_verified(bundle),
        *_storage(bundle),
        *_int8(bundle),
    ]
    if backend.reason:
        lines.append(
            f"converted one by one, because converting all at once failed: {backend.reason}"
        )
    return lines


def _branches(bundle: Bundle) -> list[str]:
    from fxelastic.spec.columns import aligned, engineering

    header = ("branch", "blocks", "params", "FLOPs", "weights", "stands for")
    rows = [header]
    for segment in bundle.manifest.segments:
        spec = segment.spec
        blocks = bundle.manifest.blocks[spec.start : spec.stop]
        names = blocks[0].name if len(blocks) == 1 else f"{blocks[0].name} to {blocks[-1].name}"
        kind = f" ({blocks[0].kind})" if len(blocks) == 1 and blocks[0].kind != "basic" else ""
        rows.append(
            (
                spec.id,
                f"[{spec.start}, {spec.stop})",
                f"{spec.n_params:,}",
                engineering(spec.flops),
                _bytes(segment.weight_bytes),
                f"{names}{kind}{', approximate' if segment.approximate else ''}",
            )
        )
    lines = aligned(rows, right={2, 3, 4})
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _flops(bundle: Bundle) -> list[str]:
    """The FLOPs of branches as expressions of the sizes that vary, if there are any."""
    from fxelastic.spec.columns import aligned

    rows = [
        (spec.id, spec.flops_by_size)
        for spec in bundle.space.branches
        if not (spec.flops_by_size or "0").isdecimal()
    ]
    return ["", "FLOPs of one sample, by size", *aligned(rows)] if rows else []


def _verified(bundle: Bundle) -> list[str]:
    record = bundle.manifest.verification
    if record is None:
        return ["not compared with torch at export (--no-verify)"]
    sizes = " and ".join(map(str, record.batch_sizes))
    n_subnets = len(record.subnets) - 1
    subnets = f" and {n_subnets} random subnet{'s' * (n_subnets != 1)}" if n_subnets else ""
    lines = [f"every file, the model{subnets} compared with torch at batch size {sizes}"]
    if record.fusion_verified:
        lines.append("the blocks run the kernels of the whole model: no cut costs a fusion")
    else:
        kernels = [f"{n} {name} lost" for name, n in record.kernels_lost.items()]
        kernels += [f"{n} {name} added" for name, n in record.kernels_added.items()]
        lines.append(f"cuts change kernels of the whole model: {', '.join(kernels)}")
    if record.soft_fusions:
        rules = [soft.rule for soft in record.soft_fusions]
        counts = ", ".join(f"{rules.count(rule)} x {rule}" for rule in dict.fromkeys(rules))
        lines.append(f"fusions that cuts separate: {counts}")
    return lines


def _storage(bundle: Bundle) -> list[str]:
    record = bundle.manifest.storage
    if record is None:
        return []
    return [
        f"weights of new branches are stored as {record.format}: an error of at most "
        f"{record.max_error:.1e} of the variance of a branch's outputs ({record.branch})"
    ]


def _int8(bundle: Bundle) -> list[str]:
    """A summary of the 8-bit branches."""
    record = bundle.manifest.int8
    if record is None:
        return []
    made = [s.quantised for s in bundle.manifest.segments if s.quantised is not None]
    errors = sorted(quantised.error for quantised in made)
    spread = f", errors from {errors[0]:.1e} to {errors[-1]:.1e}" if errors else ""
    return [
        f"{len(made)} 8-bit branches of {len({q.source for q in made})} float branches{spread}; "
        f"ranges by {record.ranges} on {record.n_samples} samples, errors on "
        f"{record.n_held_out} others",
        *(f"not made: {branch}: {reason}" for branch, reason in record.refused),
    ]


def _bytes(count: int) -> str:
    from fxelastic.spec.columns import engineering

    return f"{engineering(count)}B" if count >= 1000 else f"{count} B"
