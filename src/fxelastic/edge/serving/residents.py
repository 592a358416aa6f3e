"""The subnets in memory: which one serves, who still runs on which, and what may leave."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection
from dataclasses import dataclass

from fxelastic.edge.serving.executable import Executable, Loader
from fxelastic.edge.serving.ladder import Step
from fxelastic.errors import FxElasticError, ServingError
from fxelastic.spec import Arch

_log = logging.getLogger(__name__)

# How long loading waits for the last requests of subnets that leave.
_PATIENCE_S = 5.0


class MemoryLimitError(FxElasticError):
    """A subnet can't be loaded within the memory that was granted."""


class ClosedError(ServingError):
    """The runtime was closed."""


#: Requests on a new session that are slow for reasons of its own: it allocates.
FIRST = 3


@dataclass(eq=False)
class Resident:
    """A subnet in memory.

    Attributes:
        step: The subnet and what is estimated of it.
        executable: What runs it.
        users: Requests that run on it now.
        leaving: No new request may begin; it is closed with the last user's departure.
        turn: When it last became the one in use; larger is later.
        n_first: Requests so far, counted up to `FIRST`.
    """

    step: Step
    executable: Executable
    users: int = 0
    leaving: bool = False
    turn: int = 0
    n_first: int = 0


class Residents:
    """The subnets in memory, one of which is in use; safe in any thread.

    A subnet is closed exactly once, never while a request runs on it, and never under the lock. A
    switch is one assignment under the lock: each request runs on one subnet from begin to end.
    """

    def __init__(self, loader: Loader, limit_bytes: int | None = None) -> None:
        """Begin with none.

        Args:
            loader: Loads subnets.
            limit_bytes: Memory that all of them may take, those that still leave included; None
                for no limit.
        """
        self._loader = loader
        self._limit_bytes = limit_bytes
        self._condition = threading.Condition(threading.Lock())
        # Held while a subnet is loaded; always taken before the condition.
        self._loading = threading.Lock()
        self._all: dict[Arch, Resident] = {}
        self._leaving: list[Resident] = []
        self._current: Resident | None = None
        self._closed = False
        self._turn = 0
        self._n_acquired = 0
        self._n_running = 0

    def acquire(self) -> Resident:
        """Begin a request on the subnet in use; `release` must follow.

        Raises:
            ClosedError: The residents were closed.
        """
        with self._condition:
            resident = self._current
            if resident is None:
                raise closed_error()
            self._n_acquired += 1
            return self._occupied(resident)

    def acquire_other(self, tried: Collection[Arch]) -> Resident | None:
        """Begin a request on a subnet in memory that is none of these, the last used first."""
        with self._condition:
            others = [r for arch, r in self._all.items() if arch not in tried]
            if not others:
                return None
            return self._occupied(max(others, key=lambda r: r.turn))

    def acquire_arch(self, arch: Arch) -> Resident | None:
        """Begin a request on a certain subnet; None when it is not in memory."""
        with self._condition:
            resident = self._all.get(arch)
            return None if resident is None else self._occupied(resident)

    def _occupied(self, resident: Resident) -> Resident:
        resident.users += 1
        self._n_running += 1
        return resident

    def release(self, resident: Resident) -> None:
        """End a request."""
        with self._condition:
            resident.users -= 1
            self._n_running -= 1
            if not (resident.leaving and resident.users == 0):
                return
        self._close(resident)

    def load(self, step: Step, keep: Collection[Arch] = ()) -> tuple[Arch, ...]:
        """Bring a subnet into memory, without using it yet; nothing if it is there.

        Args:
            step: The subnet.
            keep: Subnets that may not leave to make room. The one in use never does.

        Returns:
            The subnets that left.

        Raises:
            MemoryLimitError: There is no room for it.
            ClosedError: The residents were closed.
            Exception: Whatever the loader raises.
        """
        with self._loading:
            if step.arch in self.archs:
                return ()
            gone = self._make_room(step, keep)
            self._load(step, users=0)
            return gone

    def load_and_acquire(self, step: Step) -> Resident:
        """Bring a subnet into memory and begin a request on it, before it can leave again.

        Raises:
            MemoryLimitError: There is no room for it.
            ClosedError: The residents were closed.
            Exception: Whatever the loader raises.
        """
        with self._loading:
            resident = self.acquire_arch(step.arch)
            if resident is None:
                self._make_room(step, ())
                resident = self._load(step, users=1)
            return resident

    def _load(self, step: Step, users: int) -> Resident:
        executable = self._loader.load(step.arch)
        with self._condition:
            if not self._closed:
                resident = self._all[step.arch] = Resident(step, executable, users)
                self._n_running += users
                return resident
        executable.close()
        raise closed_error()

    def _make_room(self, step: Step, keep: Collection[Arch]) -> tuple[Arch, ...]:
        """Let subnets go, the longest unused first, until there is room for another."""
        gone: list[Arch] = []
        while self._limit_bytes is not None:
            added_bytes = self._loader.added_bytes(step.arch)
            taken_bytes = self._loader.resident_bytes
            if taken_bytes + added_bytes <= self._limit_bytes:
                break
            oldest = self._oldest(keep)
            if oldest is not None:
                gone.append(oldest)
                self.discard(oldest)
            elif not self._wait_for_leaving():
                raise MemoryLimitError(
                    f"no room for subnet {step.arch}",
                    expected=f"at most {self._limit_bytes:,} bytes in memory",
                    got=f"{taken_bytes:,} bytes in use, {added_bytes:,} more needed",
                    fix="raise memory_bytes, or serve with mode='paged'",
                )
        return tuple(gone)

    def _oldest(self, keep: Collection[Arch]) -> Arch | None:
        """The subnet that has not been used for the longest time, of those that may leave."""
        with self._condition:
            if self._closed:
                raise closed_error()
            spare = [
                r for arch, r in self._all.items() if r is not self._current and arch not in keep
            ]
            return min(spare, key=lambda r: r.turn).step.arch if spare else None

    def _wait_for_leaving(self) -> bool:
        """Wait until a subnet that is leaving has left; False when there is none."""
        with self._condition:
            before = len(self._leaving)
            return before > 0 and self._condition.wait_for(
                lambda: len(self._leaving) < before, _PATIENCE_S
            )

    def use(self, arch: Arch, step: Step | None = None) -> bool:
        """Serve the requests that begin from now on with a subnet in memory.

        Args:
            arch: The subnet.
            step: What is now estimated of it; None for what was when it was loaded.

        Returns:
            Whether it does; False when the subnet is not in memory (any more).
        """
        with self._condition:
            resident = self._all.get(arch)
            if resident is None or self._closed:
                return False
            self._turn += 1
            resident.turn = self._turn
            if step is not None:
                resident.step = step
            self._current = resident
            return True

    def discard(self, arch: Arch) -> bool:
        """Let a subnet go, unless it is in use; it is closed after its last request.

        Returns:
            Whether it is gone or going.
        """
        with self._condition:
            resident = self._all.get(arch)
            if resident is None or resident is self._current:
                return resident is None
            del self._all[arch]
            resident.leaving = True
            self._leaving.append(resident)
            if resident.users:
                return True
        self._close(resident)
        return True

    def keep_only(self, archs: Collection[Arch]) -> tuple[Arch, ...]:
        """Let go of every subnet but these and the one in use; returns those that go."""
        with self._condition:
            current = None if self._current is None else self._current.step.arch
            gone = tuple(arch for arch in self._all if arch not in archs and arch != current)
        return tuple(arch for arch in gone if self.discard(arch))

    def restate(self, step: Step) -> None:
        """Take a new estimate of a subnet in memory."""
        with self._condition:
            resident = self._all.get(step.arch)
            if resident is not None:
                resident.step = step

    def close(self, timeout_s: float | None = None) -> bool:
        """Begin no request any more, wait for those that run, and close every subnet.

        Args:
            timeout_s: How long to wait; None for as long as it takes.

        Returns:
            Whether all are closed. The others close with their last request.
        """
        with self._condition:
            self._closed = True
            self._current = None
            unused = []
            for resident in self._all.values():
                resident.leaving = True
                self._leaving.append(resident)
                if not resident.users:
                    unused.append(resident)
            self._all.clear()
        for resident in unused:
            self._close(resident)
        with self._loading:
            # What was being loaded has been closed by its loading thread.
            pass
        with self._condition:
            return self._condition.wait_for(lambda: not self._leaving, timeout_s)

    def _close(self, resident: Resident) -> None:
        try:
            resident.executable.close()
        except Exception:  # noqa: BLE001 - forbidden, but no reason to fail an answered request
            _log.exception("closing subnet %s failed", resident.step.arch)
        finally:
            with self._condition:
                self._leaving.remove(resident)
                self._condition.notify_all()

    @property
    def current(self) -> Step | None:
        """The subnet in use; None when closed, or before the first `use`."""
        with self._condition:
            return self._current.step if self._current is not None else None

    @property
    def archs(self) -> frozenset[Arch]:
        """The subnets in memory."""
        with self._condition:
            return frozenset(self._all)

    @property
    def idle(self) -> bool:
        """Whether no request runs just now."""
        return self._n_running == 0

    @property
    def resident_bytes(self) -> int:
        """Memory that the subnets take, in bytes."""
        return self._loader.resident_bytes

    @property
    def n_acquired(self) -> int:
        """Requests begun."""
        with self._condition:
            return self._n_acquired


def closed_error() -> ClosedError:
    """The error for a request to a runtime that was closed."""
    return ClosedError(
        "the runtime is closed", fix="make another with fxelastic.edge.serve(bundle, table, pool)"
    )
