"""Prepare missing files for serving in the background, in one process of low priority.

The process reads one JSON object per line, ``{"kind": …, "name": …}`` as in `Item`, prepares the
item, and answers ``{"name": …, "error": text}``, where the text is empty on success. It ends when
its input ends, and does not outlive the process that serves, even in the middle of an item.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from fxelastic.edge.bundle import reopen
from fxelastic.edge.prepared import Item, PreparedFiles
from fxelastic.edge.verified_model import VerifiedModel
from fxelastic.errors import BundleError, ServingError

_START = (
    "import sys; sys.path[:] = sys.argv[4].split('\\n'); "
    f"from {__name__} import main; main(*sys.argv[1:4])"
)
# Not the lowest priority (SCHED_IDLE): beside programs that take all cores, it would get 0.3 % of a
# core, and a subnet that their load calls for would take minutes.
_NICENESS = 15
# How long the process waits for more to do.
_LINGER_S = 5.0
# An idle process ends at once with its input.
_PATIENCE_S = 2.0
# How often the process looks whether its parent is alive.
_WATCH_S = 0.25
# A damaged file is noticed when it is read, and made again.
_READS = 3


class BackgroundPreparation:
    """Finds prepared files, and lets another process prepare the missing ones.

    The process starts when a file is missing and ends when there is nothing left to prepare.
    Thread-safe.

    Attributes:
        files: The prepared files.
    """

    def __init__(self, files: PreparedFiles) -> None:
        """Create the object without starting a process.

        Args:
            files: The prepared files. If their folder is not writable, missing files are written
                to a temporary folder, which `close` deletes.
        """
        self.files = files
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if not files.is_writable():
            # If a temporary folder can't be created either, preparing the first file fails.
            with suppress(OSError):
                self._temporary = tempfile.TemporaryDirectory(
                    prefix="fxelastic-prepared-", ignore_cleanup_errors=True
                )
                files.spare = Path(self._temporary.name)
        self._condition = threading.Condition()
        self._wanted: list[Item] = []
        self._errors: dict[Item, str] = {}
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[str] | None = None
        self._closed = False

    def want(self, items: Iterable[Item]) -> None:
        """Request items to be prepared one by one, without waiting for them."""
        with self._condition:
            self._wanted += [item for item in items if item not in self._wanted]
            self._start()

    def file(self, item: Item, *, urgent: bool = False) -> Path:
        """The prepared file of an item; waits for it if it is missing.

        Args:
            item: A subnet or a branch.
            urgent: Prepare it in this thread, at this thread's priority.

        Raises:
            BundleError: It can't be prepared.
            ServingError: The files can't be written, the process ended, or `close` was called.
        """
        found = self.files.find(item)
        if found is None and urgent:
            found = self.files.make(item)
        while found is None:
            with self._condition:
                if self._closed:
                    raise ServingError("the runtime is closed")
                self._errors.pop(item, None)
                self._wanted = [item, *(other for other in self._wanted if other != item)]
                self._start()
                self._condition.wait_for(lambda: self._closed or item not in self._wanted)
                error = self._errors.pop(item, "")
            if error:
                raise BundleError(f"{item.kind} {item.name} can't be prepared", got=error)
            found = self.files.find(item)
        return found

    def model(self, item: Item, *, urgent: bool = False) -> VerifiedModel:
        """The verified model of an item, for one session; otherwise as `file`."""
        for _ in range(_READS):
            self.file(item, urgent=urgent)
            found = self.files.read(item)
            if found is not None:
                return found
        raise BundleError(
            f"the prepared files of {item.kind} {item.name} are replaced while they are read",
            fix=f"let no other program write to {self.files.target}",
        )

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until there is nothing left to prepare; returns False on a timeout."""
        with self._condition:
            return self._condition.wait_for(lambda: not self._wanted, timeout_s)

    def close(self) -> None:
        """End the process immediately, even while it works. May be called again."""
        with self._condition:
            self._closed = True
            self._wanted.clear()
            thread, process = self._thread, self._process
            self._condition.notify_all()
        if process is not None:
            # An unfinished file is still under a temporary name.
            process.kill()
        if thread is not None:
            thread.join()
        if self._temporary is not None:
            self._temporary.cleanup()

    @property
    def keeps_files(self) -> bool:
        """Whether the files are kept for the next runtime."""
        return self._temporary is None

    def _start(self) -> None:
        # The thread may wait for more to do.
        self._condition.notify_all()
        if self._thread is None and self._wanted and not self._closed:
            self._thread = threading.Thread(
                target=self._work, name="fxelastic-preparation", daemon=True
            )
            self._thread.start()

    def _work(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._wanted or self._closed, _LINGER_S)
                item = None if self._closed or not self._wanted else self._wanted[0]
            if item is None:
                process, self._process = self._process, None
                if process is not None:
                    _end(process)
                with self._condition:
                    if self._closed or not self._wanted:
                        self._thread = None
                        return
                continue
            error = "" if self.files.find(item) is not None else self._ask(item)
            with self._condition:
                if error:
                    self._errors[item] = error
                if item in self._wanted:
                    self._wanted.remove(item)
                self._condition.notify_all()

    def _ask(self, item: Item) -> str:
        """Let the process prepare an item; returns an error message, empty on success."""
        try:
            process = self._running()
            assert process.stdin is not None
            print(json.dumps(item._asdict()), file=process.stdin, flush=True)
            return str(_answer(process, item.name)["error"])
        except (OSError, ValueError, EOFError) as e:
            gone, self._process = self._process, None
            if gone is None:
                return f"no process can be started: {e}"
            _end(gone)
            return f"the process that prepares ended with exit code {gone.returncode}"

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            bundle = self.files.bundle
            # The process may be started when this one works in another folder.
            where = (os.path.abspath(bundle.path), bundle.digest, str(self.files.target))
            process = subprocess.Popen(
                [sys.executable, "-c", _START, *where, "\n".join(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                # A terminal's Ctrl-C is not for it.
                start_new_session=True,
            )
            _lower_priority(psutil.Process(process.pid))
            with self._condition:
                self._process = process
                if self._closed:
                    process.kill()
        return self._process


def _answer(process: subprocess.Popen[str], name: str) -> dict[str, Any]:
    """The process's answer about an item; skips what libraries print.

    Raises:
        EOFError: The process has ended.
    """
    assert process.stdout is not None
    for line in process.stdout:
        with suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict) and found.get("name") == name:
                return found
    raise EOFError


def _end(process: subprocess.Popen[str]) -> None:
    """Let a process end with its input, or kill it, and wait for it."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()
    try:
        process.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main(folder: str, digest: str, prepared: str) -> None:
    """Prepare the items that stdin names, until it ends.

    Args:
        folder: The bundle's folder.
        digest: The digest of the served bundle; the folder may contain another one by now.
        prepared: The folder for the files.
    """
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    files: PreparedFiles | None = None
    for line in sys.stdin:
        item = Item(**json.loads(line))
        error = ""
        try:
            files = files or PreparedFiles(reopen(Path(folder), digest), Path(prepared))
            files.make(item)
        except Exception as e:  # noqa: BLE001 - whatever it is, the serving process reports it
            error = f"{type(e).__name__}: {e}"
        try:
            print(json.dumps({"name": item.name, "error": error}), flush=True)
        except BrokenPipeError:
            os._exit(0)  # the serving process has ended; a usual exit would flush once more


def _end_with(parent: int) -> None:
    """End this process soon after its parent, which may be killed while a large item is prepared.

    What is half written, the next process that prepares removes.
    """
    while os.getppid() == parent:
        time.sleep(_WATCH_S)
    os._exit(1)


def _lower_priority(process: psutil.Process) -> None:
    """Let requests have the processor first, from the process's first import on."""
    with suppress(psutil.Error):
        if hasattr(psutil, "IDLE_PRIORITY_CLASS"):
            process.nice(psutil.IDLE_PRIORITY_CLASS)
        else:
            process.nice(max(process.nice(), _NICENESS))
    # Linux may share processors among sessions first; then only a session's priority counts.
    with suppress(OSError):
        Path(f"/proc/{process.pid}/autogroup").write_text(str(_NICENESS))
