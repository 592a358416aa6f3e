"""The process that prepares subnets, as the serving process sees it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.serving.courtesy import Courtesy
from fxelastic.errors import ServingError

# Requests go first, from the process's first import on. But a subnet that a load calls for must not
# take minutes beside that load either, as it would at the lowest priority.
_NICENESS = 15
_GUARDIAN = Path(__file__).with_name("guardian.py")
# An idle process ends at once when its input does.
_PATIENCE_S = 2.0


class WorkerProcess:
    """A worker (see `fxelastic.edge.serving.worker`) and its guardian, from start to end.

    Attributes:
        worker: The id of the process that works; None before it has told.
    """

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        """Start it.

        Args:
            folder: The bundle's, as an absolute path.
            bundle: The bundle; the process refuses another one that is there now.
        """
        self.worker: int | None = None
        paths = "\n".join(sys.path)
        self._process = subprocess.Popen(
            [sys.executable, str(_GUARDIAN), str(folder), bundle.digest, str(_NICENESS), paths],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        _all.add(self)

    @property
    def running(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def ask(self, kind: str, name: str, path: Path, courtesy: Courtesy) -> dict[str, Any]:
        """Have a subnet or a branch prepared.

        Args:
            kind: ``arch`` or ``branch``.
            name: Which one.
            path: The file to write.
            courtesy: Stops the process while requests run.

        Returns:
            Its answer.

        Raises:
            ServingError: The process has ended.
        """
        request = {kind: name, "path": str(path)}
        try:
            if self.worker is None:
                self.worker = int(self._read("worker")["worker"])
            with courtesy.watched(self.worker):
                assert self._process.stdin is not None
                print(json.dumps(request), file=self._process.stdin, flush=True)
                return self._read("path", request["path"])
        except (OSError, ValueError, EOFError) as e:
            # It is gone, or was ended by another thread.
            self.kill()
            raise ServingError(
                "the process that prepares subnets has ended",
                got=f"exit code {self._process.wait()}",
                fix="look at its messages on stderr; is there enough memory?",
            ) from e

    def _read(self, key: str, value: Any = None) -> dict[str, Any]:
        """The next line with this key, of this value unless that is None.

        Others are skipped: what a library prints when it is imported, and answers that nobody has
        waited for, since Ctrl-C was pressed.
        """
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict) and key in found and value in (None, found[key]):
                return found
        raise EOFError

    def end(self) -> None:
        """Close the pipes, at which it ends, and wait for that; kill it if it does not."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                # Its other end may be gone.
                with suppress(OSError):
                    stream.close()
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()

    def kill(self) -> None:
        """End it even at work; `end` is still to be called."""
        # The id is the worker's as long as the guardian has not seen it end.
        if self.worker is not None and self._process.poll() is None:
            with suppress(OSError):
                os.kill(self.worker, getattr(signal, "SIGKILL", signal.SIGTERM))
        self._process.kill()

    def abandon(self) -> None:
        """Let go of the pipes in a forked child, where they would keep the process from ending."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None and not stream.closed:
                with suppress(OSError):
                    nothing = os.open(os.devnull, os.O_RDWR)
                    os.dup2(nothing, stream.fileno())
                    os.close(nothing)


_all: weakref.WeakSet[WorkerProcess] = weakref.WeakSet()


def _abandon_all() -> None:
    for process in list(_all):
        process.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)
