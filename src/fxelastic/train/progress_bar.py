"""A progress bar for a terminal."""

from __future__ import annotations

from typing import TextIO

from tqdm import tqdm

from fxelastic.train.callbacks import Callback
from fxelastic.train.reports import EpochReport, History, StepReport


class ProgressBar(Callback):
    """Shows steps, loss and the time left, on stderr unless told otherwise."""

    def __init__(self, file: TextIO | None = None) -> None:
        """Make one; it appears when a run begins.

        Args:
            file: Where to; stderr where None.
        """
        self._file = file
        self._bar: tqdm[object] | None = None

    def on_begin(self, stage: str, step: int, epoch: int, total_steps: int | None) -> None:
        """See `Callback`."""
        self._bar = tqdm(
            desc=stage, total=total_steps, initial=step, file=self._file, unit="step", leave=True
        )

    def on_step(self, report: StepReport) -> None:
        """See `Callback`."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {report.loss:.4g}", refresh=False)
            self._bar.update()

    def on_epoch(self, report: EpochReport) -> None:
        """See `Callback`."""
        if self._bar is not None and report.held_out is not None:
            self._bar.set_description_str(f"{report.stage}, {report.held_out}", refresh=False)

    def on_end(self, history: History | None) -> None:
        """See `Callback`."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
