"""``fxelastic specialise``: train one subnet end to end, and write it in every form."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxelastic.cli import options
from fxelastic.cli.int8 import add_int8, check_int8_options, int8_of
from fxelastic.cli.options import DEFAULT_FUSION, DEFAULT_GAMMA, HelpFormatter
from fxelastic.cli.supernet import add_expansion, expanded, model_of, supernet_of
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

if TYPE_CHECKING:
    from torch import fx

    from fxelastic.edge.bundle import Bundle
    from fxelastic.ir.supernet import Supernet
    from fxelastic.spec import Arch
    from fxelastic.train import History

SCHEMA = "fxelastic.specialise/1"

_LOSSES = ("soft_cross_entropy", "alpha_divergence", "normalised_error")

_DESCRIPTION = """\
Train one subnet of a model end to end, its copies of the model's own blocks included, by
distillation from the model. OUT then holds model.safetensors, model.onnx, and a bundle whose
original is the specialised subnet. The same command resumes an interrupted run."""

_EPILOG = """\
examples:
  fxelastic specialise my_model.py:build --supernet-weights trained/supernet.safetensors \\
    --arch original@0,merged@1-4,original@4 --data images.npz --out specialised/
  fxelastic specialise my_model.py:build --arch original --data images.npz --out specialised/ \\
    --fixed-batch 1 --int8 --calibration inputs.npz

fxelastic search prints the subnets that a device prefers, and fxelastic inspect the ids of
all branches. With --int8, OUT/model.int8.onnx computes in 8 bits where it can, and
OUT/model.int8-reduced.onnx does so on x86 processors without VNNI.

