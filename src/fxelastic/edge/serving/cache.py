"""The subnets in memory: switch between them, run requests on them, and unload them."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass

from fxelastic.edge.candidates import Candidate
from fxelastic.edge.serving.events import EventLog, Kind
from fxelastic.edge.serving.loaders import LoadedSubnet, Loader
from fxelastic.edge.serving.policy import PastSwitch
from fxelastic.errors import FxElasticError, ServingError
from fxelastic.spec.cascade import Servable
from fxelastic.spec.resources import LATENCY

_log = logging.getLogger(__name__)

#: The number of first requests on a session, which are slow because it allocates memory.
FIRST = 3

# How long loading waits for the last requests of subnets that leave.
_PATIENCE_S = 5.0
# Policies look back ten minutes; nobody switches that often.
_KEPT = 4096


class MemoryLimitError(FxElasticError):
    """A subnet can't be loaded within the memory limit."""


class ClosedError(ServingError):
    """The runtime is closed."""

    def __init__(self) -> None:
        """Create the error."""
        fix = "make another with fxelastic.edge.serve(bundle, table, pool)"
        super().__init__("the runtime is closed", fix=fix)


@dataclass(eq=False)
class CachedSubnet:
    """A subnet in memory.

    Attributes:
        candidate: The subnet and its estimates.
        loaded: Runs it.
        users: The number of requests that run on it now.
        leaving: Whether it is being unloaded: no request may begin, and the last one closes it.
        turn: The number of the switch that last made it the subnet in use.
        n_first: The number of requests so far, counted up to `FIRST`.
    """

    candidate: Candidate
    loaded: LoadedSubnet
    users: int = 0
    leaving: bool = False
    turn: int = 0
    n_first: int = 0


