"""What subnets of a pool would share with those chosen from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fxelastic.edge.execution import Array
from fxelastic.spec import Arch

_ROOT = 0


class Prefixes:
    """The prefixes of a pool's subnets as a tree, and which of them are computed anyway.

    Attributes:
        own: For each subnet, the cost of its branches behind the longest prefix that it shares
            with one that was added.
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
        """A subnet of the pool will be run: others need not run what they share with it."""
        for node in self._paths[i]:
            members = self._members.pop(node, None)
            if members is not None:
                self.own[members] -= self._costs[node]