exit codes: 0 success, 1 failure, 2 usage error, 130 interrupted"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser(
        "specialise",
        help="train one subnet end to end, as a module, an ONNX file and a bundle",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    options.add_model(parser, gamma=f"{DEFAULT_GAMMA:g}", fusion=DEFAULT_FUSION)
    add_expansion(parser)
    parser.add_argument(
        "--arch",
        metavar="ARCH",
        required=True,
        help="ids of the subnet's branches with commas between them, or the word original for the "
        "model itself",
    )
    add_data(parser)
    add_number(parser, "--epochs", options.at_least(1), 10, "epochs of training")
    parser.add_argument(
        "--lr",
        type=rate,
        metavar="RATE",
        default="auto",
        help="peak learning rate; auto tries several for a few steps each (default: auto)",
    )
    parser.add_argument(
        "--loss",
        metavar="LOSS",
        help="package.module:name or path/file.py:name of a function of (result, target) for "
        "batches with targets (default: cross-entropy)",
    )
    parser.add_argument(
        "--soft-loss",
        metavar="NAME",
        choices=_LOSSES,
        default=_LOSSES[0],
        help=f"distance from the model's result: {', '.join(_LOSSES)} (default: {_LOSSES[0]})",
    )
    add_number(parser, "--soft", float, 0.5, "share of that distance; 1 without targets")
    add_number(parser, "--features", float, 1.0, "weight of the errors of features at the cuts")
    parser.add_argument(
        "--fixed-batch",
        type=options.at_least(1),
        metavar="N",
        help="write files for batches of N samples only",
    )
    parser.add_argument(
        "--no-bundle", action="store_true", help="write no bundle, only the module and ONNX files"
    )
    add_int8(parser)
    add_training(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0; raises an error on failure.
    """
    check_int8_options(args)
    from fxelastic.spec.only_writer import only_writer

    with contextlib.redirect_stdout(sys.stderr), processes(args, "specialise") as first:
        quiet = args.quiet or not first
        args = argparse.Namespace(**{**vars(args), "quiet": quiet})
        with only_writer(args.out if first else None):
            supernet, arch, module, history = _train(args, first)
            written = _write(args, supernet, arch, module) if first else {}
    if first and args.json:
        report = {
            "schema": SCHEMA,
            "model": supernet.partition.model_name,
            "arch": str(arch),
            "n_params": sum(parameter.numel() for parameter in module.parameters()),
            **written,
            "stage": dataclasses.asdict(history),
        }
        print(json.dumps(report, indent=2))
    elif first:
        refused = written.pop("int8_refused", {})
        lines = [f"specialised {arch}", "", *str(history).splitlines(), ""]
        lines += [f"  {name} stays in float: {reason}" for name, reason in refused.items()]
        print("\n".join([*lines, *(f"wrote {path}" for path in written.values() if path)]))
    return 0


def _train(args: argparse.Namespace, first: bool) -> tuple[Supernet, Arch, fx.GraphModule, History]:
    from fxelastic.cli.reference import load_reference
    from fxelastic.spec import Arch
    from fxelastic.specialising import specialised
    from fxelastic.train import EndToEnd, cross_entropy
    from fxelastic.train.losses import soft_loss_of

    out = out_folder(args)
    load = functools.cache(functools.partial(model_of, args))
    loss = cross_entropy if args.loss is None else load_reference(args.loss, "--loss")
    objective = EndToEnd(loss, soft_loss_of(args.soft_loss), args.soft, args.features)
    loaders, args = data_of(args, load)
    supernet = supernet_of(args, load())
    arch = supernet.space.original if args.arch == "original" else Arch.parse(args.arch)
    training, validation = batches_of(loaders, supernet)
    move(supernet, args.device)
    keep_to_data(args.data, out, first)
    options.progress(args, f"training {len(arch)} branches: {args.epochs} epochs")
    chosen = {**training_of(args, validation), "epochs": args.epochs, "lr": args.lr}
    module, history = specialised(supernet, arch, training, objective, chosen)
    supernet.to("cpu")
    return supernet, arch, module.cpu(), history


def _write(
    args: argparse.Namespace, supernet: Supernet, arch: Arch, module: fx.GraphModule
) -> dict[str, Any]:
    """Write the module in every form; returns the paths."""
    import safetensors.torch

    import fxelastic
    from fxelastic import edge
    from fxelastic.files import replace_file
    from fxelastic.spec.quantised import REDUCED

    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    weights, onnx, bundle = out / "model.safetensors", out / "model.onnx", out / "bundle"
    # A copy each: safetensors refuses tensors that share memory.
    state = {name: value.contiguous().clone() for name, value in module.state_dict().items()}
    replace_file(weights, safetensors.torch.save(state, {"arch": str(arch)}))
    options.progress(args, "capturing the specialised subnet")
    example = ((), example_of(supernet, arch, args.fixed_batch))
    batched = args.batched if args.fixed_batch is None else ()
    changes = {"kinds": ()} if args.no_bundle else {}
    elastic = expanded(args, module, example, batched=batched, **changes)
    with tempfile.TemporaryDirectory() as name:
        target = Path(name) / "bundle" if args.no_bundle else bundle
        found = fxelastic.export(
            elastic,
            target,
            force=True,
            seed=args.seed,
            # The captured subnet doesn't know the samples of a batch that can't vary.
            quantise=int8_of(args, supernet, args.fixed_batch),
            progress=lambda message: options.progress(args, message),
        )
        edge.assemble(found, found.space.original, onnx)
        written: dict[str, Any] = {
            "weights": str(weights),
            "onnx": str(onnx),
            "bundle": None if args.no_bundle else str(bundle),
        }
        if args.int8:
            quantised, written["int8_refused"] = in_8_bits(found)
            written["int8_onnx"] = str(out / "model.int8.onnx")
            edge.assemble(found, quantised, out / "model.int8.onnx")
            reduced, _ = in_8_bits(found, REDUCED)
            written["int8_reduced_onnx"] = None
            if reduced != found.space.original:
                written["int8_reduced_onnx"] = str(out / "model.int8-reduced.onnx")
                edge.assemble(found, reduced, out / "model.int8-reduced.onnx")
    return written


def example_of(supernet: Supernet, arch: Arch, batch: int | None) -> Any:
    """Arguments for a specialised subnet, by name.

    Args:
        supernet: The supernet.
        arch: The subnet, which may keep a part of the caches.
        batch: The number of samples; the example's where None.
    """
    from fxelastic.backends.onnxruntime.teacher import batch_size, make_inputs
    from fxelastic.ir import trees
    from fxelastic.ir.branch import cut_cache

    partition = supernet.partition
    values = make_inputs(partition, batch or batch_size(partition), 0, own=True)
    for part in supernet.space.cache_of(arch):
        values[part.past] = cut_cache(values[part.past], part)
    leaves = [values[name] for name in partition.signature.inputs]
    return trees.unflatten(partition.signature.arguments, leaves)


def in_8_bits(bundle: Bundle, ending: str = "") -> tuple[Arch, dict[str, str]]:
    """The original in 8 bits where it can be, and why the other blocks can't.

    The format is the first of `FORMATS` that a block has.

    Args:
        bundle: The bundle of the original.
        ending: What is appended to each format: nothing, or `REDUCED`.
    """
    from fxelastic.spec import Arch
    from fxelastic.spec.quantised import FORMATS, int8_id

    quantisation = bundle.manifest.int8
    reasons = {} if quantisation is None else dict(quantisation.refused)
    chosen, refused = [], {}
    for name in bundle.space.original:
        ids = [int8_id(name, format + ending) for format in FORMATS]
        made = [id for id in ids if id in bundle.space.by_id]
        chosen.append(made[0] if made else name)
        if not made:
            given = (reasons[key] for key in (name, *ids) if key in reasons)
            refused[name] = next(given, "it has no operator that computes in 8 bits")
    return Arch(tuple(chosen)), refused
