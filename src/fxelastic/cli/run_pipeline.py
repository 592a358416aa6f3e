"""The steps of ``fxelastic run`` in their order: which command makes each, from what."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxelastic.cli import export, prepare, profile, report, run_inputs, search, train
from fxelastic.cli.recipe import FOUND, NAME, SECTIONS, Recipe, Value, check_keys, moved, words_of
from fxelastic.cli.run_steps import Step
from fxelastic.errors import UsageError

#: The file of the search's result, as ``fxelastic report`` reads it.
SEARCH = "search.json"

_COMMANDS = {
    "train": train,
    "export": export,
    "profile": profile,
    "search": search,
    "prepare": prepare,
    "report": report,
}
#: The options that the first step depends on; those of one stage of training alone; those that the
#: run itself chooses.
_INPUTS = ("model", "model-arg", "weights", "example-input", "data", "samples")
_DISTIL = ("distill-epochs", "distill-lr", "mode")
_TUNE = ("tune-epochs", "tune-lr", "sampling", "loss", "soft")
_OWN = ("out", "supernet-weights", "pool", "table", "bundle", "prepared", "stages", "force")
# Options of a profile that takes some two times as long as the usual one.
_THOROUGH = (("samples", 40), ("subnets", 60), ("held-out", 24))


def missing_for_report() -> bool:
    """Whether the packages that draw a report are not installed."""
    return any(importlib.util.find_spec(name) is None for name in ("jinja2", "matplotlib"))


def check_recipe(recipe: Recipe) -> None:
    """Check that a recipe has only options that the steps know.

    Raises:
        UsageError: It has another section or option.
    """
    parsers = _parsers()
    known = {"model": ["train", "export"], "run": [run_inputs.NAME]}
    known |= {name: [name] for name in _COMMANDS if name in SECTIONS}
    for section in recipe.sections:
        if section not in known:
            raise UsageError(
                f"{recipe.folder / NAME} has an unknown section [{section}]",
                expected=", ".join(f"[{name}]" for name in known),
                got=f"[{section}]",
            )
        check_keys(recipe, section, [parsers[name] for name in known[section]])


def check_values(steps: Sequence[Step]) -> None:
    """Check that the commands take the values of the recipe, before hours of work for others.

    Raises:
        UsageError: One does not.
    """
    for step in steps:
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                _parsers()[step.command].parse_args(step.argv)
        except SystemExit as e:
            command = "run" if step.command == run_inputs.NAME else step.command
            raise UsageError(
                f"{NAME} has a value that {step.name} does not take",
                expected=f"a value as fxelastic {command} --help says",
                got=said.getvalue().strip().rpartition("error: ")[2],
                fix="correct the recipe, or pass the option again",
            ) from e


@functools.cache
def _parsers() -> Mapping[str, argparse.ArgumentParser]:
    commands = argparse.ArgumentParser().add_subparsers()
    for command in _COMMANDS.values():
        command.add_parser(commands)
    parsers = {**commands.choices, run_inputs.NAME: run_inputs.build_parser()}
    for parser in parsers.values():
        # Some options are known only when the first step has read the data.
        for action in parser._actions:
            action.required = False
        for group in parser._mutually_exclusive_groups:
            group.required = False
    return parsers


def steps_of(folder: Path, recipe: Recipe) -> list[Step]:
    """The steps of a run.

    Args:
        folder: The run's folder.
        recipe: Its options.
    """
    return _Pipeline(folder, recipe).steps()


@dataclass(frozen=True)
class _Pipeline:
    folder: Path
    recipe: Recipe

    def steps(self) -> list[Step]:
        train_options = self._found.options("model", "train")
        n_tune = train_options.get("tune-epochs", 0)
        distil = self.folder / "distil" / "supernet.safetensors"
        tuned = self.folder / "tune" / "supernet.safetensors"
        weights = tuned if n_tune else distil
        bundle, pool = self.folder / "bundle", self.folder / "bundle.pool.json"
        table, prepared = self.folder / "bundle.latency.json", self.folder / "bundle.prepared"
        manifest, result = bundle / "manifest.json", self.folder / SEARCH
        steps = [
            self._inputs(),
            self._training("distil", distil, _TUNE, {"tune-epochs": 0}, {}),
        ]
        if n_tune:
            begin = {"distilled weights": distil}
            steps.append(self._training("tune", tuned, _DISTIL, {"distill-epochs": 0}, begin))
        export_options = self._options("export", "model", "export")
        steps.append(
            Step(
                "export",
                "export",
                (
                    *self._words("export", export_options),
                    self._model,
                    str(bundle),
                    f"--supernet-weights={weights}",
                    "--force",
                ),
                export_options,
                {"trained weights": weights, **self._sources, **self._calibration},
                (manifest, bundle),
            )
        )
        profile_options = self._options("profile", "profile")
        steps.append(
            Step(
                "profile",
                "profile",
                (*self._words("profile", profile_options), str(bundle), f"--out={table}"),
                profile_options,
                {"bundle": manifest},
                (table,),
                keeps=True,
                problem=functools.partial(_table_problem, table, self._found),
                thorough=tuple(f"--{k}={n}" for k, n in _THOROUGH if k not in profile_options),
            )
        )
        search_options = self._options("search", "search")
        data = self._path(search_options.get("data", run_inputs.SAMPLES))
        budgets = search_options.get("budget", [])
        steps.append(
            Step(
                "search",
                "search",
                (*self._words("search", search_options), str(bundle), f"--out={pool}", "--json"),
                search_options,
                {"bundle": manifest, "latency table": table, "samples": data},
                (pool, result),
                float(max(1, len(budgets))) if isinstance(budgets, list) else 1.0,
                report=result,
            )
        )
        prepare_options = self._options("prepare", "prepare")
        steps.append(
            Step(
                "prepare",
                "prepare",
                (
                    *self._words("prepare", prepare_options),
                    *(str(bundle), f"--pool={pool}", f"--prepared={prepared}"),
                ),
                prepare_options,
                {"bundle": manifest, "pool": pool},
                (prepared,),
                keeps=True,
            )
        )
        if not missing_for_report():
            steps.append(
                Step(
                    "report",
                    "report",
                    (str(self.folder),),
                    {},
                    {"bundle": manifest, "table": table, "pool": pool, "search": result},
                    (self.folder / "report.html",),
                )
            )
        return steps

    def _inputs(self) -> Step:
        options = self.recipe.options("model", "train", "run")
        options = {key: value for key, value in options.items() if key in _INPUTS}
        named = (options.get("model"), options.get("data"), options.get("weights"))
        found = (self._path(text) for text in named if text is not None)
        return Step(
            run_inputs.NAME,
            run_inputs.NAME,
            (*self._words(run_inputs.NAME, options), self._model, f"--out={self.folder}"),
            options,
            {path.name: path for path in found if path.exists()},
            tuple(self.folder / name for name in (FOUND, run_inputs.MODEL, run_inputs.SAMPLES)),
        )

    def _training(
        self,
        name: str,
        weights: Path,
        left_out: Sequence[str],
        none: dict[str, Value],
        begin: Mapping[str, Path],
    ) -> Step:
        """A stage of training, as ``fxelastic train`` without the other stage."""
        options = self._options("train", "model", "train")
        options = {key: value for key, value in options.items() if key not in left_out} | none
        words = [f"--supernet-weights={path}" for path in begin.values()]
        data = self._path(options["data"])
        named = [data, *(self._path(options[key]) for key in ("loss",) if key in options)]
        files = {path.name: path for path in named if path.exists()}
        epochs = max(_epochs(options, key) for key in ("distill-epochs", "tune-epochs"))
        return Step(
            name,
            "train",
            (*self._words("train", options), *words, self._model, f"--out={weights.parent}"),
            options,
            {**self._sources, **files, **begin},
            (weights, weights.parent),
            max(1.0, epochs),
            keeps=True,
        )

    @functools.cached_property
    def _found(self) -> Recipe:
        """The recipe with what the first step found."""
        found = Recipe.read(self.folder, FOUND)
        sections = {**self.recipe.sections}
        for name, options in found.sections.items():
            sections[name] = {**sections.get(name, {}), **options}
        return Recipe(self.folder, sections)

    @property
    def _model(self) -> str:
        return str(moved("model", self.recipe.options("model")["model"], self.folder, Path()))

    @property
    def _sources(self) -> dict[str, Path]:
        """The file of the model's code, if there is one, and the weights before training."""
        code = self._path(self.recipe.options("model")["model"])
        files = {code.name: code} if code.is_file() else {}
        return {**files, "model's weights": self.folder / run_inputs.MODEL}

    @property
    def _calibration(self) -> dict[str, Path]:
        given = self._found.options("export").get("calibration")
        return {} if given is None else {"calibration": self._path(given)}

    def _path(self, text: Any) -> Path:
        """The file of a path or reference in the recipe."""
        return Path(os.path.normpath(self.folder / str(text).partition(":")[0]))

    def _options(self, command: str, *sections: str) -> dict[str, Value]:
        """The options of a command, with paths relative to the run's folder."""
        known = _parsers()[command]._option_string_actions
        return {
            key: value
            for key, value in self._found.options(*sections).items()
            if f"--{key}" in known and key not in _OWN
        }

    def _words(self, command: str, options: Mapping[str, Value]) -> list[str]:
        """The options as words of a command line in the current folder."""
        here = {k: moved(k, value, self.folder, Path()) for k, value in options.items()}
        return words_of(here, _parsers()[command])


def _table_problem(path: Path, recipe: Recipe) -> str:
    """Why a search can't use a latency table, which the next measurement may mend."""
    from fxelastic.spec.latency_table import LatencyTable

    mode = str(recipe.options("search").get("mode", "assembled"))
    table = LatencyTable.load(path)
    return table.problem(mode) if mode in table.modes else ""


def _epochs(options: Mapping[str, Value], key: str) -> float:
    value = options.get(key, 0)
    return float(value) if isinstance(value, (int, float)) else 0.0
