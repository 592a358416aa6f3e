"""The branch makers, by kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol

from fxelastic.errors import UsageError
from fxelastic.ir.branch import Branch, Skip
from fxelastic.ir.partition import Partition
from fxelastic.spec import ORIGINAL

ENTRY_POINT_GROUP = "fxelastic.branches"

# Entry points, so that a maker is imported when it is asked for, as those of other packages are.
BUILT_IN: tuple[EntryPoint, ...] = (
    EntryPoint(ORIGINAL, "fxelastic.branches.original:Original", ENTRY_POINT_GROUP),
    EntryPoint("merged", "fxelastic.branches.merged:Merged", ENTRY_POINT_GROUP),
    EntryPoint("pruned", "fxelastic.branches.pruned:Pruned", ENTRY_POINT_GROUP),
    EntryPoint("skip", "fxelastic.branches.skip:Identities", ENTRY_POINT_GROUP),
)

#: The kinds that a supernet has beside the originals when none are asked for.
DEFAULT_KINDS: tuple[str, ...] = tuple(e.name for e in BUILT_IN if e.name != ORIGINAL)


class BranchMaker(Protocol):
    """Makes every branch of one kind: a frozen dataclass whose fields are its options.

    All options have defaults. The contract of a branch is that of `Branch`; a branch that can't
    be made right is a `Skip` with the reason, never a wrong module.
    """

    def make(self, partition: Partition, seed: int = 0) -> Iterator[Branch | Skip]:
        """Make the branches of this kind, by interval.

        Args:
            partition: What to make them for; neither it nor the weights it refers to change.
            seed: For what starts at random; the same seed gives the same weights.

        Yields:
            Each branch, or the reason why there is none.
        """
        ...  # pragma: no cover


def branch_kinds() -> tuple[str, ...]:
    """Every known kind: the built-in ones, then those of other packages by name.

    Raises:
        UsageError: Two makers have the same kind.
    """
    return tuple(_makers())


def branch_maker(kind: str) -> Callable[..., BranchMaker]:
    """The maker class of a kind.

    Args:
        kind: A built-in kind, or the name of an entry point in the group ``fxelastic.branches``.

    Returns:
        The class; calling it with options, or none, gives a maker.

    Raises:
        UsageError: No maker has this kind, several have it, or an entry point refers to
            something else.
    """
    makers = _makers()
    if kind not in makers:
        raise UsageError(
            f"there is no branch kind {kind!r} in this release",
            expected="one of " + ", ".join(makers),
            got=repr(kind),
            fix="leave it out; other packages add kinds by an entry point in the group "
            f"{ENTRY_POINT_GROUP!r}",
        )
    maker: Any = makers[kind].load()
    if not callable(maker) or not callable(getattr(maker, "make", None)):
        raise UsageError(
            f"entry point {kind!r} does not refer to a branch maker",
            expected="a class with a method make(partition, seed)",
            got=f"{makers[kind].value!r}, a {type(maker).__name__}",
            fix=f"correct the entry point in the group {ENTRY_POINT_GROUP!r}",
        )
    result: Callable[..., BranchMaker] = maker
    return result


def _makers() -> dict[str, EntryPoint]:
    found = {entry_point.name: entry_point for entry_point in BUILT_IN}
    others = entry_points(group=ENTRY_POINT_GROUP)
    for entry_point in sorted(others, key=lambda e: (e.name, e.value)):
        # One distribution that is found twice on the path gives equal entry points.
        if found.get(entry_point.name, entry_point) != entry_point:
            raise UsageError(
                f"branch kind {entry_point.name!r} is registered twice",
                expected=f"unique names in the entry-point group {ENTRY_POINT_GROUP!r}",
                got=f"{found[entry_point.name].value!r} and {entry_point.value!r}",
                fix="rename one of them, or uninstall the package that provides it",
            )
        found[entry_point.name] = entry_point
    return found
