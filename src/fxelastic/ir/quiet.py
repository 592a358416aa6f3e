"""Context managers around long torch calls: silence output, pause garbage collection."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import warnings
from collections.abc import Iterator

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def quiet(*names: str, stdout: bool = False) -> Iterator[None]:
    """Silence warnings, stderr and some loggers.

    After a failure, torch prints partial graphs, which say nothing to a user; its error has the
    cause. The printed text goes to the debug log.

    Args:
        names: Names of the loggers.
        stdout: Whether to silence stdout as well.
    """
    loggers = [logging.getLogger(name) for name in names]
    levels = [log.level for log in loggers]
    printed = io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(contextlib.redirect_stderr(printed))
        if stdout:
            stack.enter_context(contextlib.redirect_stdout(printed))
        warnings.simplefilter("ignore")
        try:
            for log in loggers:
                log.setLevel(logging.CRITICAL)
            yield
        finally:
            for log, level in zip(loggers, levels, strict=True):
                log.setLevel(level)
            if printed.getvalue().strip():
                logger.debug("torch printed: %s", printed.getvalue())


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Disable cyclic garbage collection, which would traverse a growing graph repeatedly.

    The objects stay alive until the end, so a collection finds nothing. For a partition of 16,000
    operators it took a third of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
