"""Make the steps of ``fxelastic run``, one after the other, or show what would be made."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT
from typing import Any, BinaryIO

from fxelastic.cli import options
from fxelastic.cli.recipe import Recipe
from fxelastic.cli.run_pipeline import SEARCH, missing_for_report, steps_of
from fxelastic.cli.run_steps import Records, Step
from fxelastic.cli.run_times import expected_s, lasting, read_figures
from fxelastic.errors import UsageError
from fxelastic.files import replace_file

SCHEMA = "fxelastic.run/1"

# How often a step is made whose result can't be used, such as a measurement on a busy machine.
_ATTEMPTS = 3


def start_step(folder: Path, command: str, argv: Sequence[str], stdout: BinaryIO) -> int:
    """Run a step in a process of its own, without what earlier steps left in memory.

    Args:
        folder: The run's folder.
        command: The command.
        argv: Its arguments.
        stdout: The file that it prints to. Progress goes to stderr.

    Returns:
        Its exit code.
    """
    code = "from fxelastic.cli.run_child import main; main()"
    # The input is a pipe, whose end tells the process that this one has ended; Ctrl-C goes to this
    # process alone, which passes it on.
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder), command, *argv],
        stdin=subprocess.PIPE,
        stdout=stdout,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
        start_new_session=True,
    )
    with process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(SIGINT)
            return process.wait()


@dataclass(frozen=True)
class CurrentRun:
    """A run: the command's options, its folder and its recipe."""

    args: argparse.Namespace
    folder: Path
    recipe: Recipe

    @property
    def records(self) -> Records:
        """What the steps were made from."""
        return Records(self.folder / "steps")

    def show(self) -> int:
        """Print what will be done, and how long it may take."""
        rows = self._plan(self._figures())
        left_s = sum(row.seconds for row in rows if row.to_do)
        if self.args.json:
            steps = [
                {
                    "step": r.step.name,
                    "to_do": r.to_do,
                    "seconds": round(r.seconds, 1),
                    "why": r.why,
                }
                for r in rows
            ]
            report = {"schema": SCHEMA, "exit_code": 0, "folder": str(self.folder), "steps": steps}
            print(json.dumps({**report, "seconds_left": round(left_s, 1)}, indent=2))
            return 0
        from fxelastic.spec.columns import aligned

        lines = [("step", "state", "time", "why"), *(row.line for row in rows)]
        print("\n".join(line.rstrip() for line in aligned(lines, right=set())))
        print(f"\n{lasting(left_s)} in all; this is a dry run, so nothing was done")
        return 0

    def make(self) -> int:
        """Make all steps that are not done.

        Returns:
            The exit code of the last one.
        """
        made: list[dict[str, Any]] = []
        for i in range(len(self._steps())):
            rows = self._plan(read_figures(self.folder))
            row, left_s = rows[i], sum(r.seconds for r in rows[i:] if r.to_do)
            name = f"[{i + 1}/{len(rows)}] {row.step.name}"
            if not row.to_do:
                options.progress(self.args, f"{name}: done before")
                self.records.tidy(row.step)
                made.append({"step": row.step.name, "made": False})
                continue
            time_left = f"{lasting(row.seconds)}; {lasting(left_s)} left in all"
            why = f" ({'; '.join(row.why)})" if row.why else ""
            options.progress(self.args, f"{name}{why}: {time_left}")
            begin_s = time.monotonic()
            code = self._made_well(row.step)
            seconds = time.monotonic() - begin_s
            made.append({"step": row.step.name, "made": True, "seconds": round(seconds, 1)})
            if code:
                options.progress(self.args, f"{name}: {_ended(code)}; the same command resumes it")
                return self._end(made, code if code > 0 else 1)
            self.records.end(row.step, seconds)
            options.progress(self.args, f"{name}: done after {lasting(seconds, exact=True)}")
        return self._end(made, 0)

    def _made_well(self, step: Step) -> int:
        """Make a step, again if its result can't be used; returns the exit code."""
        for i in range(_ATTEMPTS):
            code = self._make(step, step.thorough if i else ())
            problem = "" if code or step.problem is None else step.problem()
            if not problem:
                return code
            if i + 1 < _ATTEMPTS:
                options.progress(self.args, f"{step.name}: repeated, because {problem}")
        # Without its record, the same command makes it again.
        print(
            f"fxelastic: error: {step.name} can't be used after {_ATTEMPTS} attempts: {problem}; "
            "run the same command again while other programs use the machine less",
            file=sys.stderr,
        )
        return 1

    def _make(self, step: Step, further: Sequence[str]) -> int:
        resumed = self.records.begin(step)
        if resumed:
            options.progress(self.args, f"{step.name}: resumed")
        words = [word for word in ("quiet", "debug") if getattr(self.args, word)]
        argv = [*step.argv, *further, *(f"--{word}" for word in words)]
        text = self.records.folder / f"{step.name}.txt"
        with text.open("wb") as stdout:
            code = start_step(self.folder, step.command, argv, stdout)
        if not code and step.report is not None:
            replace_file(step.report, text.read_bytes())
        return code

    def _end(self, made: list[dict[str, Any]], code: int) -> int:
        """Print the result."""
        found = self.folder / SEARCH
        search = json.loads(found.read_text("utf-8")) if found.exists() and not code else None
        if self.args.json:
            report = {"schema": SCHEMA, "exit_code": code, "folder": str(self.folder)}
            print(json.dumps({**report, "steps": made, "search": search}, indent=2))
        elif search is not None:
            print("\n".join(_result(search)))
            if not missing_for_report():
                print(f"\nthe report is {self.folder / 'report.html'}")
            else:
                print("\nwithout a report: pip install 'fxelastic[report]'")
        return code

    def _steps(self) -> list[Step]:
        return steps_of(self.folder, self.recipe)

    def _plan(self, figures: Mapping[str, Any]) -> list[_Row]:
        """The steps, each with its state and its expected time."""
        rows: list[_Row] = []
        for step in self._steps():
            why = self.records.why(step)
            depends = bool(rows) and rows[-1].to_do
            to_do = depends or why is not None
            if depends and not why:
                why = ["depends on the steps before"]
            seconds = self.records.seconds(step)
            seconds = expected_s(step.name, self.recipe, figures) if seconds is None else seconds
            rows.append(_Row(step, to_do, seconds, why or []))
        return rows

    def _figures(self) -> Mapping[str, Any]:
        """What the folder knows of the model, or a short measurement."""
        found = read_figures(self.folder)
        if found:
            return found
        (inputs, *_) = self._steps()
        with tempfile.TemporaryDirectory() as name:
            path = Path(name)
            with (path / "figures").open("wb") as stdout:
                argv = [*inputs.argv, "--measure", "--quiet"]
                code = start_step(path, inputs.command, argv, stdout)
            if code:
                raise UsageError(
                    "the model and the data can't be measured",
                    expected="a model that can be run on the data",
                    got=f"exit code {code}, with the message above",
                )
            return read_figures(path, "figures")


