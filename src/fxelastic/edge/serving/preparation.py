"""Subnets as files that load quickly, made by a process of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from fxelastic.edge.serving.courtesy import Courtesy
from fxelastic.edge.serving.digests import digest
from fxelastic.errors import BundleError, ServingError
from fxelastic.spec import Arch

_IDLE_S = 20.0
# Requests go first, from the process's first import on. But a subnet that a load calls for must not
# take minutes beside that load either, as it would at the lowest priority.
_NICENESS = 15
_GUARDIAN = Path(__file__).with_name("guardian.py")


class Preparation:
    """Has subnets assembled and optimised, and keeps the latest files.

    The files are in a temporary folder of their own, which ends with `close`; their digests are
    kept in memory and checked each time a file is used. The process is started when it is needed
    and ended when it has had nothing to do for a while.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 8,
        scratch: Path | None = None,
        courtesy: Courtesy | None = None,
    ) -> None:
        """Prepare to prepare.

        Args:
            folder: The bundle's folder.
            keep: How many files to keep.
            scratch: Where to put them; the system's folder for temporary files by default.
            courtesy: Stops the process while requests run; None not to.
        """
        self._folder = folder
        self._keep = keep
        self._scratch = tempfile.TemporaryDirectory(prefix="fxelastic-serving-", dir=scratch)
        # With the digest of each of its files, by name.
        self._files: dict[Arch, tuple[Path, dict[str, str]]] = {}
        self._n_made = 0
        self._lock = threading.Lock()
        self._courtesy = courtesy or Courtesy()
        self._process: subprocess.Popen[str] | None = None
        self._worker: int | None = None
        self._timer: threading.Timer | None = None
        self._closed = False

    def file(self, arch: Arch) -> Path:
        """A subnet's file; made where there is none. Called by one thread at a time.

        Raises:
            ServingError: It can't be made.
        """
        known = self._files.pop(arch, None)
        if known is None or not self._intact(*known):
            if known is not None:
                _delete(*known)
            path = Path(self._scratch.name) / f"{self._n_made}.onnx"
            self._n_made += 1
            answer = self._ask({"arch": str(arch), "path": str(path)})
            if "error" in answer:
                raise BundleError(f"subnet {arch} can't be prepared", got=answer["error"])
            known = path, answer["sha256"]
        # Last in order, so that it is the last to go.
        self._files[arch] = known
        while len(self._files) > self._keep:
            oldest = next(iter(self._files))
            _delete(*self._files.pop(oldest))
        return known[0]

    def _intact(self, path: Path, digests: dict[str, str]) -> bool:
        """Whether the files are as they were made; looked at little by little."""
        try:
            return all(
                digest(path.with_name(name), self._courtesy.pace) == expected
                for name, expected in digests.items()
            )
        except OSError:
            return False

    def close(self) -> None:
        """End the process, even at work, and delete the files."""
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
            if self._process is not None:
                self._kill(self._process)
                _end(self._process)
                self._process = None
        if self._timer is not None and self._timer is not threading.current_thread():
            self._timer.join()
        self._scratch.cleanup()

    def _ask(self, request: dict[str, str]) -> dict[str, Any]:
        with self._lock:
            if self._closed:
                raise ServingError("the runtime is closed")
            if self._timer is not None:
                self._timer.cancel()
            if self._process is None or self._process.poll() is not None:
                self._process, self._worker = self._start(), None
            process = self._process
        line = ""
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            if self._worker is None:
                self._worker = int(process.stdout.readline())
            with self._courtesy.watched(self._worker):
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
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _start(self) -> subprocess.Popen[str]:
        folder, paths = str(self._folder.absolute()), "\n".join(sys.path)
        return subprocess.Popen(
            [sys.executable, str(_GUARDIAN), folder, str(_NICENESS), paths],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def _kill(self, process: subprocess.Popen[str]) -> None:
        """End both processes, even at work."""
        # The id is the worker's as long as the guardian has not seen it end.
        if self._worker is not None and process.poll() is None:
            with suppress(OSError):
                os.kill(self._worker, getattr(signal, "SIGKILL", signal.SIGTERM))
        process.kill()

    def _retire(self, process: subprocess.Popen[str]) -> None:
        with self._lock:
            if self._process is process:
                self._process = None
                _end(process)


def _delete(path: Path, digests: dict[str, str]) -> None:
    for name in digests:
        # Some systems keep files that are mapped; they go with the folder.
        with suppress(OSError):
            path.with_name(name).unlink(missing_ok=True)


def _end(process: subprocess.Popen[str]) -> None:
    """Close the pipes, at which the process ends, and wait for that."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            # Its other end may be gone.
            with suppress(OSError):
                stream.close()
    process.wait()
