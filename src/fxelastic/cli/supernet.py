"""Options for building a supernet, and the supernet that they describe."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxelastic.cli.options import DEFAULT_FUSION, DEFAULT_GAMMA, progress, say_inputs, words
from fxelastic.errors import UsageError

if TYPE_CHECKING:
    import torch

    from fxelastic.branches import Kind
    from fxelastic.ir.supernet import Supernet


def add_expansion(parser: argparse.ArgumentParser) -> None:
    """Add the options for the branches of a supernet and for its weights."""
    parser.add_argument(
        "--kinds",
        type=words,
        metavar="KIND,…",
        help="kinds of branches besides the originals, with their default options; 'default' for "
        "merged,pruned,skip,separable, 'all' for every kind, an empty string for none (default: "
        "default, or the kinds of --kind)",
    )
    parser.add_argument(
        "--max-size",
        type=float,
        metavar="TIMES",
        help="most parameters of the supernet, as a multiple of the model's; those branches stay "
        "that save most operations for their parameters (default: 2 with --kinds default, any "
        "number without)",
    )
    parser.add_argument(
        "--kind",
        metavar="KIND:OPTION=VALUE,…",
        action="append",
        default=[],
        help="a kind of branches with options, e.g. merged:spans=1,2 or "
        "my_package.kinds:MyKind:factor=2; may be repeated",
    )
    parser.add_argument(
        "--spans",
        type=_numbers(int),
        metavar="N,…",
        help="shorthand for --kind merged:spans=N,… (default: 1,2)",
    )
    parser.add_argument(
        "--prune",
        type=_numbers(float),
        metavar="SHARE,…",
        help="shorthand for --kind pruned:ratios=SHARE,… (default: 0.25,0.5)",
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="state dict of MODEL, a .safetensors file or a file from torch.save",
    )
    parser.add_argument(
        "--supernet-weights",
        metavar="FILE",
        help="weights of the trained branches, a file from supernet.save",
    )


def model_of(args: argparse.Namespace) -> torch.nn.Module:
    """Load the model that the arguments name, with the weights that they name.

    Args:
        args: With the options of `fxelastic.cli.options.add_model` and `add_expansion`.

    Raises:
        UsageError: An argument does not name a usable object.
    """
    with contextlib.redirect_stdout(sys.stderr):
        progress(args, f"loading {args.model}")
        from fxelastic.cli.model import load_model

        model = load_model(args.model, args.model_arg)
        if args.weights is not None:
            _load_weights(model, Path(args.weights))
        return model


def check_expansion(args: argparse.Namespace) -> None:
    """Read the options that `expand` takes, so that an invalid one fails before any work.

    Args:
        args: With the options of `fxelastic.cli.options.add_model` and `add_expansion`.

    Raises:
        UsageError: An option is malformed.
    """
    from fxelastic.cli.dynamic_sizes import load_dynamic_shapes

    _kinds(args.kind)
    load_dynamic_shapes(args.dynamic)


def supernet_of(args: argparse.Namespace, model: torch.nn.Module | None = None) -> Supernet:
    """Load the model that the arguments name and expand it.

    The output of the model's code goes to stderr; stdout has only the output of the command.

    Args:
        args: With the options of `fxelastic.cli.options.add_model` and `add_expansion`.
        model: The model, if it is loaded already.

    Raises:
        UsageError: An argument does not name a usable object.
        CaptureError: The model can't be captured.
        PartitionError: The model can't be partitioned.
    """
    with contextlib.redirect_stdout(sys.stderr):
        check_expansion(args)
        from fxelastic.cli.example_inputs import load_example_inputs

        model = model_of(args) if model is None else model
        args = _with_trained_inputs(args)
        example_inputs = load_example_inputs(args.example_input)
        size = sum(parameter.numel() for parameter in model.parameters())
        progress(args, f"expanding {type(model).__name__} ({size:,} parameters)")
        start = time.perf_counter()
        supernet = expanded(args, model, example_inputs)
        if args.supernet_weights is not None:
            supernet.load(args.supernet_weights)
        progress(args, f"{supernet.space} after {time.perf_counter() - start:.1f} s")
        say_inputs(args, model, supernet.partition)
    for warning in supernet.partition.warnings:
        print(f"fxelastic: warning: {warning}", file=sys.stderr)
    return supernet


def _with_trained_inputs(args: argparse.Namespace) -> argparse.Namespace:
    """The options with the inputs that the trained weights are for, unless others are given."""
    if args.example_input or args.supernet_weights is None:
        return args
    from fxelastic.ir.supernet_file import example_inputs_of

    texts = example_inputs_of(args.supernet_weights)
    if texts:
        progress(args, f"input as the trained branches need it: {', '.join(texts)}")
    return argparse.Namespace(**{**vars(args), "example_input": texts})


def expanded(
    args: argparse.Namespace, model: torch.nn.Module, example_inputs: Any, **changes: Any
) -> Supernet:
    """Expand a model with the options of `supernet_of`.

    Args:
        args: The options.
        model: The model.
        example_inputs: Its example inputs, or None.
        changes: Arguments of `fxelastic.expand` that replace those of the options.
    """
    import fxelastic
    from fxelastic.cli.dynamic_sizes import load_dynamic_shapes

    chosen: dict[str, Any] = {
        name: getattr(args, name)
        for name in ("kinds", "max_size", "spans", "prune")
        if getattr(args, name) is not None
    }
    kinds = _kinds(args.kind)
    if kinds:
        chosen["kinds"] = (*chosen.get("kinds", ()), *kinds)
    chosen["batched"] = args.batched
    return fxelastic.expand(
        model,
        DEFAULT_GAMMA if args.gamma is None else args.gamma,
        example_inputs=example_inputs,
        dynamic_shapes=load_dynamic_shapes(args.dynamic),
        fusion=args.fusion or DEFAULT_FUSION,
        threads=args.threads,
        **{**chosen, **changes},
    )


def _kinds(texts: Sequence[str]) -> list[Kind]:
    if not texts:
        return []
    from fxelastic.cli.kinds import parse_kind

    return [parse_kind(text) for text in texts]


def _load_weights(model: torch.nn.Module, path: Path) -> None:
    import torch

    try:
        if not path.is_file():
            raise OSError("not a regular file" if path.exists() else "no such file")
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            # weights_only rejects pickles that run code.
            state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state)
    except Exception as e:  # these libraries raise errors of many types
        raise UsageError(
            f"--weights {path} can't be loaded into {type(model).__name__}",
            expected="a state dict with the model's names and shapes",
            got=f"{type(e).__name__}: {e}",
            fix="save it with torch.save(model.state_dict(), file)",
        ) from e


def _numbers(kind: Any) -> Any:
    def parse(text: str) -> tuple[Any, ...]:
        return tuple(kind(word) for word in words(text))

    # argparse names the type in its message: "invalid int values value".
    parse.__name__ = f"{kind.__name__} values"
    return parse
