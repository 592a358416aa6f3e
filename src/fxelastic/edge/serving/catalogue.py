"""Which subnets there are, and which of them may be served."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Sequence

from fxelastic.edge.serving.ladder import Ladder, Step
from fxelastic.spec import Arch


class Catalogue:
    """The pool's entries less the subnets that failed; safe in any thread.

    A subnet is barred for a time, or for good. A failure to load may pass (a full memory, a file
    being replaced), so that its ban ends, and doubles with each failure in a row.
    """

    def __init__(self, entries: Iterable[Step], retry_s: float = 30.0) -> None:
        """Begin with a pool's entries.

        Args:
            entries: The subnets.
            retry_s: How long a subnet is barred by its first failure to load, in seconds.
        """
        self._retry_s = retry_s
        self._lock = threading.Lock()
        self._entries = tuple(entries)
        self._barred: dict[Arch, float] = {}
        self._failures: dict[Arch, int] = {}
        self._ladder = Ladder.of(self._entries)

    @property
    def ladder(self) -> Ladder:
        """The subnets that may be served."""
        return self._ladder

    @property
    def entries(self) -> tuple[Step, ...]:
        """All that are known, barred ones too."""
        return self._entries

    @property
    def barred(self) -> frozenset[Arch]:
        """The subnets that may not be served now."""
        with self._lock:
            return frozenset(self._barred)

    def bar(self, arch: Arch) -> None:
        """Never serve a subnet again."""
        with self._lock:
            self._barred[arch] = math.inf
            self._rebuild()

    def bar_for_now(self, arch: Arch, now_s: float) -> float:
        """Serve a subnet no more for a while; returns for how long, in seconds."""
        with self._lock:
            failures = self._failures.get(arch, 0)
            self._failures[arch] = failures + 1
            wait_s = self._retry_s * 2.0 ** min(failures, 16)
            self._barred[arch] = max(now_s + wait_s, self._barred.get(arch, 0.0))
            self._rebuild()
            return wait_s

    def loaded(self, arch: Arch) -> None:
        """A subnet was loaded: its earlier failures no longer count."""
        with self._lock:
            self._failures.pop(arch, None)

    def admit(self, now_s: float) -> None:
        """End the bans that are over."""
        with self._lock:
            over = [arch for arch, until_s in self._barred.items() if until_s <= now_s]
            for arch in over:
                del self._barred[arch]
            if over:
                self._rebuild()

    def update(self, change: Callable[[Sequence[Step]], Iterable[Step]]) -> None:
        """Replace the entries by others made of them; bans stay.

        Args:
            change: Makes them. Two changes follow each other, and one that raises, or gives what
                can't be ranked, changes nothing.
        """
        with self._lock:
            entries = tuple(change(self._entries))
            ladder = Ladder.of(entries, self._barred.keys())
            self._entries, self._ladder = entries, ladder

    def _rebuild(self) -> None:
        # One assignment: readers see the old ladder or the new one.
        self._ladder = Ladder.of(self._entries, self._barred.keys())
