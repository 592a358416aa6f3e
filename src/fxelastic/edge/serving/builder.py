"""Loading subnets in the background, while requests go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fxelastic.edge.serving.catalogue import Catalogue
from fxelastic.edge.serving.courtesy import Courtesy
from fxelastic.edge.serving.events import EventLog, describe
from fxelastic.edge.serving.ladder import Step
from fxelastic.edge.serving.residents import ClosedError, MemoryLimitError, Residents
from fxelastic.spec import Arch

# After loading a subnet for standby, the builder rests for this multiple of the time that it took
# in this process.
_REST = 4.0


class _Job(NamedTuple):
    """A subnet to load.

    Attributes:
        step: The subnet.
        keep: Subnets that may not leave for it.
        urgent: Requests wait for a switch to it.
    """

    step: Step
    keep: tuple[Arch, ...]
    urgent: bool


class Builder:
    """One thread that loads what is wanted, in order: the target of a switch, then a standby.

    A subnet that can't be loaded is barred for a while. What is on standby never pushes out a
    subnet that is wanted more, and is loaded at leisure: loading takes time from the requests, and
    if most of them were slowed down by it, the monitor would take it for a load.

    Attributes:
        thread: The thread that loads.
    """

    def __init__(
        self,
        residents: Residents,
        catalogue: Catalogue,
        events: EventLog,
        clock: Callable[[], float],
        on_change: Callable[[], None],
        courtesy: Courtesy,
    ) -> None:
        """Prepare; `start` begins.

        Args:
            residents: Where subnets are loaded to.
            catalogue: Told of subnets that can't be loaded.
            events: Told what happens.
            clock: Tells the time, in s.
            on_change: Called after each subnet that was loaded or failed.
            courtesy: Tells how long loading did nothing in this process.
        """
        self._residents = residents
        self._catalogue = catalogue
        self._events = events
        self._clock = clock
        self._on_change = on_change
        self._courtesy = courtesy
        self._condition = threading.Condition()
        self._target: Step | None = None
        self._standby: tuple[Step, ...] = ()
        self._refused: set[Arch] = set()
        # Not the runtime's clock: threads wait in real time.
        self._leisure_s = 0.0
        self._closed = False
        self.thread = threading.Thread(target=self._work, name="fxelastic-builder", daemon=True)

    def load_now(self, step: Step) -> None:
        """Load one for standby in the caller's thread, before `start`; it may fail, as others."""
        self._standby = (step,)
        self._load(_Job(step, (), urgent=False))

    def start(self) -> None:
        """Begin to load."""
        self.thread.start()

    def want(self, target: Step | None, standby: Sequence[Step]) -> None:
        """Say what to load; replaces what was said before.

        Args:
            target: The subnet to switch to; may push out every other one that is not in use.
            standby: Subnets to have ready, the likeliest first.
        """
        wanted = tuple(standby)
        with self._condition:
            if (target, wanted) == (self._target, self._standby):
                return
            self._target, self._standby = target, wanted
            self._refused.clear()
            self._condition.notify_all()

    def close(self) -> None:
        """Finish what is being loaded, and end."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        if self.thread.ident is not None:
            self.thread.join()

    def _work(self) -> None:
        while True:
            with self._condition:
                job = self._next()
                while job is None or not (job.urgent or self._rested()):
                    if self._closed:
                        return
                    if job is None:
                        self._trim()
                    self._condition.wait(self._rest_s() if job is not None else None)
                    job = self._next()
            begin_s, elsewhere_s = time.monotonic(), self._courtesy.elsewhere_s
            self._load(job)
            end_s, elsewhere_s = time.monotonic(), self._courtesy.elsewhere_s - elsewhere_s
            # Branches are prepared meanwhile, which is elsewhere, too.
            self._leisure_s = end_s + _REST * max(end_s - begin_s - elsewhere_s, 0.0)
            self._on_change()

    def _trim(self) -> None:
        """Let go of what is neither in use nor wanted."""
        wanted = {step.arch for step in self._standby}
        if self._target is not None:
            wanted.add(self._target.arch)
        for arch in self._residents.keep_only(wanted):
            self._events.add("unloaded", "no longer wanted", arch=str(arch))

    def _rest_s(self) -> float:
        return self._leisure_s - time.monotonic()

    def _rested(self) -> bool:
        return self._rest_s() <= 0

    def _next(self) -> _Job | None:
        """What to load now."""
        if self._closed:
            return None
        here = self._residents.archs
        unwanted = here | self._catalogue.barred | self._refused
        keep: list[Arch] = []
        if self._target is not None:
            if self._target.arch not in unwanted:
                return _Job(self._target, (), urgent=True)
            keep.append(self._target.arch)
        for step in self._standby:
            if step.arch not in unwanted:
                return _Job(step, tuple(keep), urgent=False)
            keep.append(step.arch)
        return None

    def _load(self, job: _Job) -> None:
        step = job.step
        begin_s = self._clock()
        try:
            gone = self._residents.load(step, job.keep)
        except MemoryLimitError as e:
            # Not tried again before something else is wanted.
            self._refused.add(step.arch)
            if job.urgent:
                self._catalogue.bar_for_now(step.arch, self._clock())
                self._events.add("memory_limit", describe(e), arch=str(step.arch))
        except ClosedError:
            self._closed = True
        except Exception as e:  # noqa: BLE001 - whatever a loader raises bars this subnet only
            wait_s = self._catalogue.bar_for_now(step.arch, self._clock())
            self._events.add(
                "load_failed",
                f"{describe(e)}; tried again after {wait_s:.3g} s",
                arch=str(step.arch),
            )
        else:
            self._catalogue.loaded(step.arch)
            self._events.add(
                "loaded",
                f"{step.latency_ms:.3g} ms estimated",
                arch=str(step.arch),
                duration_s=self._clock() - begin_s,
            )
            for arch in gone:
                self._events.add("unloaded", "to make room", arch=str(arch))
