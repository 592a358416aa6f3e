"""Logs of a run: JSON lines, CSV, TensorBoard.

A log of an interrupted run goes on where the checkpoint does: what was logged after it is dropped,
as these steps are made again.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fxelastic.errors import UsageError
from fxelastic.files import replace_file
from fxelastic.train.callbacks import Callback
from fxelastic.train.reports import EpochReport, History, StepReport


class JsonLines(Callback):
    """A JSON object a line for each step and each epoch.

    A step's line has ``event: "step"`` and the fields of `StepReport`; an epoch's ``event:
    "epoch"`` and those of `EpochReport`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Log to a file; its folder is made, and lines of other stages in it stay."""
        self.path = Path(path)

    def on_begin(self, stage: str, step: int, epoch: int, total_steps: int | None) -> None:
        """Drop what was logged of the steps that are to come."""
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
    """A table of the steps: stage, step, epoch, batch, loss, lr, gradient norm, samples, time."""

    FIELDS = (
        "stage",
        "step",
        "epoch",
        "batch",
        "loss",
        "lr",
        "grad_norm",
        "n_samples",
        "seconds",
    )

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Log to a file; its folder is made, and rows of other stages in it stay."""
        self.path = Path(path)

    def on_begin(self, stage: str, step: int, epoch: int, total_steps: int | None) -> None:
        """Drop what was logged of the steps that are to come."""
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
    """Scalars for TensorBoard: loss, learning rate, gradient norm, and the range accuracy."""

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
        self._folder = str(folder)
        self._writer: Any = None

    def on_begin(self, stage: str, step: int, epoch: int, total_steps: int | None) -> None:
        """Open the log; steps to come hide those of an interrupted run."""
        self._writer = self._make(self._folder, purge_step=step + 1)

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

    def on_end(self, history: History | None) -> None:
        """Close the log."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _parsed(line: str) -> Mapping[str, Any]:
    try:
        data = json.loads(line)
    except ValueError:
        # The line that a killed process was writing: it belongs to no step.
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
