"""States behind common prefixes, in a bounded number of bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fxelastic.edge.execution import State


@dataclass
class _Kept:
    state: State
    importance: float


class PrefixCache:
    """Keeps states by depth along the path that is being walked.

    Where not all fit, those of least importance go: importance is the latency that it takes to
    compute a state again, times how often it will be needed.

    Attributes:
        max_bytes: What the states may take; without a bound where None, no state is kept at 0.
        peak_bytes: The most that they took.
        n_dropped: How many were not kept, or not until their last use.

    Source: AdaptiveNet, Algorithm 1.
    """

    def __init__(
        self, max_bytes: int | None = None, watch: Callable[[int], None] | None = None
    ) -> None:
        """Begin empty.

        Args:
            max_bytes: See the attribute.
            watch: Told the bytes kept after every change.
        """
        self.max_bytes = max_bytes
        self.peak_bytes = 0
        self.n_dropped = 0
        self._watch = watch
        self._kept: dict[int, _Kept] = {}
        # States share values: each counts once.
        self._holders: dict[int, int] = {}
        self._bytes: dict[int, int] = {}
        self._total = 0

    @property
    def bytes(self) -> int:
        """What the states take now."""
        return self._total

    def deepest(self, depth: int) -> tuple[int, State] | None:
        """The kept state of the largest depth of at most this one."""
        at = max((d for d in self._kept if d <= depth), default=None)
        return None if at is None else (at, self._kept[at].state)

    def keep(self, depth: int, state: State, importance: float) -> None:
        """Keep a state, if it is important enough to fit."""
        self.forget(depth)
        self._add(depth, _Kept(state, importance))
        if self.max_bytes is not None:
            while self._total > self.max_bytes:
                least = min(self._kept, key=lambda d: (self._kept[d].importance, -d))
                self.forget(least)
                self.n_dropped += 1
        self.peak_bytes = max(self.peak_bytes, self._total)
        if self._watch is not None:
            self._watch(self._total)

    def forget(self, depth: int) -> None:
        """Let go of the state of a depth, if it is kept."""
        kept = self._kept.pop(depth, None)
        if kept is None:
            return
        for value in kept.state.values():
            self._holders[id(value)] -= 1
            if not self._holders[id(value)]:
                del self._holders[id(value)]
                self._total -= self._bytes.pop(id(value))

    def clear(self) -> None:
        """Let go of everything."""
        for depth in list(self._kept):
            self.forget(depth)

    def _add(self, depth: int, kept: _Kept) -> None:
        self._kept[depth] = kept
        for value in kept.state.values():
            if id(value) not in self._holders:
                self._bytes[id(value)] = value_bytes(value)
                self._total += self._bytes[id(value)]
            self._holders[id(value)] = self._holders.get(id(value), 0) + 1


def value_bytes(value: object) -> int:
    """Bytes of a value's elements."""
    n_bytes = getattr(value, "nbytes", None)
    if n_bytes is None:
        n_bytes = value.numpy().nbytes  # type: ignore[attr-defined]
    return int(n_bytes)
