"""Subnets and branches as files that load quickly, made by a process of their own."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeAlias

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.digests import digest
from fxelastic.edge.serving.courtesy import Courtesy
from fxelastic.edge.serving.scratch import Scratch
from fxelastic.edge.serving.worker_process import WorkerProcess
from fxelastic.errors import BundleError, ServingError
from fxelastic.spec import Arch

_IDLE_S = 20.0

_State: TypeAlias = tuple[int, ...]


class _Prepared(NamedTuple):
    """What was prepared.

    Attributes:
        path: Its ONNX file.
        digests: Sha256 of each of its files, by name.
        states: How they were when they had these digests; they need not be read again.
    """

    path: Path
    digests: dict[str, str]
    states: dict[str, _State]


class Preparation:
    """Has subnets assembled and optimised, or branches optimised, and keeps the latest files.

    The files are in a temporary folder of their own, which ends with `close`; their digests are
    kept in memory and checked each time a file is used. The process is started when it is needed
    and ended when it has had nothing to do for a while.
    """

    def __init__(
        self,
        bundle: Bundle,
        keep: int = 8,
        scratch: Path | None = None,
        courtesy: Courtesy | None = None,
    ) -> None:
        """Prepare to prepare.

        Args:
            bundle: The bundle.
            keep: How many subnets or branches to keep.
            scratch: Where to put their files; the system's folder for temporary files by default.
            courtesy: Stops the process while requests run; None not to.

        Raises:
            ServingError: There is no folder for temporary files.
        """
        self._bundle = bundle
        # The process may be started when this one works in another folder.
        self._folder = bundle.path.absolute()
        self._keep = keep
        try:
            self._scratch = Scratch(scratch)
        except OSError as e:
            raise ServingError(
                "there is no folder for temporary files",
                expected="one that can be written",
                got=str(e),
                fix="name one in the variable TMPDIR, or serve in paged mode",
            ) from e
        # By kind and name.
        self._files: dict[tuple[str, str], _Prepared] = {}
        self._n_made = 0
        self._lock = threading.Lock()
        self._courtesy = courtesy or Courtesy()
        self._process: WorkerProcess | None = None
        self._timer: threading.Timer | None = None
        self._closed = False
        self._owner = os.getpid()

    def file(self, arch: Arch) -> Path:
        """A subnet's file; made where there is none. Called by one thread at a time.

        Raises:
            BundleError: It can't be made, for example since a file of the bundle is damaged.
            ServingError: The process has ended, or `close` was called.
        """
        return self._file("arch", str(arch))

    def branch_file(self, branch: str) -> Path:
        """The same for a branch."""
        return self._file("branch", branch)

    def ready_branch(self, branch: str) -> Path | None:
        """A branch's file; None where it was not made, or is damaged. In any thread."""
        found = self._files.get(("branch", branch))
        return found.path if found is not None and self._intact(found) else None

    def _file(self, kind: str, name: str) -> Path:
        found = self._files.pop((kind, name), None)
        if found is not None and not self._intact(found):
            _delete(found.path)
            found = None
        if found is None:
            found = self._made(kind, name)
        # Last in order, so that it is the last to go.
        self._files[kind, name] = found
        while len(self._files) > self._keep:
            oldest = next(iter(self._files))
            _delete(self._files.pop(oldest).path)
        return found.path

    def close(self) -> None:
        """End the process, even at work, and delete the files. May be called again."""
        if os.getpid() != self._owner:
            # A forked child: the process and the files are its parent's.
            return
        with self._lock:
            self._closed = True
            process, self._process = self._process, None
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
            if timer is not threading.current_thread():
                timer.join()
        if process is not None:
            process.kill()
            process.end()
        self._scratch.close()

    def _made(self, kind: str, name: str) -> _Prepared:
        try:
            path = self._scratch.path() / f"{self._n_made}.onnx"
        except OSError as e:
            raise ServingError("there is no room for temporary files", got=str(e)) from e
        self._n_made += 1
        try:
            answer = self._ready().ask(kind, name, path, self._courtesy)
            if "error" in answer:
                what = "subnet" if kind == "arch" else kind
                raise BundleError(f"{what} {name} can't be prepared", got=answer["error"])
            digests: dict[str, str] = answer["sha256"]
            return _Prepared(path, digests, _states(path, digests))
        except BaseException:
            _delete(path)
            raise
        finally:
            self._rest()

    def _intact(self, found: _Prepared) -> bool:
        """Whether the files are as they were made; read, little by little, if they changed."""
        try:
            if _states(found.path, found.digests) == found.states:
                return True
            return all(
                digest(found.path.with_name(name), self._courtesy.pace) == expected
                for name, expected in found.digests.items()
            )
        except OSError:
            return False

    def _ready(self) -> WorkerProcess:
        """The process; started where there is none."""
        with self._lock:
            if self._closed:
                raise ServingError("the runtime is closed")
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            gone = self._process
            if gone is None or not gone.running:
                self._process = WorkerProcess(self._folder, self._bundle)
            else:
                gone = None
            process = self._process
        if gone is not None:
            gone.end()
        assert process is not None
        return process

    def _rest(self) -> None:
        """End the process when it has nothing to do for a while."""
        with self._lock:
            if self._process is not None and self._timer is None:
                self._timer = threading.Timer(_IDLE_S, self._retire, (self._process,))
                self._timer.daemon = True
                self._timer.start()

    def _retire(self, process: WorkerProcess) -> None:
        with self._lock:
            # It may be asked again by now.
            if self._process is not process or self._timer is not threading.current_thread():
                return
            self._process = self._timer = None
        process.end()


def _states(path: Path, names: Iterable[str]) -> dict[str, _State]:
    """How files beside a path are, by name.

    Raises:
        OSError: One is gone.
    """
    found = {name: path.with_name(name).stat() for name in names}
    return {k: (v.st_ino, v.st_size, v.st_mtime_ns, v.st_ctime_ns) for k, v in found.items()}


def _delete(path: Path) -> None:
    """Delete the files of a subnet, and what is left of one that was not done."""
    for pattern in (f"{path.stem}.*", f".{path.stem}.*"):
        for file in path.parent.glob(pattern):
            # Some systems keep files that are mapped; they go with the folder.
            with suppress(OSError):
                shutil.rmtree(file) if file.is_dir() else file.unlink()
