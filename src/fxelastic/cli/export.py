"""``fxelastic export``, also ``fxelastic-export``: a model or its trained supernet as a bundle."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxelastic.cli import options
from fxelastic.cli.inspect import sections, size_bytes
from fxelastic.cli.int8 import add_int8, check_int8_options, int8_of
from fxelastic.cli.options import DEFAULT_FUSION, DEFAULT_GAMMA, HelpFormatter
from fxelastic.cli.supernet import add_expansion, supernet_of

if TYPE_CHECKING:
    from fxelastic.edge.bundle import Bundle

SCHEMA = "fxelastic.export/1"

_DESCRIPTION = """\
Write a model and its branches as a bundle: a folder of ONNX files that a device
without torch can measure, search and run."""

_EPILOG = """\
examples:
  fxelastic export torchvision.models:resnet50 bundle/ --gamma 0.25
  fxelastic export my_model.py:build bundle/ --weights model.pt --supernet-weights net.safetensors
  fxelastic export my_model.py:build bundle/ --kind merged:spans=1,2 --kind skip --force
  fxelastic export my_model.py:build bundle/ --int8 --calibration inputs.npz

exit codes: 0 success, 1 the model can't be captured or exported, 2 usage error, 130 interrupted
(OUT is written atomically: a failure or an interrupt leaves it unchanged)"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser(
        "export",
        help="write a model and its branches as a bundle",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    options.add_model(parser, gamma=f"{DEFAULT_GAMMA:g}", fusion=DEFAULT_FUSION)
    parser.add_argument("out", metavar="OUT", help="the folder to write")
    add_expansion(parser)
    parser.add_argument(
        "--opset", type=int, metavar="N", help="version of the ONNX operator set (default: 20)"
    )
    add_int8(parser)
    parser.add_argument(
        "--storage",
        metavar="PRECISION",
        choices=("fp32", "fp16"),
        default="fp32",
        help="precision of the stored weights of new branches, fp32 or fp16; devices compute with "
        "32 bits (default: fp32)",
    )
    parser.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare every file and some subnets with torch, and check which fusions the cuts "
        "keep (default: --verify)",
    )
    parser.add_argument(
        "--jobs",
        type=options.at_least(1),
        metavar="N",
        default=1,
        help="files compared at a time (default: 1)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        metavar="N",
        default=0,
        help="seed of the inputs and subnets of the comparison (default: 0)",
    )
    options.add_torch_threads(parser, "1")
    parser.add_argument("--force", action="store_true", help="replace the bundle at OUT")
    options.add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0; failures raise errors.
    """
    from fxelastic.backends.staging import check_target
    from fxelastic.edge.bundle import files_in

    # Check first: the capture may take a minute.
    check_target(Path(args.out), files_in, force=args.force)
    check_int8_options(args)
    supernet = supernet_of(args)
    with contextlib.redirect_stdout(sys.stderr):
        import fxelastic

        chosen: dict[str, Any] = {} if args.opset is None else {"opset": args.opset}
        bundle = fxelastic.export(
            supernet,
            args.out,
            verify=args.verify,
            force=args.force,
            jobs=args.jobs,
            seed=args.seed,
            threads=args.threads,
            quantise=int8_of(args, supernet),
            storage=args.storage,
            progress=lambda message: options.progress(args, message),
            **chosen,
        )
    if args.json:
        print(json.dumps(report(bundle, supernet), indent=2))
    else:
        print("\n".join([f"wrote {bundle.path}", "", *sections(bundle)]))
    return 0


def report(bundle: Bundle, supernet: Any) -> dict[str, Any]:
    """The result as data for ``json.dumps``."""
    manifest = bundle.manifest
    record = manifest.verification
    return {
        "schema": SCHEMA,
        "bundle": str(bundle.path),
        "digest": bundle.digest,
        "model": manifest.model.name,
        "n_params": manifest.model.n_params,
        "n_blocks": bundle.space.n_blocks,
        "n_branches": len(bundle.space.branches),
        "n_subnets": bundle.space.count(),
        "size_bytes": size_bytes(bundle),
        "opset": manifest.backend.opset,
        "conversion": manifest.backend.conversion,
        "conversion_reason": manifest.backend.reason,
        "verified": record is not None,
        "fusion_verified": None if record is None else record.fusion_verified,
        "n_int8_branches": sum(s.quantised is not None for s in manifest.segments),
        "skipped_branches": [
            {"kind": skip.kind, "start": skip.start, "stop": skip.stop, "reason": skip.reason}
            for skip in supernet.skips
        ],
        "warnings": list(supernet.partition.warnings),
    }
