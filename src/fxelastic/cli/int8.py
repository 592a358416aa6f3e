"""The options of ``fxelastic-export`` for 8-bit branches."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxelastic.cli.options import words
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


def int8_of(args: argparse.Namespace, supernet: Supernet) -> Int8 | None:
    """What the options ask for; None without ``--int8``.

    Raises:
        UsageError: The calibration data can't be read or does not fit, or an option is unknown.
    """
    if not args.int8:
        return None
    from fxelastic.backends.onnxruntime.quantisation.options import Int8
    from fxelastic.cli.reference import describe, load_reference

    if args.calibration.endswith(".npz"):
        batches = _from_file(Path(args.calibration), supernet)
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


def _from_file(path: Path, supernet: Supernet) -> list[Any]:
    """The samples of a file, in batches, by the names of the model's inputs."""
    import torch

    from fxelastic.backends.onnxruntime.teacher import batch_size
    from fxelastic.edge.npz_files import read_npz
    from fxelastic.ir import trees

    partition = supernet.partition
    names = list(partition.signature.names)
    arrays = read_npz(path)
    if len(names) == 1 and names[0] not in arrays and "x" in arrays:
        arrays[names[0]] = arrays["x"]
    arrays = {name: arrays[name] for name in names if name in arrays}
    if set(arrays) != set(names):
        raise UsageError(
            f"--calibration {path} does not have the model's inputs",
            expected="an array for each of " + ", ".join(names),
            got=", ".join(arrays) or "none of them",
        )
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    dims = partition.batch_dims
    sizes = {n: tensors[n].shape[d] if tensors[n].dim() > d else 0 for n, d in dims.items()}
    if len(set(sizes.values())) > 1 or not all(sizes.values()):
        raise UsageError(
            f"--calibration {path}: the arrays must have the same number of samples",
            expected="one entry in each array for each sample",
            got=", ".join(f"{name}: {size}" for name, size in sizes.items()),
        )
    n_samples = next(iter(sizes.values()), 1)
    size = min(_BATCH_SIZE, max(1, n_samples // 2))
    if not partition.dynamic_batch and dims:
        size = batch_size(partition)
    starts = range(0, n_samples - size + 1, size)
    return [
        trees.unflatten(
            partition.signature.arguments,
            [tensors[n].narrow(dims[n], i, size) if n in dims else tensors[n] for n in names],
        )
        for i in starts
    ]
