"""Let one process at a time write an output."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from fxelastic.errors import UsageError
from fxelastic.files import HeldError, held


@contextlib.contextmanager
def only_writer(path: str | os.PathLike[str] | None) -> Iterator[None]:
    """Keep other processes from writing a file or folder meanwhile.

    Args:
        path: The file or folder; None for no output.

    Raises:
        UsageError: Another process writes it; the message names the process.
    """
    with contextlib.ExitStack() as stack:
        if path is not None:
            place = Path(os.path.abspath(path))
            if not place.name:
                raise UsageError(
                    f"{path} can't be written", expected="the path of a file", got="a folder"
                )
            # The write itself says what is wrong with a folder that can't be made.
            with contextlib.suppress(OSError):
                place.parent.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(held(place))
            except HeldError as e:
                raise UsageError(
                    f"another process is writing {path}",
                    expected="one run at a time for each output",
                    got=e.holder,
                    fix="wait until it has ended, or choose another path",
                ) from e
        yield
