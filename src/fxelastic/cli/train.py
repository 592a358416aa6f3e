"""``fxelastic train``: distil and tune the supernet of a model."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxelastic.cli import multi_stage, options
from fxelastic.cli.options import DEFAULT_FUSION, DEFAULT_GAMMA, HelpFormatter
from fxelastic.cli.supernet import add_expansion, model_of, supernet_of
from fxelastic.edge.digests import digest
from fxelastic.errors import UsageError
from fxelastic.files import replace_file
from fxelastic.spec.only_writer import only_writer

if TYPE_CHECKING:
    from fxelastic.ir.supernet import Supernet
    from fxelastic.train import History

SCHEMA = "fxelastic.train/1"

_SAMPLING = ("uniform", "bucketed", "sandwich", "attentive")

_DESCRIPTION = """\
Expand a model and train its new branches: first to compute the outputs of the blocks
that they replace, then on the task. The model itself never changes. With --stages, train
a model that is not trained yet, from one early exit to the next. The same command resumes
an interrupted run."""

_EPILOG = """\
examples:
  fxelastic train my_model.py:build --data images.npz --out trained/
  fxelastic train my_model.py:build --data my_data.py:loaders --out trained/ --tune-epochs 20
  fxelastic train my_model.py:build --data images.npz --out trained/ --stages auto --stage-epochs 2
  torchrun --nproc-per-node 2 -m fxelastic.cli train my_model.py:build --data images.npz \\
    --out trained/ --distributed

