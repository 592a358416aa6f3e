"""Subnets as one ONNX model each: quickest to run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.serving.courtesy import Courtesy
from fxelastic.edge.serving.executable import Array
from fxelastic.edge.serving.preparation import Preparation
from fxelastic.spec import Arch


@dataclass(eq=False)
class AssembledExecutable:
    """A subnet in one session.

    Attributes:
        session: The onnxruntime session; several threads may run it at once.
        size_bytes: Its weights.
        owner: Told when it is closed.
    """

    session: Any
    size_bytes: int
    owner: AssembledLoader

    def run(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        """Run the subnet; see `Executable`."""
        outputs: list[Array] = self.session.run(None, inputs)
        return outputs

    def close(self) -> None:
        """Free the session."""
        self.session = None
        self.owner.account(-self.size_bytes)


@dataclass
class AssembledLoader:
    """Loads each subnet as a session of its own.

    A subnet is joined and optimised by another process, once; the session is then made from its
    files in a fraction of the time, and without holding the interpreter's lock.

    Attributes:
        bundle: The bundle.
        preparation: Makes the files.
        open_session: Makes a session from the path of a model that is already optimised.
        courtesy: Lets requests go first.
    """

    bundle: Bundle
    preparation: Preparation
    open_session: Callable[[Path], Any]
    courtesy: Courtesy = field(default_factory=Courtesy)
    _loaded_bytes: int = field(init=False, repr=False, default=0)
    _lock: threading.Lock = field(init=False, repr=False, default_factory=threading.Lock)

    def load(self, arch: Arch) -> AssembledExecutable:
        """Load a subnet; see `Loader`."""
        path = self.preparation.file(arch)
        self.courtesy.await_pause()
        session = self.open_session(path)
        size_bytes = self.added_bytes(arch)
        self.account(size_bytes)
        return AssembledExecutable(session, size_bytes, self)

    def added_bytes(self, arch: Arch) -> int:
        """The subnet's weights, in bytes: sessions share none."""
        return sum(self.bundle.segment(branch).weight_bytes for branch in arch)

    @property
    def resident_bytes(self) -> int:
        """The weights of all sessions, in bytes."""
        return self._loaded_bytes

    def account(self, n_bytes: int) -> None:
        """Note that a session came, or went."""
        with self._lock:
            self._loaded_bytes += n_bytes

    def close(self) -> None:
        """End the other process."""
        self.preparation.close()
