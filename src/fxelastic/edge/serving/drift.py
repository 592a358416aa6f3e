"""Detect that the latency table is no longer valid, and correct it while serving."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from fxelastic.edge.candidates import Candidate
from fxelastic.edge.monitoring.table_probe import Drift, DriftRule, TableProbe
from fxelastic.edge.serving.cache import SubnetCache
from fxelastic.edge.serving.catalogue import Catalogue
from fxelastic.edge.serving.events import EventLog, describe


class DriftDetector:
    """Measures the branches in use from time to time, and corrects the table after a drift.

    One measurement may be disturbed, so a drift must be measured twice in a row.

    Attributes:
        thread: The thread that measures.
    """

    def __init__(
        self,
        probe: TableProbe,
        cache: SubnetCache,
        catalogue: Catalogue,
        events: EventLog,
        on_change: Callable[[], None],
        rule: DriftRule | None = None,
        every_s: float = 300.0,
        store: Callable[[], None] | None = None,
    ) -> None:
        """Create the detector; `start` starts the thread.

        Args:
            probe: Measures branches.
            cache: Returns the subnet in use.
            catalogue: Receives the new estimates.
            events: Records drifts and failures.
            on_change: Called when estimates have changed.
            rule: Distinguishes a drift from a load.
            every_s: Time between two measurements, in seconds.
            store: Writes the corrected table; None not to write it.
        """
        self._probe = probe
        self._cache = cache
        self._catalogue = catalogue
        self._events = events
        self._on_change = on_change
        self._rule = rule or DriftRule()
        self._every_s = every_s
        self._store = store
        self._suspected = False
        self._stop = threading.Event()
        self.thread = threading.Thread(target=self._work, name="fxelastic-drift", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self.thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        if self.thread.ident is not None:
            self.thread.join()

    def check(self) -> Drift | None:
        """Measure once.

        Returns:
            The difference of the branches in use from the table; None if they can't be measured.
        """
        current = self._cache.current
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
        except Exception as e:  # noqa: BLE001 - serving continues without the check
            self._events.add("probe_failed", describe(e), arch=str(current.arch))
            return None
        return drift

    def _renew(self, drift: Drift) -> None:
        worst = max(drift.uneven, key=lambda name: abs(drift.factors[name] - 1))
        self._events.add(
            "drifted",
            f"{100 * drift.misjudged:.0f} % of the latency is misjudged; "
            f"{worst} takes {drift.factors[worst]:.2f} times its latency in the table",
            load=drift.load,
            factors={name: drift.factors[name] for name in drift.uneven},
        )
        change = self._probe.renew({name: drift.factors[name] for name in drift.uneven})

        def corrected(candidates: Sequence[Candidate]) -> Sequence[Candidate]:
            return [replace(c, ms=c.ms * change(c.arch)) for c in candidates]

        self._catalogue.update(corrected)
        candidates = self._catalogue.candidates
        for candidate in candidates:
            self._cache.update(candidate)
        self._events.add(
            "reprofiled", f"{len(drift.uneven)} branches, {len(candidates)} estimates corrected"
        )
        self._on_change()
        if self._store is not None:
            try:
                self._store()
            except Exception as e:  # noqa: BLE001 - the table in memory is already corrected
                self._events.add("store_failed", describe(e))

    def _work(self) -> None:
        while not self._stop.wait(self._every_s):
            self.check()
