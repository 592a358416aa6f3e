"""What subnets with common beginnings share: states behind prefixes, and their costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fxelastic.edge.executor import Array, State
from fxelastic.spec import Arch


@dataclass
class _Kept:
    state: State
    importance: float


class PrefixCache:
    """Keeps states by depth along the path that is being walked.

    Where not all fit, the least important are dropped: importance is the latency of computing a
    state again, times the number of its uses.

    Attributes:
        max_bytes: The most bytes of states; None for no bound, 0 to keep no state.
        peak_bytes: The most bytes that they had.
        n_dropped: The number of states that were not kept until their last use.

    Source: AdaptiveNet, Algorithm 1.
    """

    def __init__(
        self, max_bytes: int | None = None, watch: Callable[[int], None] | None = None
    ) -> None:
        """Begin empty.

        Args:
            max_bytes: See the attribute.
            watch: Called with the bytes kept after every change.
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
        """The bytes of the states now."""
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
        """Drop the state of a depth, if it is kept."""
        kept = self._kept.pop(depth, None)
        if kept is None:
            return
        for value in kept.state.values():
            self._holders[id(value)] -= 1
            if not self._holders[id(value)]:
                del self._holders[id(value)]
                self._total -= self._bytes.pop(id(value))

    def clear(self) -> None:
        """Drop all states."""
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


_ROOT = 0


class Prefixes:
    """The prefixes of a pool's subnets as a tree.

    Attributes:
        own: For each subnet, the cost of its branches behind the longest prefix that it shares
            with an added one.
    """

    def __init__(self, pool: Sequence[Arch], costs: Mapping[str, float]) -> None:
        """Build the tree; nothing is shared yet.

        Args:
            pool: The subnets.
            costs: The cost of each branch, by id.
        """
        self._children: dict[tuple[int, str], int] = {}
        self._members: dict[int, list[int]] = {}
        self._costs: dict[int, float] = {}
        self._paths: list[list[int]] = []
        self.own: Array = np.zeros(len(pool))
        for i, arch in enumerate(pool):
            node, path = _ROOT, []
            for branch in arch:
                node = self._children.setdefault((node, branch), len(self._children) + 1)
                self._costs[node] = costs[branch]
                self._members.setdefault(node, []).append(i)
                path.append(node)
            self._paths.append(path)
            self.own[i] = sum(self._costs[node] for node in path)

    def add(self, i: int) -> None:
        """Add a subnet that will be run: others need not run the prefix they share with it."""
        for node in self._paths[i]:
            members = self._members.pop(node, None)
            if members is not None:
                self.own[members] -= self._costs[node]
