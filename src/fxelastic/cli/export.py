"""The command ``fxelastic-export``, whose stage is not part of this release yet."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fxelastic.cli.options import HelpFormatter

_EPILOG = """\
example (once this stage is released):
  fxelastic-export torchvision.models:resnet50 bundle/

This release captures and partitions a model: see `fxelastic explain --help`."""


def export_main(argv: Sequence[str] | None = None) -> int:
    """Say that exporting is not available yet.

    Returns:
        1, or 0 for ``--help`` and 2 for a usage error.
    """
    parser = argparse.ArgumentParser(
        prog="fxelastic-export",
        description="Write a model and its branches as a bundle. Not available in this release.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="package.module:name or path/file.py:name")
    parser.add_argument("out", metavar="OUT", help="folder to write")
    try:
        parser.parse_args(argv)
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else 2
    print(
        "fxelastic-export: error: exporting a bundle is not available in this release; "
        "nothing was written. What there is: fxelastic explain, fxelastic check",
        file=sys.stderr,
    )
    return 1
