"""Load subnets and cascades into memory, as few sessions or as one session for each branch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from fxelastic.edge.background_preparation import BackgroundPreparation
from fxelastic.edge.bundle import Bundle
from fxelastic.edge.cascades.loaded import JoinedCascade, LoadedCascade, SessionCall
from fxelastic.edge.cascades.segments import segments_of
from fxelastic.edge.executor import Array
from fxelastic.edge.prepared import Item
from fxelastic.edge.preparing import items_of
from fxelastic.edge.verified_model import VerifiedModel
from fxelastic.spec.cascade import Cascade, Servable


class LoadedSubnet(Protocol):
    """A subnet or a cascade in memory.

    The contract:

    * Several threads may call `run` at once; it does not modify its inputs.
    * Equal inputs give equal outputs.
    * `close` is called once, after the last `run` has returned, and frees everything that the
      subnet does not share. It does not fail.
    """

    def run(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        """Run the subnet.

        Args:
            inputs: An array for each of the bundle's inputs, by name.

        Returns:
            An array for each of the bundle's outputs, in their order; `CascadeResults` for a
            cascade.
        """

    def close(self) -> None:
        """Free the subnet."""


class Loader(Protocol):
    """Loads subnets.

    The contract:

    * One thread at a time calls `load`, while requests run on other subnets. It holds the
      interpreter's lock for at most a few milliseconds, unless it is urgent. Any exception means
      that this subnet can't be loaded, and that nothing is left behind.
    * `added_bytes` is quick, and underestimates the memory that `load` allocates by at most a few
      per cent.
    """

    def load(self, arch: Servable, *, urgent: bool = False) -> LoadedSubnet:
        """Load a subnet.

        Args:
            arch: The subnet, or a cascade.
            urgent: Whether a request waits for it. If so, it is prepared in this thread if
                necessary, otherwise in the background.
        """

    def added_bytes(self, arch: Servable) -> int:
        """Memory that loading a subnet would take now, in bytes."""

    @property
    def resident_bytes(self) -> int:
        """Size of the weights of all loaded subnets, in bytes; shared weights count once."""

    def close(self) -> None:
        """Stop background work and the loads that wait for it. Subnets may still run."""


@dataclass
class _Page:
    """A session, and the number of subnets in memory that run it."""

    session: Any
    size_bytes: int
    users: int = 0


class _Pages:
    """The open sessions, each once even if several subnets in memory run it. Thread-safe."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._pages: dict[Item, _Page] = {}
        self._lock = threading.Lock()

    def take(self, items: Sequence[Item], open_session: Callable[[Item], Any]) -> list[Any]:
        """The sessions of items, opened if necessary; `release` must follow."""
        taken: list[Item] = []
        sessions = []
        try:
            for item in items:
                sessions.append(self._take(item, open_session))
                taken.append(item)
        except BaseException:
            self.release(taken)
            raise
        return sessions

    def _take(self, item: Item, open_session: Callable[[Item], Any]) -> Any:
        with self._lock:
            page = self._pages.get(item)
            if page is not None:
                page.users += 1
                return page.session
        # One thread loads at a time, so no other thread creates this page now.
        session = open_session(item)
        with self._lock:
            self._pages[item] = _Page(session, self._size_bytes(item), users=1)
        return session

    def release(self, items: Sequence[Item]) -> None:
        """Close the sessions that no other subnet in memory runs."""
        with self._lock:
            for item in items:
                page = self._pages[item]
                page.users -= 1
                if not page.users:
                    del self._pages[item]

    def added_bytes(self, items: Sequence[Item]) -> int:
        """The weights of the items whose sessions are not open, in bytes."""
        with self._lock:
            absent = [item for item in items if item not in self._pages]
        return sum(map(self._size_bytes, absent))

    @property
    def resident_bytes(self) -> int:
        """The weights of the open sessions, in bytes."""
        with self._lock:
            return sum(page.size_bytes for page in self._pages.values())

    def _size_bytes(self, item: Item) -> int:
        return sum(self._bundle.segment(branch).weight_bytes for branch in item.branches)


