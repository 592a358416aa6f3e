"""Keeping the latency table true while serving."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fxelastic.edge.serving.catalogue import Catalogue
from fxelastic.edge.serving.drift import Drift, DriftRule
from fxelastic.edge.serving.events import EventLog, describe
from fxelastic.edge.serving.ladder import Step
from fxelastic.edge.serving.residents import Residents
from fxelastic.spec import Arch


class Probe(Protocol):
    """Measures branches, and takes the result into the table.

    The contract:

    * `measure` runs in a thread of its own while requests go on, at leisure; it returns soon after
      ``stop`` is set, with what it has.
    * `renew` changes nothing that was handed out; it returns the factor by which each subnet's
      estimate changes.
    """

    def expected_ms(self, arch: Arch) -> Mapping[str, float]:
        """What the table says of a subnet's branches, in ms."""

    def measure(self, arch: Arch, stop: threading.Event) -> Mapping[str, float]:
        """Measure a subnet's branches, close to one another in time, in ms."""

    def renew(self, factors: Mapping[str, float]) -> Callable[[Arch], float]:
        """Multiply branches' latencies in the table.

        Args:
            factors: By branch id.

        Returns:
            For a subnet, the new estimate over the old one.
        """


@dataclass(frozen=True)
class Restated:
    """A subnet with a new estimate.

    Attributes:
        arch: The subnet.
        latency_ms: Its latency, in ms.
        accuracy: Its accuracy.
    """

    arch: Arch
    latency_ms: float
    accuracy: float


class Upkeep:
    """Measures the branches in use from time to time, and renews the table when it has drifted.

    One measurement may be unlucky: a drift must be seen twice in a row.

    Attributes:
        thread: The thread that measures.
    """

    def __init__(
        self,
        probe: Probe,
        residents: Residents,
        catalogue: Catalogue,
        events: EventLog,
        on_change: Callable[[], None],
        rule: DriftRule | None = None,
        every_s: float = 300.0,
        store: Callable[[], None] | None = None,
    ) -> None:
        """Prepare; `start` begins.

        Args:
            probe: Measures.
            residents: Tells which subnet is in use.
            catalogue: Gets the new estimates.
            events: Told what happens.
            on_change: Called when estimates have changed.
            rule: Tells a drift from a load.
            every_s: Time between two measurements, in seconds.
            store: Writes the renewed table; None not to.
        """
        self._probe = probe
        self._residents = residents
        self._catalogue = catalogue
        self._events = events
        self._on_change = on_change
        self._rule = rule or DriftRule()
        self._every_s = every_s
        self._store = store
        self._suspected = False
        self._stop = threading.Event()
        self.thread = threading.Thread(target=self._work, name="fxelastic-upkeep", daemon=True)

    def start(self) -> None:
        """Begin to measure."""
        self.thread.start()

    def close(self) -> None:
        """Measure no more."""
        self._stop.set()
        if self.thread.ident is not None:
            self.thread.join()

    def check(self) -> Drift | None:
        """Measure once.

        Returns:
            How the branches in use compare with the table; None when it could not be measured.
        """
        current = self._residents.current
        if current is None:
            return None
        try:
            expected_ms = self._probe.expected_ms(current.arch)
            measured_ms = self._probe.measure(current.arch, self._stop)
            if self._stop.is_set():
                return None
            drift = self._rule.compare(expected_ms, measured_ms)
            if not self._rule.drifted(drift):
                self._suspected = False
            elif not self._suspected:
                self._suspected = True
            else:
                self._suspected = False
                self._renew(drift)
        except Exception as e:  # noqa: BLE001 - the check is a help; serving goes on without it
            self._events.add("probe_failed", describe(e), arch=str(current.arch))
            return None
        return drift

    def _renew(self, drift: Drift) -> None:
        worst = max(drift.uneven, key=lambda name: abs(drift.factors[name] - 1))
        self._events.add(
            "drifted",
            f"{100 * drift.misjudged:.0f} % of the latency is misjudged; "
            f"{worst} takes {drift.factors[worst]:.2f} times what the table says",
            load=drift.load,
            factors={name: drift.factors[name] for name in drift.uneven},
        )
        change = self._probe.renew({name: drift.factors[name] for name in drift.uneven})

        def restated(entries: Sequence[Step]) -> Sequence[Step]:
            return [
                Restated(entry.arch, entry.latency_ms * change(entry.arch), entry.accuracy)
                for entry in entries
            ]

        self._catalogue.update(restated)
        entries = self._catalogue.entries
        for entry in entries:
            self._residents.restate(entry)
        self._events.add(
            "reprofiled", f"{len(drift.uneven)} branches, {len(entries)} estimates renewed"
        )
        self._on_change()
        if self._store is not None:
            try:
                self._store()
            except Exception as e:  # noqa: BLE001 - the table in memory is renewed all the same
                self._events.add("store_failed", describe(e))

    def _work(self) -> None:
        while not self._stop.wait(self._every_s):
            self.check()
