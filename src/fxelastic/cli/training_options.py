"""What the commands that train share: their options, data, device and processes."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxelastic.cli import options
from fxelastic.cli.data_paths import digest_of, is_data_file
from fxelastic.cli.model_inputs import ModelInputs, check_data, example_texts
from fxelastic.errors import UsageError
from fxelastic.files import replace_file

if TYPE_CHECKING:
    import torch

    from fxelastic.cli.training_data import TrainingData
    from fxelastic.edge.searching.columns import SampleShapes
    from fxelastic.ir.partition import Partition
    from fxelastic.ir.supernet import Supernet


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add ``--data`` and ``--out``."""
    parser.add_argument(
        "--data",
        metavar="DATA",
        required=True,
        help="an .npz file with the arrays x and y, and val_x and val_y to validate on; a folder "
        "of images class/name.jpg; an .npy file, a table of numbers as .csv, or a data set of "
        "Hugging Face on disk; or package.module:name or path/file.py:name of a loader, a pair "
        "(training, validation), or a function that returns one of these",
    )
    parser.add_argument(
        "--out", metavar="FOLDER", required=True, help="folder for weights, checkpoints and log"
    )


def add_training(parser: argparse.ArgumentParser) -> None:
    """Add the options of all training."""
    add_number(parser, "--batch-size", options.at_least(1), 64, "samples in a batch, for files")
    add_number(parser, "--accumulate", options.at_least(1), 1, "batches accumulated in a step")
    add_number(parser, "--seed", int, 0, "seed of all random choices")
    parser.add_argument(
        "--precision",
        metavar="NAME",
        choices=("fp32", "bf16", "fp16"),
        default="fp32",
        help="bf16 or fp16 for mixed precision, or fp32 (default: fp32)",
    )
    parser.add_argument(
        "--device", metavar="DEVICE", default="cpu", help="device, such as cuda (default: cpu)"
    )
    parser.add_argument("--compile", action="store_true", help="use torch.compile")
    parser.add_argument(
        "--checkpoint-every",
        type=options.at_least(1),
        metavar="STEPS",
        help="steps between checkpoints (default: at the end of each epoch)",
    )
    parser.add_argument(
        "--distributed", action="store_true", help="train with the other processes of torchrun"
    )
    options.add_torch_threads(
        parser, "the number with the fastest steps, found by trying, at most one for each core"
    )
    options.add_output(parser)


def add_number(
    parser: argparse.ArgumentParser,
    name: str,
    kind: Callable[[str], Any],
    default: float,
    help: str,
) -> None:
    """Add an option with a number."""
    metavar = {"--seed": "SEED", "--soft": "SHARE", "--features": "WEIGHT"}.get(
        name, "RATE" if kind is float else "N"
    )
    parser.add_argument(
        name, type=kind, metavar=metavar, default=default, help=f"{help} (default: {default:g})"
    )


def rate(text: str) -> float | str:
    """A learning rate, or ``auto``."""
    return text if text == "auto" else float(text)


def out_folder(args: argparse.Namespace) -> Path:
    """The folder of ``--out``.

    Raises:
        UsageError: It is a file.
    """
    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise UsageError(
            f"--out {out} is a file",
            expected="a folder, existing or new",
            got="a file",
            fix="choose another path",
        )
    return out


def data_of(
    args: argparse.Namespace, load: Callable[[], torch.nn.Module]
) -> tuple[TrainingData, argparse.Namespace]:
    """Read the data and compare it with the model, before any work.

    Args:
        args: The options of a command that trains.
        load: Returns the model; always the same.

    Returns:
        The data, and options with an example input of the data's shapes if none was given.

    Raises:
        UsageError: The data can't be read, or the model can't be run on it.
    """
    from fxelastic.cli.training_data import load_data

    inputs = ModelInputs(load, args.example_input)
    data = load_data(args.data, args.batch_size, args.distributed, inputs)
    batch = data.first()
    if batch is None:
        return data, args
    labels = data.targets() if getattr(args, "loss", None) is None else None
    check_data(load(), batch[0], labels, args.data)
    texts = example_texts(*batch)
    if args.example_input or not texts:
        return data, args
    options.progress(args, f"input as in the data: {' '.join(texts)}")
    return data, argparse.Namespace(**{**vars(args), "example_input": texts})


