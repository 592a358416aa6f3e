"""``fxelastic explain``: the blocks of a model, with reasons."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxelastic.cli import options
from fxelastic.cli.options import DEFAULT_FUSION, DEFAULT_GAMMA, HelpFormatter
from fxelastic.errors import UsageError

if TYPE_CHECKING:
    from fxelastic.branches.diversity import MeasuredCuts
    from fxelastic.ir.partition import Partition

# Samples that run at once for --exits.
_BATCH_SIZE = 64

_DESCRIPTION = """\
Show the blocks of a model, their parameters, FLOPs and shapes, and the reasons
for glue, for blocks above the cap and for untaken cuts."""

_EPILOG = """\
examples:
  fxelastic explain torchvision.models:resnet50 --gamma 0.25
  fxelastic explain my_model.py:build --model-arg depth=12 --example-input int64:2x16 --cuts
  fxelastic explain torchvision.models:resnet50 --dot blocks.dot
  fxelastic explain torchvision.models:resnet50 --json
  fxelastic explain my_model.py:build --exits samples.npz

exit codes: 0 success, 1 the model can't be captured or partitioned, 2 usage error"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser(
        "explain",
        help="show a model's blocks, with reasons",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    options.add_model(parser, gamma=f"{DEFAULT_GAMMA:g}", fusion=DEFAULT_FUSION)
    parser.add_argument(
        "--cuts", action="store_true", help="list every untaken cut, not only the reasons"
    )
    parser.add_argument(
        "--dot",
        metavar="FILE",
        nargs="?",
        const="-",
        help="write the blocks as a Graphviz graph; without FILE, or for -, to stdout and "
        "nothing else there. Write it after MODEL",
    )
    parser.add_argument(
        "--exits",
        metavar="FILE",
        help="an .npz file of samples, with or without targets under y: score each cut by a linear "
        "map from its features to the model's result, and say where exits are worth it and which "
        "blocks matter little",
    )
    options.add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0; failures raise errors.
    """
    if args.json and args.dot == "-":
        raise UsageError(
            "--json and --dot both want stdout",
            expected="one of them there",
            got="--json and --dot without a file",
            fix="name a file: --dot blocks.dot",
        )
    partition = options.partition_of(
        args, DEFAULT_GAMMA if args.gamma is None else args.gamma, args.fusion or DEFAULT_FUSION
    )
    if args.dot == "-":
        print(partition.to_dot(), end="")
        return 0
    if args.dot is not None:
        _write_dot(args, partition.to_dot())
    found = None if args.exits is None else _diversity(partition, Path(args.exits))
    if args.json:
        from fxelastic.cli.explain_json import report

        exits = {} if found is None else {"exits": found.to_dict()}
        print(json.dumps({**report(partition), **exits}, indent=2))
    else:
        from fxelastic.cli.explain_text import sections

        print("\n".join(sections(partition, all_cuts=args.cuts)))
        if found is not None:
            print(f"\nexits: what a linear map of the features after each block reaches\n{found}")
    return 0


def _diversity(partition: Partition, path: Path) -> MeasuredCuts:
    from fxelastic.cli.sample_batches import sample_batches
    from fxelastic.probing import diversity

    return diversity(partition, sample_batches(path, partition, "--exits", _BATCH_SIZE))


def _write_dot(args: argparse.Namespace, dot: str) -> None:
    try:
        Path(args.dot).write_text(dot, encoding="utf-8")
    except OSError as e:
        raise UsageError(
            f"can't write {args.dot}",
            expected="a writable file in an existing folder",
            got=f"{type(e).__name__}: {e.strerror}",
            fix="check the path",
        ) from e
    options.progress(args, f"wrote {args.dot}")
