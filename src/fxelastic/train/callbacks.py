"""Callbacks of a run: the user's, logs (JSON lines, CSV, TensorBoard) and the progress bar.

The log of an interrupted run continues from the checkpoint: lines after it are dropped, as
their steps are made again.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from fxelastic.errors import UsageError
from fxelastic.files import replace_file
from fxelastic.train.reports import EpochReport, History, StepReport


class Callback:
    """Called after each step and epoch; every method may be left out.

    A callback sees reports and changes nothing. An exception that it raises ends the run; the last
    checkpoint is kept. In a distributed run only the first process calls it.
    """

    def on_begin(self, stage: str, step: int, epoch: int, total_steps: int | None) -> None:
        """Called when a stage begins.

        Args:
            stage: The name of the stage: ``distill``, ``tune`` or the name that it was given.
            step: Steps made before: not 0 where the stage was resumed.
            epoch: Epochs that had ended before.
            total_steps: Steps of the whole stage; None where the loader has no length.
        """

    def on_step(self, report: StepReport) -> None:
        """Called after each step."""

    def on_checkpoint(self, step: int) -> None:
        """Called after each checkpoint: an interrupted run resumes from here."""

    def on_epoch(self, report: EpochReport) -> None:
        """Called after each epoch."""

    def on_end(self, history: History | None) -> None:
        """Called when a stage has ended; with None where an error or the user ended it."""


class JsonLines(Callback):
    """Writes one JSON object per line for each step and each epoch.

    A step's line has ``event: "step"`` and the fields of `StepReport`; an epoch's line ``event:
    "epoch"`` and the fields of `EpochReport`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Log to a file; its folder is made, and lines of other stages in it stay."""
        self.path = Path(path)

    def on_begin(self, stage: str, step: int, epoch: int, total_steps: int | None) -> None:
        """Drop the lines of steps that are still to come."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            return
        lines = self.path.read_text("utf-8").splitlines(keepends=True)
        kept = [line for line in lines if not _is_later(_parsed(line), stage, step, epoch)]
        if kept != lines:
            replace_file(self.path, "".join(kept).encode())

    def on_step(self, report: StepReport) -> None:
        """Write a line."""
        archs = [str(arch) for arch in report.archs]
        self._write({"event": "step", **asdict(report), "archs": archs})

    def on_epoch(self, report: EpochReport) -> None:
        """Write a line."""
        self._write({"event": "epoch", **report.to_json()})

    def _write(self, data: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(data) + "\n")


class Csv(Callback):
    """Writes a CSV row for each step: `FIELDS` lists the columns."""

    FIELDS = (
        *("stage", "step", "epoch", "batch", "loss", "lr"),
        *("grad_norm", "n_samples", "seconds"),
    )

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Log to a file; its folder is made, and rows of other stages in it stay."""
        self.path = Path(path)

    def on_begin(self, stage: str, step: int, epoch: int, total_steps: int | None) -> None:
        """Drop the rows of steps that are still to come."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, Any]] = []
        if self.path.exists():
            text = self.path.read_text("utf-8")
            rows = [row for row in csv.DictReader(io.StringIO(text)) if None not in row.values()]
        kept = [row for row in rows if not _is_later(row, stage, step, epoch)]
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, self.FIELDS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
        replace_file(self.path, buffer.getvalue().encode())

    def on_step(self, report: StepReport) -> None:
        """Write a row."""
        row = asdict(report)
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow([row[name] for name in self.FIELDS])


class TensorBoard(Callback):
    """Scalars for TensorBoard: loss, learning rate, gradient norm, and the range accuracy.

    Each stage logs to its own subfolder of the folder given.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Log to a folder.

        Raises:
            UsageError: TensorBoard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as e:
            raise UsageError(
                "TensorBoard is not installed",
                expected="the package tensorboard in this environment",
                got=str(e),
                fix="pip install tensorboard, or log to JSON lines or CSV",
            ) from e
        self._make = SummaryWriter
        self._folder = Path(folder)
        self._writer: Any = None

    def on_begin(self, stage: str, step: int, epoch: int, total_steps: int | None) -> None:
        """Open the log; steps to come hide those of an interrupted run."""
        self._writer = self._make(str(self._folder / stage), purge_step=step + 1)

    def on_step(self, report: StepReport) -> None:
        """Write the scalars of a step."""
        for name in ("loss", "lr", "grad_norm"):
            self._writer.add_scalar(f"{report.stage}/{name}", getattr(report, name), report.step)

    def on_epoch(self, report: EpochReport) -> None:
        """Write the scalars of an epoch."""
        for i, bucket in enumerate(report.ranges):
            if bucket.mean is not None:
                name = f"{report.stage}/range_accuracy/{i}"
                self._writer.add_scalar(name, bucket.mean, report.step)
        for i, score in enumerate(report.scores):
            self._writer.add_scalar(f"{report.stage}/score/{i}", score, report.step)

    def on_end(self, history: History | None) -> None:
        """Close the log."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class ProgressBar(Callback):
    """Shows steps, loss and the time left, on stderr by default."""

    def __init__(self, file: TextIO | None = None) -> None:
        """Make a bar, which appears when a stage begins.

        Args:
            file: Where to write; stderr where None.
        """
        self._file = file
        self._bar: tqdm[object] | None = None

    def on_begin(self, stage: str, step: int, epoch: int, total_steps: int | None) -> None:
        """Show the bar."""
        self._bar = tqdm(
            desc=stage, total=total_steps, initial=step, file=self._file, unit="step", leave=True
        )

    def on_step(self, report: StepReport) -> None:
        """Advance the bar."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {report.loss:.4g}", refresh=False)
            self._bar.update()

    def on_epoch(self, report: EpochReport) -> None:
        """Show the held-out errors."""
        if self._bar is not None and report.held_out is not None:
            self._bar.set_description_str(f"{report.stage}, {report.held_out}", refresh=False)

    def on_end(self, history: History | None) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def callbacks_of(
    log: str | os.PathLike[str] | None, progress: bool, callbacks: Sequence[Callback]
) -> Sequence[Callback]:
    """The callbacks that the options of a run ask for.

    The log comes first, so that a user's callback that raises finds the step logged.

    Raises:
        UsageError: A callback is not an instance of `Callback`.
    """
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise UsageError(
                f"callbacks must be instances of Callback, got {callback!r}",
                expected="instances of classes derived from fxelastic.train.Callback",
                got=repr(callback),
            )
    logs = [] if log is None else [(Csv if str(log).endswith(".csv") else JsonLines)(log)]
    return (*logs, *([ProgressBar()] if progress else ()), *callbacks)


def _parsed(line: str) -> Mapping[str, Any]:
    try:
        data = json.loads(line)
    except ValueError:
        # A killed process was writing this line: it belongs to no step.
        return {"torn": True}
    return data if isinstance(data, dict) else {}


def _is_later(row: Mapping[str, Any], stage: str, step: int, epoch: int) -> bool:
    if row.get("torn"):
        return True
    if row.get("stage") != stage:
        return False
    try:
        if row.get("event") == "epoch":
            return int(row["epoch"]) >= epoch
        return int(row["step"]) > step
    except (KeyError, TypeError, ValueError):
        return False
