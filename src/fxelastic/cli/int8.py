"""The options of ``fxelastic export`` for 8-bit branches."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fxelastic.cli.options import words
from fxelastic.cli.sample_batches import sample_batches
from fxelastic.errors import UsageError

if TYPE_CHECKING:
    from fxelastic.backends.onnxruntime.quantisation.options import Int8
    from fxelastic.ir.supernet import Supernet

# Samples of a batch of calibration data, if the model takes any number.
_BATCH_SIZE = 8


def add_int8(parser: argparse.ArgumentParser) -> None:
    """Add ``--int8``, ``--calibration`` and the options of 8-bit branches."""
    parser.add_argument(
        "--int8",
        action="store_true",
        help="also write branches that compute in 8 bits, of which the device uses those that are "
        "faster there; needs --calibration",
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help="typical inputs: an .npz file with an array for each input (or x), or a reference to "
        "batches or to a function that returns them",
    )
    parser.add_argument(
        "--int8-formats",
        metavar="NAME,…",
        type=words,
        help="some of u8s8, dynamic, s8s8 (default: all)",
    )
    parser.add_argument(
        "--int8-ranges",
        metavar="NAME",
        default="minmax",
        help="how to find the ranges of activations: minmax, entropy, percentile (default: minmax)",
    )


def check_int8_options(args: argparse.Namespace) -> None:
    """Check that ``--int8`` and ``--calibration`` come together.

    Raises:
        UsageError: One of them is missing.
    """
    if args.int8 != (args.calibration is not None):
        raise UsageError(
            "--int8 and --calibration belong together",
            expected="both of them, or neither",
            got="--int8 alone" if args.int8 else "--calibration alone",
            fix="add " + ("--calibration inputs.npz" if args.int8 else "--int8"),
        )


def int8_of(
    args: argparse.Namespace, supernet: Supernet, batch_size: int | None = None
) -> Int8 | None:
    """What the options ask for; None without ``--int8``.

    Args:
        args: The options.
        supernet: What takes the calibration data.
        batch_size: The number of samples of each batch; None to choose it.

    Raises:
        UsageError: The calibration data can't be read or does not fit, or an option is unknown.
    """
    if not args.int8:
        return None
    from fxelastic.backends.onnxruntime.quantisation.options import Int8
    from fxelastic.cli.reference import describe, load_reference

    if args.calibration.endswith(".npz"):
        found = sample_batches(
            Path(args.calibration), supernet.partition, "--calibration", _BATCH_SIZE, batch_size
        )
        batches = [inputs for inputs, _ in found]
    else:
        batches = load_reference(args.calibration, "--calibration")
        if callable(batches):
            try:
                batches = batches()
            except (Exception, SystemExit) as e:
                raise UsageError(
                    f"--calibration {args.calibration} raised an error",
                    expected="a function without arguments that returns batches",
                    got=describe(e),
                    fix="correct it; --debug shows the traceback",
                ) from e
    formats = {} if args.int8_formats is None else {"formats": args.int8_formats}
    return Int8(batches, ranges=args.int8_ranges, **formats)
