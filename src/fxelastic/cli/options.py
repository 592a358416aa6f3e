"""Options shared by several commands, and the partition that they describe."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxelastic.errors import UsageError

if TYPE_CHECKING:
    import torch

    from fxelastic.edge.bundle import Bundle
    from fxelastic.ir.partition import Partition

DEFAULT_GAMMA = 0.1
DEFAULT_FUSION = "onnxruntime"

# Fixed, since documents and tests show the help without a terminal.
_HELP_WIDTH = 88


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Formats help at a fixed width and keeps the line breaks of examples."""

    def __init__(self, prog: str) -> None:
        """Set the widths; ``prog`` is the command's name."""
        super().__init__(prog, max_help_position=26, width=_HELP_WIDTH)

    def add_argument(self, action: argparse.Action) -> None:
        """Add an argument; argparse leaves the indentation of commands out of their lengths."""
        super().add_argument(action)
        for command in self._iter_indented_subactions(action):
            length = len(self._format_action_invocation(command)) + self._current_indent
            self._action_max_length = max(self._action_max_length, length)


def add_model(parser: argparse.ArgumentParser, *, gamma: str, fusion: str) -> None:
    """Add MODEL and the options of its partition.

    Args:
        parser: The command's parser.
        gamma: Describes the default of ``--gamma``.
        fusion: Describes the default of ``--fusion``.
    """
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="package.module:name or path/file.py:name, where name is a function or class that "
        "returns a torch.nn.Module, or a module itself",
    )
    parser.add_argument(
        "--model-arg",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="keyword argument for MODEL, a Python literal or a string; may be repeated",
    )
    parser.add_argument(
        "--gamma",
        type=share,
        metavar="SHARE",
        help="largest share of the parameters that a block may have, above 0 and at most 1 "
        f"(default: {gamma})",
    )
    parser.add_argument(
        "--fusion",
        metavar="NAME",
        help="whose fused operators no cut may separate: onnxruntime, none, or an installed "
        f"backend (default: {fusion})",
    )
    parser.add_argument(
        "--example-input",
        metavar="INPUT",
        action="append",
        default=[],
        help="a shape (1x3x224x224), with a dtype (int64:1x16), as a keyword "
        "(input_ids=int64:1x16), repeated for several inputs; or package.module:name or "
        "path/file.py:name of example inputs or of a function that returns them "
        "(default: determined from the model)",
    )

    parser.add_argument(
        "--dynamic",
        metavar="SIZE",
        action="append",
        default=[],
        help="a size that may vary besides the batch: input_ids:1=seq or input_ids:1=seq[2..512]; "
        "repeated for several (default: all sizes but the batch are fixed)",
    )
    parser.add_argument(
        "--batched",
        type=words,
        metavar="NAME,…",
        help="the inputs whose first dimension is the batch (default: determined from the model)",
    )


def at_least(least: float, kind: type = int) -> Callable[[str], Any]:
    """The type of an option that is a number with a lower bound."""

    def number(text: str) -> Any:
        found = kind(text)
        if not found >= least:
            raise argparse.ArgumentTypeError(f"must be at least {least:g}, got {text}")
        return found

    # The parser names it if the text is not a number.
    number.__name__ = kind.__name__
    return number


def share(text: str) -> float:
    """The type of an option that is a share: above 0 and at most 1."""
    found = float(text)
    if not 0 < found <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, got {text}")
    return found


def words(text: str) -> tuple[str, ...]:
    """Split a comma-separated list of names."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def add_values(parser: argparse.ArgumentParser, *rows: tuple[str, str, Any, Any, str]) -> None:
    """Add options that take a value.

    Args:
        parser: The command's parser.
        rows: The flag, metavar, type, default and help of each option; the default is appended to
            the help.
    """
    for flag, metavar, kind, default, text in rows:
        shown = f"{default:g}" if isinstance(default, float) else default
        if default is not None:
            text = f"{text} (default: {shown})"
        parser.add_argument(flag, metavar=metavar, type=kind, default=default, help=text)


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """Add BUNDLE and ``--require-signature``, which `load_bundle` reads."""
    parser.add_argument("bundle", metavar="BUNDLE", help="the folder of a bundle")
    parser.add_argument(
        "--require-signature",
        metavar="KEY",
        action="append",
        default=[],
        help="refuse the bundle unless this public key signed it (fxelastic sign), a PEM file; "
        "may be repeated: one of them must have signed it",
    )


def load_bundle(args: argparse.Namespace) -> Bundle:
    """Open the bundle of `add_bundle`.

    Raises:
        UsageError: It does not exist, or a key is not usable.
        BundleError: It is damaged, or is not signed as required.
    """
    from fxelastic import edge

    return edge.load(args.bundle, trusted_keys=args.require_signature or None)


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``, ``--quiet`` and ``--debug``."""
    parser.add_argument("--json", action="store_true", help="print only JSON on stdout")
    parser.add_argument("--quiet", action="store_true", help="print no progress on stderr")
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")


