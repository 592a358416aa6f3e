"""Subnets as files that load quickly, made by a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from fxelastic.edge.serving.worker import digest
from fxelastic.errors import BundleError, ServingError
from fxelastic.spec import Arch

_IDLE_S = 20.0
# Requests go first, from the process's first import on. But a subnet that a load calls for must not
# take minutes beside that load either, as it would at the lowest priority.
_NICENESS = 15
# A terminal's Ctrl-C reaches it too, but it ends when the serving process lets go of it.
_START = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "import os; getattr(os, 'nice', int)({niceness}); import sys; sys.path[:] = {path!r}; "
    "from fxelastic.edge.serving.worker import main; main({folder!r})"
)


class Preparation:
    """Has subnets assembled and optimised, and keeps the latest files.

    The files are in a temporary folder of their own, which ends with `close`; their digests are
    kept in memory and checked each time a file is used. The process is started when it is needed
    and ended when it has had nothing to do for a while.
    """

    def __init__(self, folder: Path, keep: int = 8, scratch: Path | None = None) -> None:
        """Prepare to prepare.

        Args:
            folder: The bundle's folder.
            keep: How many files to keep.
            scratch: Where to put them; the system's folder for temporary files by default.
        """
        self._folder = folder
        self._keep = keep
        self._scratch = tempfile.TemporaryDirectory(prefix="fxelastic-serving-", dir=scratch)
        self._files: dict[Arch, tuple[Path, str]] = {}
        self._n_made = 0
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._timer: threading.Timer | None = None
        self._closed = False

    def file(self, arch: Arch) -> Path:
        """A subnet's file; made where there is none. Called by one thread at a time.

        Raises:
            ServingError: It can't be made.
        """
        known = self._files.pop(arch, None)
        if known is not None:
            try:
                if digest(known[0]) == known[1]:
                    # Last in order, so that it is the last to go.
                    self._files[arch] = known
                    return known[0]
            except OSError:
                pass  # The file is gone; another one is made below.
        path = Path(self._scratch.name) / f"{self._n_made}.onnx"
        self._n_made += 1
        answer = self._ask({"arch": str(arch), "path": str(path)})
        if "error" in answer:
            raise BundleError(f"subnet {arch} can't be prepared", got=answer["error"])
        self._files[arch] = path, answer["sha256"]
        while len(self._files) > self._keep:
            oldest = next(iter(self._files))
            self._files.pop(oldest)[0].unlink(missing_ok=True)
        return path

    def close(self) -> None:
        """End the process, even at work, and delete the files."""
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
            if self._process is not None:
                self._process.kill()
                _end(self._process)
                self._process = None
        if self._timer is not None and self._timer is not threading.current_thread():
            self._timer.join()
        self._scratch.cleanup()

    def _ask(self, request: dict[str, str]) -> dict[str, str]:
        with self._lock:
            if self._closed:
                raise ServingError("the runtime is closed")
            if self._timer is not None:
                self._timer.cancel()
            if self._process is None or self._process.poll() is not None:
                self._process = self._start()
            process = self._process
        line = ""
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            print(json.dumps(request), file=process.stdin, flush=True)
            line = process.stdout.readline()
        except (OSError, ValueError):
            pass  # It is gone, or was ended by `close`: the line is missing.
        if not line:
            raise ServingError(
                "the process that prepares subnets has ended",
                got=f"exit code {process.wait()}",
                fix="look at its messages on stderr; is there enough memory?",
            )
        with self._lock:
            if not self._closed:
                self._timer = threading.Timer(_IDLE_S, self._retire, (process,))
                self._timer.daemon = True
                self._timer.start()
        answer: dict[str, str] = json.loads(line)
        return answer

    def _start(self) -> subprocess.Popen[str]:
        code = _START.format(niceness=_NICENESS, path=sys.path, folder=str(self._folder.absolute()))
        return subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def _retire(self, process: subprocess.Popen[str]) -> None:
        with self._lock:
            if self._process is process:
                self._process = None
                _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """Close the pipes, at which the process ends, and wait for that."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            # Its other end may be gone.
            with suppress(OSError):
                stream.close()
    process.wait()
