"""``fxelastic assemble``: write a subnet or a cascade as one ONNX file."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from fxelastic.cli import options
from fxelastic.cli.options import HelpFormatter
from fxelastic.errors import UsageError

SCHEMA = "fxelastic.assemble/1"

_DESCRIPTION = """\
Join the branches of a subnet, or of a cascade of early exits, into one ONNX file with
the original model's inputs and outputs. Needs no torch."""

_EPILOG = """\
examples:
  fxelastic assemble bundle/ original model.onnx
  fxelastic assemble bundle/ original@0,merged@1-3,original@3 subnet.onnx

exit codes: 0 success, 1 the bundle is damaged, 2 usage error"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser(
        "assemble",
        help="write a subnet or a cascade of a bundle as one ONNX file",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    options.add_bundle(parser)
    parser.add_argument(
        "arch",
        metavar="ARCH",
        help="ids of the subnet's branches with commas between them (fxelastic inspect lists "
        "them), or the word original for the model itself; or the text of a cascade: "
        "'CONFIDENCE>=THRESHOLD: ARCH; ARCH'",
    )
    parser.add_argument("out", metavar="OUT", help="the ONNX file to write")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    options.add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0; a failure raises.
    """
    from fxelastic import edge
    from fxelastic.edge.cascades.joined import LEFT_AT
    from fxelastic.spec import Arch
    from fxelastic.spec.cascade import Cascade, Servable

    bundle = options.load_bundle(args)
    # The word original, by itself or at the end of a cascade.
    text = re.sub(r"(^|; *)original$", rf"\g<1>{bundle.space.original}", args.arch)
    arch: Servable = Cascade.parse(text) if ";" in text else Arch.parse(text)
    for own in arch.archs if isinstance(arch, Cascade) else (arch,):
        bundle.space.validate(own)
    specs = [bundle.segment(branch).spec for branch in arch]
    out = Path(args.out)
    if out.exists() and not args.force:
        raise UsageError(
            f"{out} exists already",
            expected="a path that does not exist yet",
            got="a file" if out.is_file() else "a folder",
            fix="pass --force to replace it, or choose another path",
        )
    options.check_written(out, bundle)
    options.progress(args, f"assembling {len(specs)} branches")
    edge.assemble(bundle, arch, out)
    n_params = sum(spec.n_params for spec in specs)
    inputs = [value.name for value in bundle.inputs]
    outputs = [result.name for result in bundle.manifest.results]
    outputs += [LEFT_AT] if isinstance(arch, Cascade) else []
    if args.json:
        report = {
            "schema": SCHEMA,
            "out": str(out),
            "arch": str(arch),
            "n_params": n_params,
            "flops": sum(spec.flops for spec in specs),
            "size_bytes": out.stat().st_size,
            "inputs": inputs,
            "outputs": outputs,
        }
        print(json.dumps(report, indent=2))
    else:
        print(
            f"wrote {out}: {len(specs)} branches, {n_params:,} parameters; "
            f"inputs {', '.join(inputs)}; outputs {', '.join(outputs)}"
        )
    return 0
