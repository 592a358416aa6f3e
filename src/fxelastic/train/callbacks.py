"""What is told of a run while it goes on."""

from __future__ import annotations

from fxelastic.train.reports import EpochReport, History, StepReport


class Callback:
    """Told of each step and epoch; every method may be left out.

    A callback sees reports and changes nothing. What it raises ends the run; the last checkpoint
    is kept. In a distributed run only the first process calls it.
    """

    def on_begin(self, stage: str, step: int, epoch: int, total_steps: int | None) -> None:
        """The run begins.

        Args:
            stage: ``distill`` or ``tune``.
            step: Steps made before: not 0 where the run was resumed.
            epoch: Epochs that had ended before.
            total_steps: Steps of the whole run; None where the loader has no length.
        """

    def on_step(self, report: StepReport) -> None:
        """A step was made."""

    def on_checkpoint(self, step: int) -> None:
        """A checkpoint was written: an interrupted run will go on from here."""

    def on_epoch(self, report: EpochReport) -> None:
        """An epoch has ended."""

    def on_end(self, history: History | None) -> None:
        """The run has ended; None where an error or the user ended it."""
