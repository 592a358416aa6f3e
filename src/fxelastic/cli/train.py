"""``fxelastic train``: distil and tune the supernet of a model."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxelastic.cli import multi_stage, options
from fxelastic.cli.options import DEFAULT_FUSION, DEFAULT_GAMMA, HelpFormatter
from fxelastic.cli.supernet import add_expansion, model_of, supernet_of
from fxelastic.cli.training_options import (
    add_data,
    add_number,
    add_training,
    batches_of,
    data_of,
    keep_to_data,
    move,
    out_folder,
    processes,
    rate,
    training_of,
)
from fxelastic.errors import UsageError

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
    add_data(parser)
    multi_stage.add_options(parser)
    add_number(
        parser, "--distill-epochs", options.at_least(0), 5, "epochs of distillation; 0 to skip it"
    )
    add_number(parser, "--tune-epochs", options.at_least(0), 10, "epochs of tuning; 0 to skip it")
    for stage, name in (("distill", "distillation"), ("tune", "tuning")):
        parser.add_argument(
            f"--{stage}-lr",
            type=rate,
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
    add_number(parser, "--soft", float, 0.0, "weight of the original's outputs in the tuning loss")
    add_training(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0; raises an error on failure.
    """
    from fxelastic.spec.only_writer import only_writer

    with contextlib.redirect_stdout(sys.stderr), processes(args, "train") as first:
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

    out = out_folder(args)
    loss = None if args.loss is None else load_reference(args.loss, "--loss")
    staged = args.stages is not None
    args = multi_stage.checked(args) if staged else args
    load = functools.cache(functools.partial(model_of, args))
    loaders, args = data_of(args, load)
    model = load()
    supernet = supernet_of(args, model)
    training, validation = batches_of(loaders, supernet)
    move(supernet, args.device)
    keep_to_data(args.data, out, first)
    common = training_of(args, validation)
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
