"""The process of one step of ``fxelastic run``: it ends with the process that started it."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from fxelastic.errors import UsageError
from fxelastic.spec.only_writer import only_writer

# An earlier run's last process may need this long to end.
_PATIENCE_S = 10.0


def main() -> None:
    """Run the step that the arguments describe, and exit with its code."""
    from fxelastic.cli import app, run_inputs

    threading.Thread(target=_end_with_parent, daemon=True).start()
    folder, command, *argv = sys.argv[1:]
    with _alone(Path(folder)):
        if command == run_inputs.NAME:
            code = app.run_parser(run_inputs.build_parser(), argv)
        else:
            code = app.main([command, *argv], read_recipe=False)
    sys.exit(code)


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(1)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until the step of a run that was killed has ended."""
    until = time.monotonic() + _PATIENCE_S
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(only_writer(folder / "step"))
                break
            except UsageError as e:
                if time.monotonic() > until:
                    sys.exit(f"fxelastic: error: {e}")
                time.sleep(0.1)
        yield
