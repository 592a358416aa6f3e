"""Run commands with faults: the n-th write, flush, rename or removal fails or kills the process.

    python -m tests.faults.injected FOLDER STEPS COMMAND...

runs a command in forked children, so that libraries are imported once: in each, one step within
FOLDER fails (the disk is full) or is the last one (the process is killed). Afterwards the command
runs again without a fault. Prints a JSON object for each child. STEPS is ``all``, or how many steps
to take, chosen by a seed. With ``walk-N``, the command runs again and again in one folder, each
time with a fault about N steps on, until it ends well: a command of many parts makes each of them
a few times, instead of once for each fault.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

# Events of the interpreter that change a folder; flushes are patched, since they have no event.
_EVENTS = ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.truncate")
_WITH_TORCH = ("export", "train", "run")
_MOST_RUNS = 40
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Fault:
    """Fails or kills at the n-th step within a folder."""

    def __init__(self, folder: Path, fail_at: int, kill_at: int) -> None:
        """Count steps from 1; 0 is for no fault. Forks count together."""
        self.folder, self.fail_at, self.kill_at = str(folder), fail_at, kill_at
        self._count = mmap.mmap(-1, 8)

    @property
    def n(self) -> int:
        """The number of steps so far."""
        return int.from_bytes(self._count[:8], "little")

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
        n = self.n + 1
        self._count[:8] = n.to_bytes(8, "little")
        if n == self.kill_at:
            os.kill(os.getpid(), 9)
        # Removals do not need space.
        if n == self.fail_at and event not in ("os.remove", "os.rmdir"):
            raise OSError(errno.ENOSPC, "No space left on device", os.fsdecode(path))


def forked(
    folder: Path, argv: list[str], fail_at: int = 0, kill_at: int = 0
) -> tuple[int, int, str]:
    """Run a command in a child; returns its exit code, the number of steps, and its messages."""
    fault = Fault(folder, fail_at, kill_at)
    sys.stdout.flush()
    with tempfile.TemporaryFile() as messages:
        pid = os.fork()
        if not pid:
            code = 99
            try:
                from fxelastic.cli import main
                from tests.cli import forked_run

                os.chdir(folder)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                os.dup2(messages.fileno(), 2)
                fault.install()
                with mock.patch("fxelastic.cli.run_loop.start_step", forked_run.start_step):
                    code = main(argv)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        status = os.waitpid(pid, 0)[1]
        messages.seek(0)
        said = messages.read()[-4000:].decode(errors="replace")
    return os.waitstatus_to_exitcode(status), fault.n, said


def main(template: str, steps: str, *argv: str) -> None:
    """See the module."""
    if argv[0] in _WITH_TORCH:
        import tests.preloaded  # noqa: F401
    work = Path(template).with_name(f"{Path(template).name}-work")

    def fresh() -> Path:
        shutil.rmtree(work, ignore_errors=True)
        return Path(shutil.copytree(template, work))

    code, n_steps, said = forked(fresh(), list(argv))
    good = {"steps": n_steps, "code": code, "said": said}
    print(json.dumps({**good, "files": names(work), "digests": digests(work)}))
    chosen = list(range(1, n_steps + 1))
    rng = random.Random(" ".join(argv))
    if steps.startswith("walk-"):
        walk(fresh(), list(argv), int(steps.removeprefix("walk-")), rng)
        return
    if steps != "all":
        chosen = sorted(rng.sample(chosen, min(int(steps), n_steps)))
    for at in chosen:
        for kill in (False, True):
            faults = {"kill_at" if kill else "fail_at": at}
            code, _, said = forked(fresh(), list(argv), **faults)
            again, _, more = forked(work, list(argv))
            found = {"at": at, "kill": kill, "code": code, "said": said}
            left = {"files": names(work), "digests": digests(work)}
            print(json.dumps({**found, "again": again, "more": more, **left}))


def walk(work: Path, argv: list[str], stride: int, rng: random.Random) -> None:
    """Run a command with fault after fault, until it ends well; prints the last one."""
    codes: list[int] = []
    said = []
    while (not codes or codes[-1]) and len(codes) < _MOST_RUNS:
        # Longer and longer: a part of more steps than the stride would never end.
        most = stride + len(codes) * stride // 8
        # Some steps may fail, such as making a lock; the process is killed later then.
        fail_at = rng.randrange(1, most) if len(codes) % 2 else 0
        code, _, more = forked(work, argv, fail_at, fail_at + rng.randrange(1, most))
        codes.append(code)
        said.append(more)
    found = {"at": stride, "kill": False, "code": codes[-1], "codes": codes, "again": codes[-1]}
    left = {"files": names(work), "digests": digests(work)}
    print(json.dumps({**found, "said": "".join(said), "more": "", **left}))


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