exit codes: 0 success, 1 failure, 2 usage error, 130 interrupted"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser(
        "train",
        help="train the new branches of a model's supernet",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    options.add_model(parser, gamma=f"{DEFAULT_GAMMA:g}", fusion=DEFAULT_FUSION)
    add_expansion(parser)
    parser.add_argument(
        "--data",
        metavar="DATA",
        required=True,
        help="an .npz file with the arrays x and y, and val_x and val_y to validate on; or "
        "package.module:name or path/file.py:name of a loader, a pair (training, validation), "
        "or a function that returns one of these",
    )
    parser.add_argument(
        "--out", metavar="FOLDER", required=True, help="folder for weights, checkpoints and log"
    )
    multi_stage.add_options(parser)
    _number(parser, "--distill-epochs", int, 5, "epochs of distillation; 0 to skip it")
    _number(parser, "--tune-epochs", int, 10, "epochs of tuning; 0 to skip it")
    for stage, name in (("distill", "distillation"), ("tune", "tuning")):
        parser.add_argument(
            f"--{stage}-lr",
            type=_rate,
            metavar="RATE",
            default="auto",
            help=f"peak learning rate of {name}; auto tries several for a few steps each "
            "(default: auto)",
        )
    parser.add_argument(
        "--mode",
        metavar="MODE",
        choices=("teacher_forced", "chained"),
        default="teacher_forced",
        help="how to distil: teacher_forced trains each branch alone, chained trains the branches "
        "of sampled subnets together (default: teacher_forced)",
    )
    parser.add_argument(
        "--sampling",
        metavar="POLICY",
        choices=_SAMPLING,
        default="uniform",
        help="how subnets are sampled in tuning: uniform, bucketed by FLOPs, sandwich, or "
        "attentive, which prefers those most promising after distillation (default: uniform)",
    )
    parser.add_argument(
        "--loss",
        metavar="LOSS",
        help="package.module:name or path/file.py:name of a function of (result, target) for "
        "tuning and for --stages (default: cross-entropy; in tuning without targets, the distance "
        "from the original)",
    )
    _number(parser, "--soft", float, 0.0, "weight of the original's outputs in the tuning loss")
    _number(parser, "--batch-size", int, 64, "samples in a batch, for an .npz file")
    _number(parser, "--accumulate", int, 1, "batches accumulated in a step")
    _number(parser, "--seed", int, 0, "seed of all random choices")
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
        type=int,
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
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0; raises an error on failure.
    """
    for name in ("distill_epochs", "tune_epochs"):
        if getattr(args, name) < 0:
            raise UsageError(
                f"--{name.replace('_', '-')} must be at least 0",
                expected="an integer of at least 0",
                got=str(getattr(args, name)),
            )
    with contextlib.redirect_stdout(sys.stderr), _processes(args) as first:
        quiet = args.quiet or not first
        args = argparse.Namespace(**{**vars(args), "quiet": quiet})
        with only_writer(args.out if first else None):
            supernet, histories = _train(args, first)
    if first and args.json:
        print(json.dumps(_report(supernet, histories, _written(args)), indent=2))
    elif first:
        print("\n".join(_text(supernet, histories, _written(args))))
    return 0


def _weights(args: argparse.Namespace) -> Path:
    return Path(args.out) / "supernet.safetensors"


def _written(args: argparse.Namespace) -> list[Path]:
    """The files of weights that a run writes."""
    own = [] if args.stages is None else [Path(args.out) / multi_stage.MODEL_WEIGHTS]
    return [_weights(args), *own]


def _train(args: argparse.Namespace, first: bool) -> tuple[Supernet, list[History]]:
    from fxelastic.cli.reference import load_reference
    from fxelastic.cli.training_data import load_data

    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise UsageError(
            f"--out {out} is a file",
            expected="a folder, existing or new",
            got="a file",
            fix="choose another path",
        )
    loaders = load_data(args.data, args.batch_size, args.distributed)
    loss = None if args.loss is None else load_reference(args.loss, "--loss")
    staged = args.stages is not None
    args = multi_stage.checked(args) if staged else args
    model = model_of(args)
    supernet = supernet_of(args, model)
    partition = supernet.partition
    dims = {name: partition.batch_dims.get(name) for name in partition.signature.names}
    training, validation = loaders(dims, next(iter(partition.result_dims), 0))
    _move(supernet, args.device)
    _keep_to_data(args.data, out, first)
    common: dict[str, Any] = {
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
    if staged:
        supernet, histories = multi_stage.train(args, supernet, training, common, loss)
    else:
        histories = _stages(args, supernet, training, common, loss)
    if first:
        out.mkdir(parents=True, exist_ok=True)
        supernet.save(_weights(args))
        if staged:
            multi_stage.save(supernet, model, out)
    return supernet, histories


def _keep_to_data(data: str, out: Path, first: bool) -> None:
    """Check that a run is resumed with the data that it was started with.

    Only files are compared, because the loaders of a reference may be random or endless.
    """
    if not data.endswith(".npz"):
        return
    record = out / "data.sha256"
    found = digest(Path(data))
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


def _stages(
    args: argparse.Namespace,
    supernet: Supernet,
    training: Any,
    common: dict[str, Any],
    loss: Any,
) -> list[History]:
    import fxelastic

    histories = []
    if args.distill_epochs:
        options.progress(args, f"distilling: {args.distill_epochs} epochs")
        histories.append(
            fxelastic.distill(
                supernet,
                training,
                mode=args.mode,
                epochs=args.distill_epochs,
                lr=args.distill_lr,
                **common,
            )
        )
    if args.tune_epochs:
        options.progress(args, f"tuning: {args.tune_epochs} epochs")
        chosen = {} if loss is None else {"loss": loss}
        histories.append(
            fxelastic.tune(
                supernet,
                training,
                sampling=_sampling(args.sampling, histories),
                soft=args.soft,
                epochs=args.tune_epochs,
                lr=args.tune_lr,
                **chosen,
                **common,
            )
        )
    return histories


def _sampling(name: str, histories: list[History]) -> Any:
    from fxelastic.train import Attentive, Bucketed, Sandwich, Uniform

    if name != "attentive":
        return {"uniform": Uniform, "bucketed": Bucketed, "sandwich": Sandwich}[name]()
    report = histories[0].held_out if histories else None
    if report is None:
        raise UsageError(
            "--sampling attentive needs the errors of the branches",
            expected="at least one epoch of distillation before tuning",
            got="--distill-epochs 0",
            fix="distil first, or choose another sampling",
        )
    return Attentive(report.best)


def _text(supernet: Supernet, histories: list[History], paths: list[Path]) -> list[str]:
    text = [f"Supernet of {supernet.partition.model_name}: {supernet.space}"]
    for history in histories:
        text += ["", *str(history).splitlines()]
        text += [f"  resumed at step {history.resumed_at}"] if history.resumed_at else []
        text += [f"  refused {reason}" for reason in history.refused]
    return [*text, "", *(f"wrote {found}" for found in paths)]


def _report(supernet: Supernet, histories: list[History], paths: list[Path]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "model": supernet.partition.model_name,
        "weights": str(paths[0]),
        "model_weights": str(paths[1]) if len(paths) > 1 else None,
        "n_branches": len(supernet.branches),
        "n_subnets": supernet.space.count(),
        "stages": [dataclasses.asdict(history) for history in histories],
    }


def _move(supernet: Supernet, device: str) -> None:
    try:
        supernet.to(device)
    except (RuntimeError, AssertionError) as e:  # Devices raise different errors.
        raise UsageError(
            f"--device {device} can't be used",
            expected="a device of this machine, such as cpu or cuda",
            got=f"{type(e).__name__}: {str(e).splitlines()[0]}",
        ) from e


@contextlib.contextmanager
def _processes(args: argparse.Namespace) -> Any:
    """The process group that ``torchrun`` describes; yields whether this process is the first."""
    if not args.distributed:
        yield True
        return
    from torch import distributed as dist

    from fxelastic.train import processes  # noqa: F401 - first: see there

    try:
        dist.init_process_group("nccl" if args.device.startswith("cuda") else "gloo")
    except (ValueError, RuntimeError) as e:
        raise UsageError(
            "--distributed found no other processes",
            expected="to be started by torchrun",
            got=str(e).splitlines()[0],
            fix="torchrun --nproc-per-node N -m fxelastic.cli train … --distributed",
        ) from e
    try:
        yield dist.get_rank() == 0
    finally:
        dist.destroy_process_group()


def _rate(text: str) -> float | str:
    return text if text == "auto" else float(text)


def _number(
    parser: argparse.ArgumentParser, name: str, kind: type, default: float, help: str
) -> None:
    metavar = {"--seed": "SEED", "--soft": "SHARE"}.get(name, "N" if kind is int else "RATE")
    parser.add_argument(
        name, type=kind, metavar=metavar, default=default, help=f"{help} (default: {default:g})"
    )
