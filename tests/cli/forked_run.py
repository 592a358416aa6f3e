"""``fxelastic run`` in a process that kills itself at a point, as ``kill -9`` or a power cut would.

The first argument is the point: ``export-`` before the record of the step, ``export+`` after it,
``export/`` while its process works, or ``none``. The steps are forks of this process, which has
imported torch.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO
from unittest import mock

from fxelastic.cli import main, run_child
from fxelastic.cli.run_steps import Records, Step

_END = Records.end


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def start_step(
    folder: Path, command: str, argv: Sequence[str], stdout: BinaryIO, point: str = "none"
) -> int:
    """As `run_loop.start_step`, in a fork of this process."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.close(write)
        os.dup2(read, 0)
        os.dup2(stdout.fileno(), 1)
        os.closerange(3, 256)  # else it would hold the lock of a run that was killed
        sys.argv = ["fxelastic", str(folder), command, *argv]
        code: object = 1
        try:
            run_child.main()
        except SystemExit as e:
            code = e.code
        finally:
            sys.stdout.flush()
            os._exit(code if isinstance(code, int) else 1)
    os.close(read)
    name = Path(stdout.name).stem
    status = None if point != f"{name}/" else _killed_at_work(pid, folder / name)
    if status is None:
        _, status = os.waitpid(pid, 0)
    os.close(write)
    return os.waitstatus_to_exitcode(status)


def _run(point: str) -> int:
    def end(records: Records, step: Step, seconds: float) -> None:
        if point == f"{step.name}-":
            _die()
        _END(records, step, seconds)
        if point == f"{step.name}+":
            _die()

    with (
        mock.patch("fxelastic.cli.run_loop.start_step", partial(start_step, point=point)),
        mock.patch.object(Records, "end", end),
    ):
        return main(sys.argv[1:])


def _killed_at_work(pid: int, folder: Path) -> int | None:
    """Kill this process once the step's has left a checkpoint or worked for a while."""
    until = time.monotonic() + (60 if folder.name in ("distil", "tune") else 0.7)
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        if any((folder / "checkpoints").glob("*")):
            break
        time.sleep(0.005)
    _die()
    return None


if __name__ == "__main__":
    sys.exit(_run(sys.argv.pop(1)))
