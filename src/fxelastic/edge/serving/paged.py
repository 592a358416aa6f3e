"""Subnets as one session for each branch: a switch loads only what differs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.serving.courtesy import RARELY, Courtesy
from fxelastic.edge.serving.executable import Array
from fxelastic.edge.serving.prepared_pages import PreparedPages
from fxelastic.spec import Arch


@dataclass
class Page:
    """A branch in memory.

    Attributes:
        session: Its onnxruntime session.
        users: Subnets in memory that have it.
    """

    session: Any
    users: int = 0


@dataclass(frozen=True)
class _Call:
    """One branch of a subnet, ready to be run.

    Attributes:
        session: Its session.
        inputs: Names of the values that it reads.
        outputs: Names of the values that it computes.
        dropped: Values that nothing reads after it.
    """

    session: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dropped: tuple[str, ...]


@dataclass(eq=False)
class PagedExecutable:
    """A subnet that runs branch after branch.

    Attributes:
        arch: The subnet.
        calls: Its branches in order.
        outputs: Names of the values that are the model's results.
        constants: Results that depend on no input.
        owner: Told when it is closed.
    """

    arch: Arch
    calls: Sequence[_Call]
    outputs: Sequence[str]
    constants: Mapping[str, Array]
    owner: PagedLoader

    def run(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        """Run the subnet; see `Executable`."""
        values: dict[str, Array] = {**self.constants, **inputs}
        for call in self.calls:
            feeds = {name: values[name] for name in call.inputs}
            values.update(zip(call.outputs, call.session.run(None, feeds), strict=True))
            del feeds
            for name in call.dropped:
                del values[name]
        return [values[name] for name in self.outputs]

    def close(self) -> None:
        """Page out the branches that no other subnet in memory has."""
        self.calls = ()
        self.owner.release(self.arch)


@dataclass
class PagedLoader:
    """Loads branches, each once however many subnets have it (§5.3, §6).

    Attributes:
        bundle: The bundle.
        open_session: Makes a session from the path of a branch's ONNX file.
        courtesy: Lets requests go first.
        open_prepared: Makes one from the path of a file that is already optimised.
        pages: Has such files made; None to open the bundle's own.
        ahead: The branches to begin with, the likeliest first.
    """

    bundle: Bundle
    open_session: Callable[[Path], Any]
    courtesy: Courtesy = field(default_factory=Courtesy)
    open_prepared: Callable[[Path], Any] | None = None
    pages: PreparedPages | None = None
    ahead: Sequence[str] = ()
    _pages: dict[str, Page] = field(init=False, repr=False, default_factory=dict)
    _lock: threading.Lock = field(init=False, repr=False, default_factory=threading.Lock)

    def load(self, arch: Arch) -> PagedExecutable:
        """Page in the branches that are not in memory; see `Loader`."""
        specs = self.bundle.space.specs(arch)
        taken: list[str] = []
        calls: list[_Call] = []
        live = {value.name for value in self.bundle.inputs} | set(self.bundle.constants)
        try:
            for spec in specs:
                session = self._page_in(spec.id)
                taken.append(spec.id)
                segment = self.bundle.segment(spec.id)
                live.update(segment.outputs)
                dropped = tuple(
                    sorted(n for n in live if self.bundle.last_read.get(n, -1) < spec.stop)
                )
                live.difference_update(dropped)
                calls.append(_Call(session, segment.inputs, segment.outputs, dropped))
        except BaseException:
            for branch in taken:
                self._page_out(branch)
            raise
        if self.pages is not None:
            # Not before the first subnet serves.
            self.pages.want((*self.ahead, *arch))
        outputs = tuple(value.name for value in self.bundle.outputs)
        return PagedExecutable(arch, calls, outputs, self.bundle.constants, self)

    def release(self, arch: Arch) -> None:
        """A subnet has left memory."""
        for branch in arch:
            self._page_out(branch)

    def added_bytes(self, arch: Arch) -> int:
        """The weights of the branches that are not in memory, in bytes."""
        with self._lock:
            absent = [branch for branch in arch if branch not in self._pages]
        return sum(self.bundle.segment(branch).weight_bytes for branch in absent)

    @property
    def resident_bytes(self) -> int:
        """The weights of the branches in memory, in bytes."""
        with self._lock:
            return sum(self.bundle.segment(branch).weight_bytes for branch in self._pages)

    def close(self) -> None:
        """End what prepares branches; they themselves have left with the last subnet."""
        if self.pages is not None:
            self.pages.close()

    def _page_in(self, branch: str) -> Any:
        with self._lock:
            page = self._pages.get(branch)
            if page is not None:
                page.users += 1
                return page.session
        # One thread loads at a time: nobody else makes this page now.
        path = self.bundle.model_path(branch, self.courtesy.pace)
        prepared = None if self.pages is None else self.pages.path(branch)
        self.courtesy.await_pause()
        begin_s = time.monotonic()
        if prepared is None or self.open_prepared is None:
            session = self.open_session(path)
        else:
            session = self.open_prepared(prepared)
        with self._lock:
            self._pages[branch] = Page(session, users=1)
        self.courtesy.pace(time.monotonic() - begin_s, RARELY)
        return session

    def _page_out(self, branch: str) -> None:
        with self._lock:
            page = self._pages[branch]
            page.users -= 1
            if not page.users:
                del self._pages[branch]