@dataclass(eq=False)
class AssembledSubnet:
    """A subnet in one session.

    Attributes:
        session: The onnxruntime session; several threads may run it at once.
        on_close: Called once by `close`.
    """

    session: Any
    on_close: Callable[[], None]

    def run(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        """Run the subnet; see `LoadedSubnet`."""
        outputs: list[Array] = self.session.run(None, inputs)
        return outputs

    def close(self) -> None:
        """Free the session."""
        self.session = None
        self.on_close()


@dataclass
class AssembledLoader:
    """Loads each subnet, and each cascade, as one session from a prepared file.

    Where one model can't compute a cascade (see `CascadeForm.is_joinable`), each segment has a
    session. Cascades that differ in their thresholds alone share their sessions.

    Attributes:
        bundle: The bundle.
        preparation: Finds or prepares the files.
        open_prepared: Creates a session from an optimised model.
    """

    bundle: Bundle
    preparation: BackgroundPreparation
    open_prepared: Callable[[VerifiedModel], Any]

    def __post_init__(self) -> None:
        """Start with no sessions."""
        self._pages = _Pages(self.bundle)

    def load(self, arch: Servable, *, urgent: bool = False) -> LoadedSubnet:
        """Load a subnet; see `Loader`."""
        items = items_of(self.bundle, arch, "assembled")
        sessions = self._pages.take(
            items, lambda item: self.open_prepared(self.preparation.model(item, urgent=urgent))
        )
        on_close = partial(self._pages.release, items)
        if not isinstance(arch, Cascade):
            (session,) = sessions
            return AssembledSubnet(session, on_close)
        if items[0].kind == "cascade":
            return JoinedCascade(sessions[0], arch, on_close)
        calls = []
        for segment, session in zip(segments_of(arch), sessions, strict=True):
            inputs = tuple(given.name for given in session.get_inputs())
            calls.append((SessionCall(session, inputs, segment.outputs(self.bundle)),))
        return LoadedCascade(self.bundle, arch, calls, on_close)

    def added_bytes(self, arch: Servable) -> int:
        """The weights of the sessions that are not open, in bytes."""
        return self._pages.added_bytes(items_of(self.bundle, arch, "assembled"))

    @property
    def resident_bytes(self) -> int:
        """The weights of all sessions, in bytes."""
        return self._pages.resident_bytes

    def close(self) -> None:
        """End the preparation of files; see `Loader`."""
        self.preparation.close()


@dataclass(eq=False)
class PagedSubnet:
    """A subnet that runs branch by branch.

    Attributes:
        calls: Its branches in order.
        outputs: Names of the values that are the model's results.
        constants: Results that depend on no input.
        on_close: Called once by `close`.
    """

    calls: Sequence[SessionCall]
    outputs: Sequence[str]
    constants: Mapping[str, Array]
    on_close: Callable[[], None]

    def run(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        """Run the subnet; see `LoadedSubnet`."""
        values: dict[str, Array] = {**self.constants, **inputs}
        for call in self.calls:
            feeds = {name: values[name] for name in call.inputs}
            values.update(zip(call.outputs, call.session.run(None, feeds), strict=True))
            del feeds
            for name in call.dropped:
                del values[name]
        return [values[name] for name in self.outputs]

    def close(self) -> None:
        """Page out the branches that no other subnet in memory contains."""
        self.calls = ()
        self.on_close()


@dataclass
class PagedLoader:
    """Loads branches, each once even if several subnets contain it (AdaptiveNet §5.3, §6).

    A prepared branch is opened from its optimised file, any other branch from the bundle's file.

    Attributes:
        bundle: The bundle.
        preparation: Finds the optimised files.
        open_prepared: Creates a session from an optimised branch.
        open_branch: Creates a session from a model of the bundle.
    """

    bundle: Bundle
    preparation: BackgroundPreparation
    open_prepared: Callable[[VerifiedModel], Any]
    open_branch: Callable[[VerifiedModel], Any]

    def __post_init__(self) -> None:
        """Start with no sessions."""
        self._pages = _Pages(self.bundle)

    def load(self, arch: Servable, *, urgent: bool = False) -> LoadedSubnet:
        """Page in the branches that are not in memory; see `Loader`."""
        items = items_of(self.bundle, arch, "paged")
        opened = dict(zip(arch, self._pages.take(items, self._open), strict=True))
        on_close = partial(self._pages.release, items)
        live = {value.name for value in self.bundle.inputs} | set(self.bundle.constants)
        if isinstance(arch, Cascade):
            calls = []
            for segment in segments_of(arch):
                own = [self._call(branch, opened[branch], live) for branch in segment.shared]
                if segment.leaving:
                    own.append(self._call(segment.leaving, opened[segment.leaving]))
                calls.append(own)
            return LoadedCascade(self.bundle, arch, calls, on_close)
        chain = [self._call(branch, session, live) for branch, session in opened.items()]
        outputs = tuple(value.name for value in self.bundle.outputs)
        return PagedSubnet(chain, outputs, self.bundle.constants, on_close)

    def _call(self, branch: str, session: Any, live: set[str] | None = None) -> SessionCall:
        """A call of a branch; drops from ``live`` what no branch reads after it."""
        segment = self.bundle.segment(branch)
        if live is None:
            return SessionCall(session, segment.inputs, segment.outputs)
        live.update(segment.outputs)
        last_read, stop = self.bundle.last_read, segment.spec.stop
        dropped = tuple(sorted(name for name in live if last_read.get(name, -1) < stop))
        live.difference_update(dropped)
        return SessionCall(session, segment.inputs, segment.outputs, dropped)

    def added_bytes(self, arch: Servable) -> int:
        """The weights of the branches that are not in memory, in bytes."""
        return self._pages.added_bytes(items_of(self.bundle, arch, "paged"))

    @property
    def resident_bytes(self) -> int:
        """The weights of the branches in memory, in bytes."""
        return self._pages.resident_bytes

    def close(self) -> None:
        """End the preparation of files; see `Loader`."""
        self.preparation.close()

    def _open(self, item: Item) -> Any:
        prepared = self.preparation.files.read(item)
        if prepared is None:
            return self.open_branch(self.bundle.model(item.name))
        return self.open_prepared(prepared)
