"""The first step of ``fxelastic run``: what the model and the data are, checked and written."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxelastic.cli import options
from fxelastic.cli.model_inputs import ModelInputs, call_of
from fxelastic.cli.recipe import FOUND, Recipe
from fxelastic.cli.supernet import add_expansion, check_expansion, model_of
from fxelastic.cli.training_options import add_data, add_number, add_training, data_of
from fxelastic.files import replace_file

if TYPE_CHECKING:
    import torch

    from fxelastic.cli.training_data import TrainingData

#: The step's name.
NAME = "inputs"

#: The files that it writes besides `FOUND`.
MODEL, SAMPLES = "model.pt", "samples.npz"

_MEASURED_RUNS = 3


def build_parser() -> argparse.ArgumentParser:
    """The parser of the step."""
    parser = argparse.ArgumentParser(prog="fxelastic run", add_help=False)
    options.add_model(parser, gamma="", fusion="")
    add_expansion(parser)
    add_data(parser)
    add_training(parser)
    add_number(parser, "--samples", options.at_least(1), 1000, "samples for the search")
    parser.add_argument("--measure", action="store_true", help="write nothing, print the figures")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Load the model and the data, compare them, and write what later steps read.

    Returns:
        0; raises an error on failure.
    """
    with contextlib.redirect_stdout(sys.stderr):
        check_expansion(args)
        begin_s = time.perf_counter()
        load = functools.cache(functools.partial(model_of, args))
        data, given = data_of(args, load)
        model = load()
        found = {"load_s": time.perf_counter() - begin_s, **_figures(model, data)}
        if not args.measure:
            _write(Path(args.out), args, model, data, given)
    print(json.dumps(found))
    return 0


def _write(
    out: Path,
    args: argparse.Namespace,
    model: torch.nn.Module,
    data: TrainingData,
    given: argparse.Namespace,
) -> None:
    import torch

    from fxelastic.edge.array_bytes import write_arrays

    out.mkdir(parents=True, exist_ok=True)
    # The weights of a model that is not seeded differ from process to process.
    weights = io.BytesIO()
    torch.save(model.state_dict(), weights)
    replace_file(out / MODEL, weights.getvalue())
    samples = data.samples(args.samples, ModelInputs(load=lambda: model).names())
    replace_file(out / SAMPLES, write_arrays(samples))
    found: dict[str, Any] = {"weights": MODEL}
    if not args.example_input and given.example_input:
        found["example-input"] = list(given.example_input)
    Recipe(out, {"model": found, "search": {"data": SAMPLES}}).write(FOUND)


def _figures(model: torch.nn.Module, data: TrainingData) -> dict[str, Any]:
    """What the time of later steps depends on."""
    import torch

    found: dict[str, Any] = {
        "n_params": sum(parameter.numel() for parameter in model.parameters()),
        "n_samples": data.n_samples(),
    }
    batch = data.first()
    if batch is None:
        return found
    args, kwargs = call_of(batch[0])
    n_samples = max(map(len, (*args, *kwargs.values())))
    was_training = model.training
    n_threads = torch.get_num_threads()
    runs_s = []
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        # Several threads would wait for each other beside other programs.
        torch.set_num_threads(1)
        model.eval()
        for _ in range(_MEASURED_RUNS):
            begin_s = time.perf_counter()
            model(*args, **kwargs)
            runs_s.append(time.perf_counter() - begin_s)
    torch.set_num_threads(n_threads)
    model.train(was_training)
    # The first run takes longer.
    return {**found, "sample_s": min(runs_s) / n_samples}
