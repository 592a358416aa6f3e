"""A branch without its weights."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from fxelastic.errors import UsageError
from fxelastic.spec.cache import KeptCache
from fxelastic.spec.symbols import dimension

#: The kind of the branches that are the model's own blocks.
ORIGINAL = "original"

#: The kind of branches that compute the model's result early.
EXIT = "exit"

# No comma and no space, which separate the ids in an Arch's text; no slash, as ids name files.
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@#+-]*")


@dataclass(frozen=True)
class BranchSpec:
    """A branch as the search space sees it.

    Attributes:
        id: Unique in a search space. Letters, digits and ``_.:@#+-``.
        kind: How it was made: ``original``, ``merged``, ``pruned``, …
        start: The first block that it replaces.
        stop: The block after the last one that it replaces.
        n_params: The number of parameters that it adds to the supernet.
        flops: Floating-point operations for one sample; a multiply-add counts as two. They are
            counted at the example's sizes if sizes besides the batch vary.
        flops_by_size: The same as an expression of these sizes, such as ``2048*seq+64*seq**2``;
            empty if there are none, or the expression is not known.
        cache: The caches that it extends of which it keeps a part, such as fewer heads.
    """

    id: str
    kind: str
    start: int
    stop: int
    n_params: int
    flops: int
    # Not shown, since digests of earlier releases are made of what is shown.
    flops_by_size: str = field(default="", repr=False)
    cache: tuple[KeptCache, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            UsageError: A field has the wrong type or value.
        """
        problem = id_problem(self.id)
        if problem:
            raise UsageError(
                f"invalid branch id: {problem}",
                expected="an id like 'merged@3-5'",
                got=repr(self.id),
                fix="name the branch with fxelastic.spec.branch_id(kind, start, stop)",
            )
        if not isinstance(self.kind, str) or not self.kind:
            raise UsageError(
                f"the kind of branch {self.id!r} must be a non-empty string",
                expected="a string like 'original'",
                got=repr(self.kind),
            )
        for name in ("start", "stop", "n_params", "flops"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise UsageError(
                    f"{name} of branch {self.id!r} must be at least 0",
                    expected="an integer of at least 0",
                    got=repr(value),
                )
        try:
            dimension(self.flops_by_size or "0")
        except (TypeError, AttributeError, ValueError) as e:
            raise UsageError(
                f"flops_by_size of branch {self.id!r} must be an expression of sizes",
                expected="such as '2048*seq', or an empty text",
                got=repr(self.flops_by_size),
            ) from e
        if self.start >= self.stop:
            raise UsageError(
                f"branch {self.id!r} must replace at least one block",
                expected="an interval [start, stop) with start below stop",
                got=f"[{self.start}, {self.stop})",
            )

    def flops_at(self, sizes: Mapping[str, int]) -> int:
        """Floating-point operations for one sample.

        Args:
            sizes: The size of each symbol that varies, by its name.

        Returns:
            The operations at these sizes; at the example's if the expression is not known.

        Raises:
            ValueError: A size is missing.
        """
        return dimension(self.flops_by_size).at(sizes) if self.flops_by_size else self.flops

    def __str__(self) -> str:
        return f"{self.id} [{self.start}, {self.stop})"


def branch_id(kind: str, start: int, stop: int) -> str:
    """The conventional id of a branch, made from its kind and its interval.

    Args:
        kind: The branch's kind, with a suffix if an interval has several variants: ``merged``,
            ``pruned25``.
        start: The first block that it replaces.
        stop: The block after the last one that it replaces.

    Returns:
        ``original@3`` for a single block, ``merged@3-5`` for the interval ``[3, 5)``.
    """
    return f"{kind}@{start}" if stop == start + 1 else f"{kind}@{start}-{stop}"


def id_problem(value: object) -> str:
    """The reason why a value is not a valid branch id; empty if it is valid."""
    return (
        _text_problem(value)
        if isinstance(value, str)
        else f"an id must be a string, not {type(value).__name__}"
    )


@functools.lru_cache(maxsize=2**14)  # a search makes many thousands of subnets of the same ids
def _text_problem(value: str) -> str:
    if not value:
        return "it is empty"
    if not _ID.fullmatch(value):
        return "an id has only letters, digits and _.:@#+-, and begins with a letter, digit or _"
    return ""
