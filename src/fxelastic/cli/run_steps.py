"""The steps of ``fxelastic run``: what each makes, from what, and whether it is done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxelastic.cli.data_paths import digest_of
from fxelastic.cli.recipe import changes
from fxelastic.files import read_regular, replace_file, sweep

SCHEMA = "fxelastic.step/1"

_SHORT = 12

# What the records hold, by kind; another file of the name is like none.
_PARTS: Mapping[str, Mapping[str, Any]] = {
    "": {"options": dict, "inputs": dict},
    "begun": {"options": dict, "inputs": dict},
    "time": {"work": (int, float), "seconds": (int, float)},
}


@dataclass(frozen=True)
class Step:
    """A step of a run: a command, the files that it reads, and those that it writes.

    Attributes:
        name: The step's name.
        command: The command that makes it.
        argv: The command's arguments.
        options: The options that the result depends on, independent of the current folder.
        inputs: The files and folders that the result depends on, by what to call them.
        outputs: The files and folders that it writes, the most important first.
        work: How much there is to do, to estimate the time from an earlier run's.
        keeps: Whether the command itself resumes from what an interrupted one left.
        report: A file for what the command prints; None for none.
        problem: Returns why the result can't be used, which makes the step anew; empty if it can.
        thorough: Further arguments when it is repeated, such as those of a longer measurement.
    """

    name: str
    command: str
    argv: tuple[str, ...]
    options: Mapping[str, Any]
    inputs: Mapping[str, Path]
    outputs: tuple[Path, ...]
    work: float = 1.0
    keeps: bool = False
    report: Path | None = None
    problem: Callable[[], str] | None = None
    thorough: tuple[str, ...] = ()


@dataclass(frozen=True)
class Records:
    """What steps were made from, in files of a run's folder.

    A step is done if its outputs exist and its record has the same options and the same inputs, by
    sha256. A second file says what a step was begun with, so that the same command resumes it, and
    another one starts it from scratch.

    Attributes:
        folder: The folder of the files.
    """

    folder: Path

    def why(self, step: Step) -> list[str] | None:
        """Why a step has to be made: lines of what changed, empty if it was never made.

        Returns:
            None if it is done.
        """
        record = self._read(step.name)
        if record is None:
            return []
        missing = [f"{path} is missing" for path in step.outputs if not path.exists()]
        new = _made_from(step)
        return [*missing, *_changed(record, new)] or None

    def begin(self, step: Step) -> bool:
        """Prepare a step's folder: remove what was made from something else.

        Returns:
            Whether the step resumes what an interrupted one left.
        """
        new = _made_from(step)
        same = step.keeps and self._read(step.name, "begun") == new
        if not same:
            (self.folder / f"{step.name}.json").unlink(missing_ok=True)
            for path in step.outputs:
                sweep(path)
                if path.is_dir():
                    shutil.rmtree(path)
                path.unlink(missing_ok=True)
                path.with_name(f"{path.name}.partial").unlink(missing_ok=True)
            self._write(step.name, new, "begun")
        return same

    def end(self, step: Step, seconds: float) -> None:
        """Record that a step is done."""
        took = {"schema": SCHEMA, "work": step.work, "seconds": round(seconds, 3)}
        self._write(step.name, took, "time")
        self._write(step.name, _made_from(step))
        self.tidy(step)

    def tidy(self, step: Step) -> None:
        """Remove what a step that is done leaves if the run is killed at that moment."""
        for kind in _PARTS:
            sweep(self._path(step.name, kind))
        self._path(step.name, "begun").unlink(missing_ok=True)

    def seconds(self, step: Step) -> float | None:
        """How long the step takes, by the time of the last one; None before the first."""
        record = self._read(step.name, "time")
        if record is None or not record["work"] > 0:
            return None
        return max(0.0, float(record["seconds"]) * step.work / float(record["work"]))

    def _path(self, name: str, kind: str = "") -> Path:
        return self.folder / (f"{name}.{kind}.json" if kind else f"{name}.json")

    def _read(self, name: str, kind: str = "") -> dict[str, Any] | None:
        from fxelastic.spec.bounded_json import loads

        try:
            found = loads(read_regular(self._path(name, kind), follow=True))
        except (OSError, ValueError):
            return None
        parts = _PARTS[kind]
        whole = isinstance(found, dict) and found.get("schema") == SCHEMA
        whole = whole and all(isinstance(found.get(key), parts[key]) for key in parts)
        return found if whole else None

    def _write(self, name: str, value: Mapping[str, Any], kind: str = "") -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(self._path(name, kind), (json.dumps(value, indent=2) + "\n").encode())


def _made_from(step: Step) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "options": {"command": step.command, **step.options},
        "inputs": {name: digest_of(path) for name, path in step.inputs.items()},
    }


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    lines = changes(old["options"], new["options"])
    for name, found in new["inputs"].items():
        known = old["inputs"].get(name)
        if known != found:
            lines.append(f"{name} changed: {str(known)[:_SHORT]} -> {found[:_SHORT]}")
    return lines
