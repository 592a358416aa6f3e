"""``fxelastic verify``: check who made a bundle, and that no file has changed."""

from __future__ import annotations

import argparse
import json
from typing import Any

from fxelastic.cli import options
from fxelastic.cli.options import HelpFormatter

SCHEMA = "fxelastic.verify/1"

_DESCRIPTION = """\
Check that a bundle is signed by one of some public keys, and that all of its files
are those that were signed. Needs the extra sign, no torch and no network."""

_EPILOG = """\
examples:
  fxelastic verify bundle/ --key key.pub
  fxelastic verify bundle/ --key key.pub --subset

exit codes: 0 success, 1 the bundle is damaged or not signed as required, 2 usage error"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser(
        "verify",
        help="check a bundle's signature and files",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="the folder of a bundle")
    parser.add_argument(
        "--key",
        metavar="FILE",
        action="append",
        required=True,
        help="a public ed25519 key, PEM; may be repeated: one of them must have signed",
    )
    parser.add_argument(
        "--least-counter",
        metavar="N",
        type=int,
        default=0,
        help="refuse a lower counter, even if none was accepted here before (default: 0)",
    )
    parser.add_argument(
        "--subset",
        action="store_true",
        help="verify the files that are there, and list the missing ones",
    )
    options.add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0; raises an error on failure.
    """
    from fxelastic import edge

    bundle = edge.load(
        args.bundle,
        trusted_keys=args.key,
        least_counter=args.least_counter,
        subset=args.subset,
    )
    n_files = len(bundle.files) - len(bundle.missing)
    options.progress(args, f"verifying {n_files} files")
    bundle.verify()
    signature = bundle.signature
    assert signature is not None
    missing = sorted(bundle.missing)
    if args.json:
        report = {
            "schema": SCHEMA,
            "bundle": args.bundle,
            **signature.to_json(),
            "files_verified": n_files,
            "missing": missing,
        }
        print(json.dumps(report, indent=2))
    else:
        print(f"{args.bundle}: {signature}")
        print(f"{n_files} files verified" + (f", {len(missing)} missing" if missing else ""))
        for path in missing:
            print(f"missing  {path}")
    return 0
