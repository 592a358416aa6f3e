"""Run commands with faults: the n-th write, flush, rename or removal fails or kills the process.

    python -m tests.faults.injected FOLDER STEPS COMMAND...

runs a command in forked children, so that libraries are imported once: in each, one step within
FOLDER fails (the disk is full) or is the last one (the process is killed). Afterwards the command
runs again without a fault. Prints a JSON object for each child. STEPS is ``all`` or how many steps
to take, chosen by a seed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import random
import shutil
import sys
from pathlib import Path
from typing import Any

# Events of the interpreter that change a folder; flushes are patched, since they have no event.
_EVENTS = ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.truncate")
_WITH_TORCH = ("export", "train")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Fault:
    """Fails or kills at the n-th step within a folder."""

    def __init__(self, folder: Path, at: int, *, kill: bool) -> None:
        """Count steps from 1; ``at=0`` only counts."""
        self.folder, self.at, self.kill, self.n = str(folder), at, kill, 0

    def install(self) -> None:
        """Watch this process; it can't be undone."""
        flush = os.fsync

        def flushed(descriptor: int) -> None:
            self._step("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
            flush(descriptor)

        os.fsync = flushed
        sys.addaudithook(self._on_event)

    def _on_event(self, event: str, args: tuple[Any, ...]) -> None:
        if event in _EVENTS or (event == "open" and (args[2] or 0) & _WRITING):
            self._step(event, args[0])

    def _step(self, event: str, path: Any) -> None:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        if not os.path.abspath(os.fsdecode(path)).startswith(self.folder):
            return
        self.n += 1
        if self.n != self.at:
            return
        if self.kill:
            os.kill(os.getpid(), 9)
        # Removals do not need space.
        if event not in ("os.remove", "os.rmdir"):
            raise OSError(errno.ENOSPC, "No space left on device", os.fsdecode(path))


def forked(folder: Path, argv: list[str], at: int, *, kill: bool) -> tuple[int, int, str]:
    """Run a command in a child; returns its exit code, the number of steps, and its messages."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        code = 99
        fault = Fault(folder, at, kill=kill)
        messages = io.StringIO()
        try:
            from fxelastic.cli import main

            os.chdir(folder)
            with contextlib.redirect_stderr(messages), contextlib.redirect_stdout(io.StringIO()):
                fault.install()
                code = main(argv)
        finally:
            found = json.dumps([fault.n, messages.getvalue()[-4000:]])
            with os.fdopen(write, "w") as stream:
                stream.write(found)
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as stream:
        text = stream.read()
    status = os.waitpid(pid, 0)[1]
    n, said = json.loads(text) if text else (at, "")
    return os.waitstatus_to_exitcode(status), n, said


def main(template: str, steps: str, *argv: str) -> None:
    """See the module."""
    if argv[0] in _WITH_TORCH:
        import tests.preloaded  # noqa: F401
    work = Path(template).with_name(f"{Path(template).name}-work")

    def fresh() -> Path:
        shutil.rmtree(work, ignore_errors=True)
        return Path(shutil.copytree(template, work))

    code, n_steps, said = forked(fresh(), list(argv), 0, kill=False)
    good = {"steps": n_steps, "code": code, "said": said}
    print(json.dumps({**good, "files": names(work), "digests": digests(work)}))
    chosen = list(range(1, n_steps + 1))
    if steps != "all":
        rng = random.Random(" ".join(argv))
        chosen = sorted(rng.sample(chosen, min(int(steps), n_steps)))
    for at in chosen:
        for kill in (False, True):
            code, _, said = forked(fresh(), list(argv), at, kill=kill)
            again, _, more = forked(work, list(argv), 0, kill=False)
            found = {"at": at, "kill": kill, "code": code, "said": said}
            left = {"files": names(work), "digests": digests(work)}
            print(json.dumps({**found, "again": again, "more": more, **left}))


def names(folder: Path) -> list[str]:
    """The files and folders in a folder, by their relative paths."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of weights or operators, by its relative path."""
    kept = (path for path in folder.rglob("*") if path.suffix in (".onnx", ".safetensors"))
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(kept)
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