class SubnetCache:
    """The subnets in memory, one of which is in use. Thread-safe.

    A subnet is closed exactly once, never while a request runs on it, and never under the lock. A
    switch is one assignment under the lock: each request runs on a single subnet.
    """

    def __init__(
        self,
        loader: Loader,
        events: EventLog,
        clock: Callable[[], float],
        limit_bytes: int | None = None,
    ) -> None:
        """Start with no subnets.

        Args:
            loader: Loads subnets.
            events: Records switches.
            clock: Returns the time in s.
            limit_bytes: Maximum memory of all subnets, including those being unloaded, in bytes;
                None for no limit.
        """
        self._loader = loader
        self._events = events
        self._clock = clock
        self._limit_bytes = limit_bytes
        self._condition = threading.Condition(threading.Lock())
        # Held while a subnet is loaded; always taken before the condition.
        self._loading = threading.Lock()
        # Held during a switch, so that the history has the order of the switches.
        self._switching = threading.Lock()
        self._all: dict[Servable, CachedSubnet] = {}
        self._leaving: list[CachedSubnet] = []
        self._current: CachedSubnet | None = None
        self._closed = False
        self._turn = 0
        self._n_acquired = 0
        self._history: deque[PastSwitch] = deque(maxlen=_KEPT)
        self._n_switches = 0

    def acquire(self) -> CachedSubnet:
        """Begin a request on the subnet in use; `release` must follow.

        Raises:
            ClosedError: The cache is closed.
        """
        with self._condition:
            subnet = self._current
            if subnet is None:
                raise ClosedError
            self._n_acquired += 1
            subnet.users += 1
            return subnet

    def acquire_other(self, tried: Collection[Servable]) -> CachedSubnet | None:
        """Begin a request on the most recently used subnet in memory that was not tried."""
        with self._condition:
            others = [subnet for arch, subnet in self._all.items() if arch not in tried]
            if not others:
                return None
            found = max(others, key=lambda subnet: subnet.turn)
            found.users += 1
            return found

    def release(self, subnet: CachedSubnet) -> None:
        """End a request."""
        with self._condition:
            subnet.users -= 1
            if not (subnet.leaving and subnet.users == 0):
                return
        self._close(subnet)

    def switch(self, candidate: Candidate, reason: str, kind: Kind = "switched") -> bool:
        """Serve the requests that begin from now on with another subnet.

        Args:
            candidate: The subnet, with its current estimates.
            reason: The reason, for people.
            kind: The kind of the event.

        Returns:
            Whether it serves now; False if it is not in memory.
        """
        with self._switching:
            before = self.current
            if before is None or not self.use(candidate):
                return False
            if before.arch == candidate.arch:
                return True
            up = candidate.ms > before.ms
            self._history.append(PastSwitch(self._clock(), up))
            self._n_switches += 1
        self._events.add(
            kind,
            f"{before.ms:.3g} → {candidate.ms:.3g} ms estimated: {reason}",
            before=str(before.arch),
            arch=str(candidate.arch),
            before_ms=before.ms,
            reason=reason,
            **{LATENCY: candidate.ms},
        )
        return True

    def use(self, candidate: Candidate) -> bool:
        """Serve with a subnet without recording a switch; False if it is not in memory."""
        with self._condition:
            subnet = self._all.get(candidate.arch)
            if subnet is None or self._closed:
                return False
            self._turn += 1
            subnet.turn = self._turn
            subnet.candidate = candidate
            self._current = subnet
            return True

    def load(
        self, candidate: Candidate, keep: Collection[Servable] = (), *, urgent: bool = False
    ) -> tuple[Servable, ...]:
        """Load a subnet into memory, without using it yet; does nothing if it is loaded.

        Args:
            candidate: The subnet.
            keep: Subnets that must not be unloaded to make room; the one in use never is.
            urgent: See `Loader`.

        Returns:
            The subnets that were unloaded.

        Raises:
            MemoryLimitError: There is no room for it.
            ClosedError: The cache is closed.
            Exception: Whatever the loader raises.
        """
        with self._loading:
            if candidate.arch in self.archs:
                return ()
            gone = self._make_room(candidate, keep)
            self._load(candidate, users=0, urgent=urgent)
            return gone

    def load_and_acquire(self, candidate: Candidate) -> CachedSubnet:
        """Load a subnet and begin a request on it, before it can be unloaded again.

        Raises:
            MemoryLimitError: There is no room for it.
            ClosedError: The cache is closed.
            Exception: Whatever the loader raises.
        """
        with self._loading:
            with self._condition:
                subnet = self._all.get(candidate.arch)
                if subnet is not None:
                    subnet.users += 1
                    return subnet
            self._make_room(candidate, ())
            return self._load(candidate, users=1, urgent=True)

    def discard(self, arch: Servable) -> bool:
        """Unload a subnet, unless it is in use; it is closed after its last request.

        Returns:
            Whether it is unloaded, or will be after its last request.
        """
        with self._condition:
            subnet = self._all.get(arch)
            if subnet is None or subnet is self._current:
                return subnet is None
            del self._all[arch]
            subnet.leaving = True
            self._leaving.append(subnet)
            if subnet.users:
                return True
        self._close(subnet)
        return True

    def keep_only(self, archs: Collection[Servable]) -> tuple[Servable, ...]:
        """Unload every subnet except these and the one in use; returns the unloaded ones."""
        with self._condition:
            current = None if self._current is None else self._current.candidate.arch
            gone = tuple(arch for arch in self._all if arch not in archs and arch != current)
        return tuple(arch for arch in gone if self.discard(arch))

    def update(self, candidate: Candidate) -> None:
        """Replace the estimates of a subnet in memory."""
        with self._condition:
            subnet = self._all.get(candidate.arch)
            if subnet is not None:
                subnet.candidate = candidate

    def close(self, timeout_s: float | None = None) -> bool:
        """Accept no further requests, wait for running ones, and close every subnet.

        Args:
            timeout_s: How long to wait; None for as long as it takes.

        Returns:
            Whether all subnets are closed. The others are closed after their last request.
        """
        with self._condition:
            self._closed = True
            self._current = None
            unused = []
            for subnet in self._all.values():
                subnet.leaving = True
                self._leaving.append(subnet)
                if not subnet.users:
                    unused.append(subnet)
            self._all.clear()
        for subnet in unused:
            self._close(subnet)
        with self._loading:
            # What was being loaded has been closed by its loading thread.
            pass
        with self._condition:
            return self._condition.wait_for(lambda: not self._leaving, timeout_s)

    @property
    def current(self) -> Candidate | None:
        """The subnet in use; None when closed, or before the first `use`."""
        with self._condition:
            return self._current.candidate if self._current is not None else None

    @property
    def archs(self) -> frozenset[Servable]:
        """The subnets in memory."""
        with self._condition:
            return frozenset(self._all)

    @property
    def resident_bytes(self) -> int:
        """The memory of all subnets, in bytes."""
        return self._loader.resident_bytes

    @property
    def n_acquired(self) -> int:
        """The number of requests begun."""
        with self._condition:
            return self._n_acquired

    @property
    def history(self) -> tuple[PastSwitch, ...]:
        """The latest switches, oldest first."""
        with self._switching:
            return tuple(self._history)

    @property
    def n_switches(self) -> int:
        """The number of switches so far."""
        return self._n_switches

    def _load(self, candidate: Candidate, *, users: int, urgent: bool) -> CachedSubnet:
        loaded = self._loader.load(candidate.arch, urgent=urgent)
        with self._condition:
            if not self._closed:
                subnet = self._all[candidate.arch] = CachedSubnet(candidate, loaded, users)
                return subnet
        loaded.close()
        raise ClosedError

    def _make_room(self, candidate: Candidate, keep: Collection[Servable]) -> tuple[Servable, ...]:
        """Unload subnets, least recently used first, until there is room for another."""
        gone: list[Servable] = []
        while self._limit_bytes is not None:
            added_bytes = self._loader.added_bytes(candidate.arch)
            taken_bytes = self._loader.resident_bytes
            if taken_bytes + added_bytes <= self._limit_bytes:
                break
            oldest = self._oldest(keep)
            if oldest is not None:
                gone.append(oldest)
                self.discard(oldest)
            elif not self._wait_for_leaving():
                raise MemoryLimitError(
                    f"no room for subnet {candidate.arch}",
                    expected=f"at most {self._limit_bytes:,} bytes in memory",
                    got=f"{taken_bytes:,} bytes in use, {added_bytes:,} more needed",
                    fix="raise memory_bytes, or serve with mode='paged'",
                )
        return tuple(gone)

    def _oldest(self, keep: Collection[Servable]) -> Servable | None:
        """The least recently used subnet that may be unloaded."""
        with self._condition:
            if self._closed:
                raise ClosedError
            spare = [
                s for arch, s in self._all.items() if s is not self._current and arch not in keep
            ]
            return min(spare, key=lambda s: s.turn).candidate.arch if spare else None

    def _wait_for_leaving(self) -> bool:
        """Wait until a subnet that is leaving is closed; False if there is none."""
        with self._condition:
            before = len(self._leaving)
            return before > 0 and self._condition.wait_for(
                lambda: len(self._leaving) < before, _PATIENCE_S
            )

    def _close(self, subnet: CachedSubnet) -> None:
        try:
            subnet.loaded.close()
        except Exception:  # noqa: BLE001 - forbidden, but no reason to fail an answered request
            _log.exception("closing subnet %s failed", subnet.candidate.arch)
        finally:
            with self._condition:
                self._leaving.remove(subnet)
                self._condition.notify_all()
