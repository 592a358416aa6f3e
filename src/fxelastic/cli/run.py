"""``fxelastic run``: everything from a model to its best subnets on this device."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fxelastic.cli import options, run_inputs
from fxelastic.cli.budgets import check_units
from fxelastic.cli.data_paths import is_data_file
from fxelastic.cli.options import DEFAULT_GAMMA, HelpFormatter
from fxelastic.cli.recipe import NAME, Recipe
from fxelastic.cli.run_loop import CurrentRun
from fxelastic.cli.run_pipeline import check_recipe, check_values, steps_of
from fxelastic.cli.supernet import add_expansion
from fxelastic.errors import UsageError

_DESCRIPTION = """\
Distil a model's supernet, tune it, export it, measure this device, search, prepare the
subnets found for serving, and write a report, all in one folder. The same command resumes
an interrupted run, and makes only what depends on options that have changed. The options
are kept in the folder's fxelastic.toml, which the other commands read there."""

_EPILOG = """\
examples:
  fxelastic run my_model.py:build --weights model.pt --data train.npz --budget 60% --out run
  fxelastic run my_model.py:build --data photos --tune-epochs 2 --out run --dry-run
  fxelastic run --out run --budget 50% --budget 80% --dry-run
  fxelastic search run/bundle --budget 70%

exit codes: 0 success, 1 a step failed, 2 usage error, 130 interrupted"""

#: The options of the command by section of the recipe, and their values in a new recipe.
_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "model": (
        *("model", "model-arg", "weights", "gamma", "fusion", "example-input", "dynamic"),
        *("batched", "kinds", "kind", "max-size", "spans", "prune", "seed", "threads"),
    ),
    "train": ("data", "batch-size", "distill-epochs", "tune-epochs", "loss"),
    "export": ("int8",),
    "profile": ("threads",),
    "search": ("budget", "score", "max-subnets", "seed", "threads"),
    "run": ("samples",),
}
_NEW: Mapping[str, Mapping[str, Any]] = {
    "model": {"gamma": DEFAULT_GAMMA, "seed": 0, "threads": 1},
    "train": {"distill-epochs": 5, "tune-epochs": 0},
    "search": {"budget": ["60%"]},
}
_DEFAULT_OUT = "fxelastic-run"


def add_parser(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser(
        "run",
        help="do everything from a model to its best subnets on this device",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    options.add_model(parser, gamma=f"{DEFAULT_GAMMA:g}", fusion=options.DEFAULT_FUSION)
    add_expansion(parser)
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="the data to train with, as for fxelastic train; the search uses samples of it",
    )
    options.add_values(
        parser,
        ("--distill-epochs", "N", options.at_least(0), None, "epochs of distillation (default: 5)"),
        (
            "--tune-epochs",
            "N",
            options.at_least(0),
            None,
            "epochs of tuning; 0 to skip it (default: 0)",
        ),
        (
            "--batch-size",
            "N",
            options.at_least(1),
            None,
            "samples in a batch, for files (default: 64)",
        ),
        ("--loss", "LOSS", str, None, "the loss of tuning, as for fxelastic train"),
    )
    parser.add_argument(
        "--int8", action="store_true", help="also export 8-bit branches, calibrated with the data"
    )
    parser.add_argument(
        "--budget",
        metavar="BUDGET",
        action="append",
        help="as for fxelastic search; may be repeated (default: 60%%)",
    )
    options.add_values(
        parser,
        ("--score", "NAME", str, None, "what subnets are compared by, as for fxelastic search"),
        (
            "--max-subnets",
            "N",
            options.at_least(1),
            None,
            "subnets to try for each budget (default: 400)",
        ),
        (
            "--samples",
            "N",
            options.at_least(1),
            None,
            "samples that the search uses (default: 1000)",
        ),
        ("--seed", "SEED", int, None, "seed of all random choices (default: 0)"),
        (
            *("--threads", "N", options.at_least(1), None),
            "threads to compute with (default: 1 for training, so that its result does not depend "
            "on the machine; one for each core on the device)",
        ),
    )
    for action in parser._actions:
        # Only what is given changes the recipe.
        action.default = argparse.SUPPRESS
        if action.dest == "model":
            action.nargs, action.required = "?", False
        if action.dest == "supernet_weights":
            parser._remove_action(action)
            parser._option_string_actions.pop("--supernet-weights")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="the run's folder (default: the current folder if it has a recipe, else "
        f"{_DEFAULT_OUT})",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the steps and how long they may take"
    )
    options.add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0, or the exit code of the step that failed.
    """
    from fxelastic.spec.only_writer import only_writer

    folder = Path(args.out or ("." if Path(NAME).is_file() else _DEFAULT_OUT))
    old, recipe = _recipes(args, folder)
    for line in old.differences(recipe) if old.sections else ():
        options.progress(args, f"{NAME}: {line}")
    current = CurrentRun(args, folder, recipe)
    if args.dry_run:
        return current.show()
    folder.mkdir(parents=True, exist_ok=True)
    with only_writer(folder / "run"):
        if recipe != old:
            recipe.write()
        return current.make()


def _recipes(args: argparse.Namespace, folder: Path) -> tuple[Recipe, Recipe]:
    """The folder's recipe, and the one with the options of the command.

    Raises:
        UsageError: The folder is not a run's, a recipe can't be read, or an option is missing.
    """
    if folder.exists() and not (folder / NAME).is_file():
        found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else ["a file"]
        if any(not name.startswith(".") for name in found):
            raise UsageError(
                f"{folder} is not the folder of a run",
                expected=f"a new folder, or one with {NAME}",
                got=", ".join(found[:6]),
                fix="choose another --out",
            )
    old = Recipe.read(folder)
    given: dict[str, dict[str, Any]] = {}
    for section, keys in _SECTIONS.items():
        for key in keys:
            value = getattr(args, key.replace("-", "_"), None)
            if value is not None:
                text = ",".join(map(str, value)) if isinstance(value, tuple) else value
                given.setdefault(section, {})[key] = text
    begun = old if old.sections else Recipe(folder).changed(_NEW)
    recipe = begun.changed(given)
    if given.get("export", {}).get("int8"):
        recipe = recipe.with_option("export", "calibration", run_inputs.SAMPLES)
    for section, key, word in (("model", "model", "MODEL"), ("train", "data", "--data")):
        if key not in recipe.options(section):
            raise UsageError(
                f"{word} is missing",
                expected=f"{word}, or a folder with {NAME} that has it in [{section}]",
                got=f"no {word}, and no such recipe in {folder}",
                fix="fxelastic run my_model.py:build --data images.npz",
            )
    check_recipe(recipe)
    if "budget" in given.get("search", {}):
        check_units(given["search"]["budget"])
    data = str(recipe.options("train")["data"])
    place = os.path.normpath(folder / data)
    if is_data_file(data) and not os.path.exists(place):
        raise UsageError(
            f"--data {data} does not exist",
            expected="a file or folder of samples, or path/file.py:name of loaders",
            got=f"nothing at {place}",
        )
    check_values(steps_of(folder, recipe))
    return old, recipe