def add_torch_threads(parser: argparse.ArgumentParser, default: str) -> None:
    """Add ``--threads`` for commands that compute with torch.

    Args:
        parser: The command's parser.
        default: Describes the default.
    """
    parser.add_argument(
        "--threads",
        metavar="N",
        type=at_least(1),
        help=f"threads to compute with (default: {default})",
    )


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add ``--threads`` for commands that compute with onnxruntime."""
    parser.add_argument(
        "--threads",
        metavar="N",
        type=at_least(0),
        default=0,
        help="threads to compute with (default: one for each core)",
    )


def add_score(parser: argparse.ArgumentParser, default: str) -> None:
    """Add ``--score`` and ``--held-out``.

    Args:
        parser: The command's parser.
        default: Describes the default of ``--score``.
    """
    parser.add_argument(
        "--score",
        metavar="NAME",
        help="top1, agreement, cosine, spearman, miou, negative_loss, or package.module:name or "
        "path/file.py:name of a function of the flat results and the targets of a batch that "
        "returns a sum and a count; cosine:RESULT for one of several results "
        f"(default: {default})",
    )
    parser.add_argument(
        "--held-out",
        metavar="SHARE",
        type=float,
        default=0.2,
        help="share of the samples held out from all choices (default: 0.2)",
    )


def score(name: str | None) -> Any:
    """The score that ``--score`` names, or None if it is not given."""
    from fxelastic.edge.searching.scores import METRICS

    if name is None or ":" not in name or name.partition(":")[0] in METRICS:
        return name
    from fxelastic.cli.reference import load_reference

    return load_reference(name, "--score")


def beside(bundle: str, kind: str) -> Path:
    """The default path of a file about a bundle, next to the bundle's folder."""
    folder = Path(bundle)
    resolved = folder.resolve()
    named = folder.name not in ("", "..")
    named_folder = folder if named else resolved
    return named_folder.with_name(f"{named_folder.name}.{kind}.json")


def check_written(out: Path, bundle: Bundle) -> None:
    """Check, even with ``--force``, that a file to write is no folder and not in the bundle.

    Raises:
        UsageError: It is.
    """
    path = out.resolve()
    if bundle.path.resolve() in (path, *path.parents):
        raise UsageError(
            f"{out} would change the bundle",
            expected="a path outside of the bundle's folder",
            got=f"a path in {bundle.path}",
            fix="choose another path",
        )
    if out.is_dir():
        raise UsageError(
            f"{out} is a folder",
            expected="a file to write",
            got="a folder",
            fix="choose another path",
        )


def megabytes(number: float | None) -> int | None:
    """Convert an option in MB to bytes; None means no limit.

    Raises:
        UsageError: The number is not above 0.
    """
    if number is None:
        return None
    if not 0 < number < 2**40:
        raise UsageError(f"a size in MB must be above 0 and below {2**40}, got {number!r}")
    return int(number * 2**20)


def progress(args: argparse.Namespace, message: str) -> None:
    """Print a progress message on stderr, unless ``--quiet`` is given."""
    if not args.quiet:
        print(f"fxelastic: {message}", file=sys.stderr, flush=True)


def partition_of(args: argparse.Namespace, gamma: float, fusion: str) -> Partition:
    """Load the model that the arguments name and partition it.

    The output of the model's code goes to stderr; stdout has only the output of the command.

    Args:
        args: With ``model``, ``model_arg``, ``example_input``, ``batched``, ``dynamic`` and
            ``quiet``.
        gamma: Largest share of P0 in a block.
        fusion: Name of the fusion rules.

    Raises:
        UsageError: An argument does not name a usable object.
        CaptureError: The model can't be captured.
        PartitionError: The model can't be partitioned.
    """
    with contextlib.redirect_stdout(sys.stderr):
        progress(args, f"loading {args.model}")
        from fxelastic.cli.dynamic_sizes import load_dynamic_shapes
        from fxelastic.cli.example_inputs import load_example_inputs
        from fxelastic.cli.model import load_model

        model = load_model(args.model, args.model_arg)
        example_inputs: Any = load_example_inputs(args.example_input)
        import fxelastic

        size = sum(parameter.numel() for parameter in model.parameters())
        progress(args, f"partitioning {type(model).__name__} ({size:,} parameters)")
        start = time.perf_counter()
        partition = fxelastic.partition(
            model,
            gamma=gamma,
            example_inputs=example_inputs,
            batched=args.batched,
            dynamic_shapes=load_dynamic_shapes(args.dynamic),
            fusion=fusion,
        )
        progress(args, f"{len(partition.blocks)} blocks after {time.perf_counter() - start:.1f} s")
        say_inputs(args, model, partition)
    for warning in partition.warnings:
        print(f"fxelastic: warning: {warning}", file=sys.stderr)
    return partition


def say_inputs(args: argparse.Namespace, model: torch.nn.Module, partition: Partition) -> None:
    """Say where a model's input comes from, if no option gives it.

    Args:
        args: With ``example_input`` and ``quiet``.
        model: The model.
        partition: What it was captured as.
    """
    if args.example_input:
        return
    from fxelastic.passes.arguments import declares_inputs

    shapes = ", ".join("x".join(map(str, value.shape)) for value in partition.example)
    if declares_inputs(model):
        progress(args, f"input as the model declares it: {shapes}")
    else:
        progress(args, f"input guessed: {shapes}; pass --example-input")
