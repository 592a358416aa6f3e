"""Who is told of a run: the user's callbacks, the log, the progress bar."""

from __future__ import annotations

from collections.abc import Sequence

from fxelastic.errors import UsageError
from fxelastic.train.callbacks import Callback
from fxelastic.train.logs import Csv, JsonLines
from fxelastic.train.progress_bar import ProgressBar
from fxelastic.train.training import Training


def observers(training: Training) -> Sequence[Callback]:
    """The observers that the options ask for.

    The log comes first, so that a user's callback that raises finds the step logged.

    Raises:
        UsageError: A callback is none.
    """
    for callback in training.callbacks:
        if not isinstance(callback, Callback):
            raise UsageError(
                "a callback is none",
                expected="an instance of a class derived from fxelastic.train.Callback",
                got=repr(callback),
            )
    found: list[Callback] = []
    if training.log is not None:
        log = Csv if str(training.log).endswith(".csv") else JsonLines
        found.append(log(training.log))
    if training.progress:
        found.append(ProgressBar())
    return (*found, *training.callbacks)
