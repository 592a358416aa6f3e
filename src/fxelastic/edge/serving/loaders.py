"""Load subnets into memory, as one session each or as one session for each branch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fxelastic.edge.background_preparation import BackgroundPreparation
from fxelastic.edge.bundle import Bundle
from fxelastic.edge.executor import Array
from fxelastic.edge.prepared import Item
from fxelastic.edge.verified_model import VerifiedModel
from fxelastic.spec import Arch


class LoadedSubnet(Protocol):
    """A subnet in memory.

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
            An array for each of the bundle's outputs, in their order.
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

    def load(self, arch: Arch, *, urgent: bool = False) -> LoadedSubnet:
        """Load a subnet.

        Args:
            arch: The subnet.
            urgent: Whether a request waits for it. If so, it is prepared in this thread if
                necessary, otherwise in the background.
        """

    def added_bytes(self, arch: Arch) -> int:
        """Memory that loading a subnet would take now, in bytes."""

    @property
    def resident_bytes(self) -> int:
        """Size of the weights of all loaded subnets, in bytes; shared weights count once."""

    def close(self) -> None:
        """Stop background work and the loads that wait for it. Subnets may still run."""


@dataclass(eq=False)
class AssembledSubnet:
    """A subnet in one session.

    Attributes:
        session: The onnxruntime session; several threads may run it at once.
        size_bytes: Its weights.
        owner: The loader that counts them.
    """

    session: Any
    size_bytes: int
    owner: AssembledLoader

    def run(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        """Run the subnet; see `LoadedSubnet`."""
        outputs: list[Array] = self.session.run(None, inputs)
        return outputs

    def close(self) -> None:
        """Free the session."""
        self.session = None
        self.owner.account(-self.size_bytes)


@dataclass
class AssembledLoader:
    """Loads each subnet as one session, from a prepared file.

    Attributes:
        bundle: The bundle.
        preparation: Finds or prepares the files.
        open_prepared: Creates a session from an optimised model.
    """

    bundle: Bundle
    preparation: BackgroundPreparation
    open_prepared: Callable[[VerifiedModel], Any]
    _loaded_bytes: int = field(init=False, repr=False, default=0)
    _lock: threading.Lock = field(init=False, repr=False, default_factory=threading.Lock)

    def load(self, arch: Arch, *, urgent: bool = False) -> AssembledSubnet:
        """Load a subnet; see `Loader`."""
        session = self.open_prepared(self.preparation.model(Item.subnet(arch), urgent=urgent))
        size_bytes = self.added_bytes(arch)
        self.account(size_bytes)
        return AssembledSubnet(session, size_bytes, self)

    def added_bytes(self, arch: Arch) -> int:
        """The size of the subnet's weights, in bytes; sessions share no weights."""
        return sum(self.bundle.segment(branch).weight_bytes for branch in arch)

    @property
    def resident_bytes(self) -> int:
        """The weights of all sessions, in bytes."""
        return self._loaded_bytes

    def account(self, n_bytes: int) -> None:
        """Add a session's bytes, or subtract them."""
        with self._lock:
            self._loaded_bytes += n_bytes

    def close(self) -> None:
        """End the preparation of files; see `Loader`."""
        self.preparation.close()


@dataclass
class _Page:
    """A branch in memory, and the number of subnets in memory that contain it."""

    session: Any
    users: int = 0


@dataclass(frozen=True)
class _Call:
    """One branch of a subnet, ready to be run.

    Attributes:
        session: Its session.
        inputs: Names of the values that it reads.
        outputs: Names of the values that it computes.
        dropped: Names of values that no later branch reads.
    """

    session: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dropped: tuple[str, ...]


@dataclass(eq=False)
class PagedSubnet:
    """A subnet that runs branch by branch.

    Attributes:
        arch: The subnet.
        calls: Its branches in order.
        outputs: Names of the values that are the model's results.
        constants: Results that depend on no input.
        owner: The loader that shares the branches.
    """

    arch: Arch
    calls: Sequence[_Call]
    outputs: Sequence[str]
    constants: Mapping[str, Array]
    owner: PagedLoader

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
        self.owner.release(self.arch)


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
    _pages: dict[str, _Page] = field(init=False, repr=False, default_factory=dict)
    _lock: threading.Lock = field(init=False, repr=False, default_factory=threading.Lock)

    def load(self, arch: Arch, *, urgent: bool = False) -> PagedSubnet:
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
        outputs = tuple(value.name for value in self.bundle.outputs)
        return PagedSubnet(arch, calls, outputs, self.bundle.constants, self)

    def release(self, arch: Arch) -> None:
        """Page out the branches that only a closed subnet used."""
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
        """End the preparation of files; see `Loader`."""
        self.preparation.close()

    def _page_in(self, branch: str) -> Any:
        with self._lock:
            page = self._pages.get(branch)
            if page is not None:
                page.users += 1
                return page.session
        # One thread loads at a time, so no other thread creates this page now.
        prepared = self.preparation.files.read(Item.branch(branch))
        if prepared is None:
            session = self.open_branch(self.bundle.model(branch))
        else:
            session = self.open_prepared(prepared)
        with self._lock:
            self._pages[branch] = _Page(session, users=1)
        return session

    def _page_out(self, branch: str) -> None:
        with self._lock:
            page = self._pages[branch]
            page.users -= 1
            if not page.users:
                del self._pages[branch]