@dataclass(frozen=True)
class _Row:
    """A step, whether it is to do, its expected time, and why it is to do."""

    step: Step
    to_do: bool
    seconds: float
    why: list[str]

    @property
    def line(self) -> tuple[str, ...]:
        """The row as text."""
        if not self.to_do:
            return (self.step.name, "done", "", "")
        return (self.step.name, "to do", lasting(self.seconds), "; ".join(self.why))


def _ended(code: int) -> str:
    """How a process ended that gave this exit code."""
    if code >= 0:
        return f"ended with exit code {code}"
    reason = ", probably for lack of memory" if code == -9 else ""
    return f"was ended by signal {-code}{reason}"


def _result(search: Mapping[str, Any]) -> list[str]:
    """The subnets of a search's JSON, as lines of text."""
    from fxelastic.spec.columns import aligned
    from fxelastic.spec.resources import LATENCY

    original = search["original"]
    rows: list[tuple[str, ...]]
    rows = [("budget", "latency", "of original", search["score"], "held out")]
    for name, found in [("original", original), *((None, b) for b in search["budgets"])]:
        bound = found.get("budget_ms")
        rows.append(
            (
                name or (f"{bound:.3f} ms" if bound is not None else "-"),
                f"{found[LATENCY]:.3f} ms",
                f"{found[LATENCY] / original[LATENCY]:.0%}",
                *("-" if s is None else f"{s:.4f}" for s in _scores(found)),
            )
        )
    return aligned(rows, right={0, 1, 2, 3, 4})


def _scores(found: Mapping[str, Any]) -> tuple[float | None, float | None]:
    return found["accuracy"], found["held_out_accuracy"]