def training_of(args: argparse.Namespace, validation: Any) -> dict[str, Any]:
    """Fields of `Training` from the options of `add_training`."""
    out = Path(args.out)
    return {
        "checkpoints": out / "checkpoints",
        "checkpoint_every": args.checkpoint_every,
        "log": out / "log.jsonl",
        "progress": not args.quiet,
        "accumulate": args.accumulate,
        "precision": args.precision,
        "compile": args.compile,
        "distributed": args.distributed,
        "seed": args.seed,
        "threads": args.threads,
        "validate": validation,
    }


def batches_of(loaders: Any, supernet: Supernet) -> tuple[Any, Any]:
    """The batches to train on and to validate on, from a result of `load_data`."""
    found: tuple[Any, Any] = loaders(_sample_shapes(supernet.partition))
    return found


def _sample_shapes(partition: Partition) -> SampleShapes:
    """The shapes of one sample of a captured model."""
    from torch import Tensor, fx

    from fxelastic.edge.searching.columns import SampleShapes
    from fxelastic.ir.graph_symbols import named, shape_in_words

    def without(dims: tuple[int | str, ...], dim: int) -> tuple[int | str, ...]:
        return (*dims[:dim], *dims[dim + 1 :])

    inputs = {name: dims for name, _, dims in partition.input_checks.inputs}
    known = named(partition.symbols)
    outputs: Any = partition.output_node.args[0]
    values = (node.meta.get("val") if isinstance(node, fx.Node) else None for node in outputs)
    results = (shape_in_words(v, known) if isinstance(v, Tensor) else () for v in values)
    return SampleShapes(
        tuple(symbol.symbol.name for symbol in partition.symbols if not symbol.is_batch),
        {name: without(inputs[name], dim) for name, dim in partition.batch_dims.items()},
        {name: partition.batch_dims.get(name) for name in inputs},
        tuple(map(without, results, partition.result_dims)),
        next(iter(partition.result_dims), 0),
    )


def keep_to_data(data: str, out: Path, first: bool) -> None:
    """Check that a run is resumed with the data that it was started with.

    Only files are compared, because the loaders of a reference may be random or endless.
    """
    if not is_data_file(data):
        return
    record = out / "data.sha256"
    found = digest_of(Path(data))
    begun = any((out / "checkpoints").glob("*"))
    known = record.read_text().strip() if begun and record.is_file() else found
    if known != found:
        raise UsageError(
            f"the run in {out} was started with other data",
            expected=f"the same file as before, of sha256 {known[:16]}…",
            got=f"{data}, of sha256 {found[:16]}…",
            fix="choose another --out, or delete the folder to start from scratch",
        )
    if first:
        out.mkdir(parents=True, exist_ok=True)
        replace_file(record, f"{found}\n".encode())


def move(supernet: Supernet, device: str) -> None:
    """Move a supernet to the device of ``--device``.

    Raises:
        UsageError: It can't be used.
    """
    try:
        supernet.to(device)
    except (RuntimeError, AssertionError) as e:  # Devices raise different errors.
        raise UsageError(
            f"--device {device} can't be used",
            expected="a device of this machine, such as cpu or cuda",
            got=f"{type(e).__name__}: {str(e).splitlines()[0]}",
        ) from e


@contextlib.contextmanager
def processes(args: argparse.Namespace, command: str) -> Any:
    """The process group that ``torchrun`` describes; yields whether this process is the first."""
    if not args.distributed:
        yield True
        return
    from torch import distributed as dist

    from fxelastic import processes  # noqa: F401 - first: see there

    try:
        dist.init_process_group("nccl" if args.device.startswith("cuda") else "gloo")
    except (ValueError, RuntimeError) as e:
        raise UsageError(
            "--distributed found no other processes",
            expected="to be started by torchrun",
            got=str(e).splitlines()[0],
            fix=f"torchrun --nproc-per-node N -m fxelastic.cli {command} … --distributed",
        ) from e
    try:
        yield dist.get_rank() == 0
    finally:
        dist.destroy_process_group()
