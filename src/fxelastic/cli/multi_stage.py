"""``fxelastic train --stages``: train a model that is not trained yet, exit by exit."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxelastic.cli import options
from fxelastic.cli.options import words
from fxelastic.errors import UsageError
from fxelastic.files import replace_file

if TYPE_CHECKING:
    from torch import nn

    from fxelastic.ir.supernet import Supernet
    from fxelastic.train import History

#: The file of the trained model's own weights, which ``--weights`` takes.
MODEL_WEIGHTS = "model.safetensors"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of multi-stage training."""
    parser.add_argument(
        "--stages",
        metavar="EXITS",
        help="train MODEL itself, in stages that end at early exits, instead of new branches: the "
        "numbers of blocks before each exit, e.g. 3,5, or auto for a quarter, half and three "
        "quarters of the FLOPs",
    )
    parser.add_argument(
        "--update",
        metavar="NAME",
        choices=("freeze", "finetune"),
        default="freeze",
        help="what a stage of --stages does with the blocks before it: freeze or finetune "
        "(default: freeze)",
    )
    parser.add_argument(
        "--until",
        type=_numbers,
        metavar="SCORE,…",
        help="end a stage of --stages when its exit's accuracy on the validation data reaches "
        "this value; one value, or one for each stage",
    )
    parser.add_argument(
        "--stage-epochs",
        type=options.at_least(1),
        metavar="N",
        default=10,
        help="most epochs of a stage of --stages (default: 10)",
    )
    parser.add_argument(
        "--stage-lr",
        type=float,
        metavar="RATE",
        default=1e-3,
        help="peak learning rate of --stages (default: 0.001)",
    )
    parser.add_argument(
        "--cache-bytes",
        type=options.at_least(0),
        metavar="BYTES",
        default=2 * 2**30,
        help="most bytes on disk for what frozen blocks compute, with --stages; 0 to compute it "
        "in each epoch (default: 2 GiB)",
    )


def checked(args: argparse.Namespace) -> argparse.Namespace:
    """The arguments with exits as the only kind of branches.

    Raises:
        UsageError: An option describes other branches.
    """
    given = [
        f"--{name.replace('_', '-')}"
        for name in ("kinds", "kind", "max_size", "spans", "prune", "supernet_weights")
        if getattr(args, name)
    ]
    if given:
        raise UsageError(
            f"{given[0]} has no meaning with --stages",
            expected="exits alone: train the model first, then its branches",
            got=", ".join(given),
            fix=f"run again without --stages and with --weights OUT/{MODEL_WEIGHTS}",
        )
    kind = "exit" if args.stages == "auto" else f"exit:at={args.stages}"
    return argparse.Namespace(**{**vars(args), "kind": [kind]})


def train(
    args: argparse.Namespace, supernet: Supernet, loader: Any, common: dict[str, Any], loss: Any
) -> tuple[Supernet, list[History]]:
    """Train the exits of a supernet and what is before them.

    Args:
        args: The arguments.
        supernet: The originals and the exits.
        loader: The data.
        common: Options of all stages.
        loss: The loss; cross-entropy where None.

    Returns:
        The trained supernet, and what each stage did.
    """
    from fxelastic.multi_stage import train_exits
    from fxelastic.train import Callback

    histories: list[History] = []

    class Histories(Callback):
        def on_end(self, history: History | None) -> None:
            if history is not None:
                histories.append(history)

    options.progress(args, f"training in stages: at most {args.stage_epochs} epochs each")
    until = args.until
    trained = train_exits(
        supernet,
        loader,
        strict=args.stages != "auto",
        update=args.update,
        until=until[0] if until is not None and len(until) == 1 else until,
        epochs=args.stage_epochs,
        lr=args.stage_lr,
        cache_bytes=args.cache_bytes,
        callbacks=(Histories(),),
        **({} if loss is None else {"loss": loss}),
        **common,
    )
    return trained, histories


def save(supernet: Supernet, model: nn.Module, folder: Path) -> None:
    """Write the trained weights by the names of the model."""
    import safetensors.torch

    from fxelastic.multi_stage import trained_state

    state = {name: value.contiguous() for name, value in trained_state(supernet, model).items()}
    replace_file(folder / MODEL_WEIGHTS, safetensors.torch.save(state))


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in words(text))


# argparse names the type in its message.
_numbers.__name__ = "scores"
