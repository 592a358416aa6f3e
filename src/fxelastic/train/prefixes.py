"""Subnets as a tree of their common beginnings (§5.2)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from fxelastic.spec import Arch


@dataclass
class Prefix:
    """A beginning that one or more subnets have in common.

    Attributes:
        following: The prefixes that are one branch longer, by that branch's id.
        arch: The subnet that ends here; None where none does.
    """

    following: dict[str, Prefix] = field(default_factory=dict)
    arch: Arch | None = None

    @classmethod
    def tree(cls, archs: Iterable[Arch]) -> Prefix:
        """The tree of these subnets; its root is the empty beginning."""
        root = cls()
        for arch in archs:
            node = root
            for name in arch:
                node = node.following.setdefault(name, cls())
            node.arch = arch
        return root

    def __len__(self) -> int:
        """Branches that are run to run every subnet once."""
        return sum(1 + len(node) for node in self.following.values())
