"""``fxelastic check``: compare the partition of a model with its golden file."""

from __future__ import annotations

import argparse
import json
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxelastic.cli import options
from fxelastic.cli.options import DEFAULT_FUSION, DEFAULT_GAMMA, HelpFormatter
from fxelastic.errors import PartitionError, UsageError

if TYPE_CHECKING:
    from fxelastic.ir.diff import TextDiff

SCHEMA = "fxelastic.check/1"

_DESCRIPTION = """\
Partition a model, verify the partition, and compare it with a golden file.
For continuous integration: a change of the model that moves its blocks shows up
as a diff, and is accepted with --update."""

_EPILOG = """\
examples:
  fxelastic check my_project.models:build --golden tests/golden/model.txt --update
  fxelastic check my_project.models:build --golden tests/golden/model.txt

exit codes: 0 the same, 1 drift, failed verification or no golden file, 2 usage error"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser(
        "check",
        help="verify a model's partition and compare it with a golden file",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--golden", metavar="FILE", required=True, help="the committed text of the partition"
    )
    parser.add_argument(
        "--update",
        action="store_true",
        help="write FILE (and its folder) instead of failing; the partition must be valid",
    )
    options.add_model(
        parser,
        gamma=f"as in FILE, else {DEFAULT_GAMMA:g}",
        fusion=f"as in FILE, else {DEFAULT_FUSION}",
    )
    options.add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0 if the texts are equal or were updated, 1 otherwise.
    """
    from fxelastic.ir.diff import TextDiff, settings
    from fxelastic.ir.golden import read_golden, write_golden

    path = Path(args.golden)
    golden = read_golden(path)
    if golden is None and not args.update:
        return _report(
            args,
            "missing",
            [f"there is no golden file {path}", "write it with --update, look at it, commit it"],
        )
    recorded = settings(golden or "")
    gamma = args.gamma if args.gamma is not None else _gamma(recorded, path)
    try:
        partition = options.partition_of(args, gamma, args.fusion or _fusion(recorded))
        partition.verify()
    except PartitionError as e:
        if args.debug:
            traceback.print_exception(e)
        kept = "; the golden file is unchanged" if args.update else ""
        lines = [f"the partition of {args.model} is not valid{kept}", str(e)]
        return _report(args, "invalid", lines, error=str(e))
    facts: dict[str, Any] = {
        "model": partition.model_name,
        "gamma": partition.gamma,
        "fusion": partition.fusion.name,
        "n_params": partition.n_params,
        "n_blocks": len(partition.blocks),
    }
    what = f"{partition.model_name}, {len(partition.blocks)} blocks, verified"
    actual = partition.to_text()
    diff = TextDiff(golden or "", actual)
    changes = [] if golden is None or diff.equal else diff.report(str(path)).splitlines()
    if args.update:
        status = write_golden(path, actual)
        lines = [f"{status} {path}: {what}", *changes]
        return _report(args, status, lines, **facts, **_differences(diff, golden))
    if diff.equal:
        return _report(args, "equal", [f"{path}: {what}, as in the golden file"], **facts)
    lines = [
        f"{path}: the partition of {partition.model_name} is not the golden one",
        *changes,
        "",
        "if this is intended, accept it with --update",
    ]
    return _report(args, "drift", lines, **facts, **_differences(diff, golden))


def _fusion(recorded: dict[str, str]) -> str:
    return recorded.get("fusion") or DEFAULT_FUSION


def _gamma(recorded: dict[str, str], path: Path) -> float:
    text = recorded.get("gamma") or str(DEFAULT_GAMMA)
    try:
        return float(text)
    except ValueError as e:
        raise UsageError(
            f"the golden file {path} has no usable gamma",
            expected="a number above 0 and at most 1",
            got=repr(text),
            fix="pass --gamma, and --update to write the file again",
        ) from e


def _differences(diff: TextDiff, golden: str | None) -> dict[str, Any]:
    if golden is None or diff.equal:
        return {}
    return {
        "settings": [_change(change) for change in diff.settings],
        "appeared": list(diff.appeared),
        "vanished": list(diff.vanished),
        "renamed": [{"golden": old, "actual": new} for old, new in diff.renamed],
        "changed": [{"block": change.name, **_change(change)} for change in diff.changed],
        "moved": diff.moved,
        "summary": diff.summary(),
        "diff": diff.unified(),
    }


def _change(change: Any) -> dict[str, str]:
    return {"key": change.key, "golden": change.golden, "actual": change.actual}


def _report(args: argparse.Namespace, status: str, lines: list[str], **facts: Any) -> int:
    code = 0 if status in ("equal", "created", "updated", "unchanged") else 1
    if args.json:
        report = {
            "schema": SCHEMA,
            "status": status,
            "exit_code": code,
            "golden": args.golden,
            "message": lines[0],
        }
        print(json.dumps({**report, **facts}, indent=2))
    else:
        print("\n".join(lines))
    return code
