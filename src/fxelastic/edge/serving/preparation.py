"""Subnets as files that load quickly, made by a process of their own."""

from __future__ import annotations

import os
import shutil
import threading
from contextlib import suppress
from pathlib import Path

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.digests import digest
from fxelastic.edge.serving.courtesy import Courtesy
from fxelastic.edge.serving.scratch import Scratch
from fxelastic.edge.serving.worker_process import WorkerProcess
from fxelastic.errors import BundleError, ServingError
from fxelastic.spec import Arch

_IDLE_S = 20.0


class Preparation:
    """Has subnets assembled and optimised, and keeps the latest files.

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
            keep: How many subnets to keep.
            scratch: Where to put their files; the system's folder for temporary files by default.
            courtesy: Stops the process while requests run; None not to.
        """
        self._bundle = bundle
        # The process may be started when this one works in another folder.
        self._folder = bundle.path.absolute()
        self._keep = keep
        self._scratch = Scratch(scratch)
        # With the digest of each of its files, by name.
        self._files: dict[Arch, tuple[Path, dict[str, str]]] = {}
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
        path, digests = self._files.pop(arch, (None, {}))
        if path is not None and not self._intact(path, digests):
            _delete(path)
            path = None
        if path is None:
            path, digests = self._made(arch)
        # Last in order, so that it is the last to go.
        self._files[arch] = path, digests
        while len(self._files) > self._keep:
            oldest = next(iter(self._files))
            _delete(self._files.pop(oldest)[0])
        return path

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

    def _made(self, arch: Arch) -> tuple[Path, dict[str, str]]:
        try:
            path = self._scratch.path() / f"{self._n_made}.onnx"
        except OSError as e:
            raise ServingError("there is no room for temporary files", got=str(e)) from e
        self._n_made += 1
        try:
            answer = self._ready().ask(str(arch), path, self._courtesy)
            if "error" in answer:
                raise BundleError(f"subnet {arch} can't be prepared", got=answer["error"])
        except BaseException:
            _delete(path)
            raise
        finally:
            self._rest()
        return path, answer["sha256"]

    def _intact(self, path: Path, digests: dict[str, str]) -> bool:
        """Whether the files are as they were made; looked at little by little."""
        try:
            return all(
                digest(path.with_name(name), self._courtesy.pace) == expected
                for name, expected in digests.items()
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


def _delete(path: Path) -> None:
    """Delete the files of a subnet, and what is left of one that was not done."""
    for pattern in (f"{path.stem}.*", f".{path.stem}.*"):
        for file in path.parent.glob(pattern):
            # Some systems keep files that are mapped; they go with the folder.
            with suppress(OSError):
                shutil.rmtree(file) if file.is_dir() else file.unlink()
