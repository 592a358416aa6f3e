"""The kinds of branches, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol

from fxelastic.errors import UsageError
from fxelastic.ir.branch import Branch, Refusal
from fxelastic.ir.partition import Partition
from fxelastic.spec import ORIGINAL

ENTRY_POINT_GROUP = "fxelastic.branches"

# Entry points, so that a kind is imported when it is asked for, as kinds of other packages are.
BUILT_IN: tuple[EntryPoint, ...] = (
    EntryPoint(ORIGINAL, "fxelastic.branches.original:Original", ENTRY_POINT_GROUP),
    EntryPoint("merged", "fxelastic.branches.merged:Merged", ENTRY_POINT_GROUP),
    EntryPoint("pruned", "fxelastic.branches.pruned:Pruned", ENTRY_POINT_GROUP),
    EntryPoint("skip", "fxelastic.branches.skip:Skip", ENTRY_POINT_GROUP),
    EntryPoint("separable", "fxelastic.branches.operators.separable:Separable", ENTRY_POINT_GROUP),
    EntryPoint("lowrank", "fxelastic.branches.operators.lowrank:LowRank", ENTRY_POINT_GROUP),
    EntryPoint("tucker", "fxelastic.branches.operators.tucker:Tucker", ENTRY_POINT_GROUP),
    EntryPoint("grouped", "fxelastic.branches.operators.grouped:Grouped", ENTRY_POINT_GROUP),
    EntryPoint("ghost", "fxelastic.branches.operators.ghost:Ghost", ENTRY_POINT_GROUP),
    EntryPoint("fire", "fxelastic.branches.operators.fire:Fire", ENTRY_POINT_GROUP),
    EntryPoint("lowres", "fxelastic.branches.operators.lowres:LowRes", ENTRY_POINT_GROUP),
    EntryPoint("dense", "fxelastic.branches.operators.dense:Dense", ENTRY_POINT_GROUP),
    EntryPoint("exit", "fxelastic.branches.exits:Exit", ENTRY_POINT_GROUP),
)

#: The kinds that a supernet has beside the originals by default, and its most parameters then, as
#: a multiple of the model's. benchmarks/ensemble.py compares them with further kinds.
DEFAULT_KINDS: tuple[str, ...] = ("merged", "pruned", "skip", "separable")
DEFAULT_MAX_SIZE = 2.0


class Kind(Protocol):
    """A kind of branches: a frozen dataclass whose fields are its options, all with defaults.

    A kind with a field ``calibration`` receives the batches that `fxelastic.expand` is called with
    (positional and keyword arguments of some calls of the model), unless it has batches of its
    own. If it can't do without, it has a property ``needs_calibration`` that is true.
    """

    def make(self, partition: Partition, seed: int = 0) -> Iterator[Branch | Refusal]:
        """Make every branch of this kind, by interval.

        Args:
            partition: The partition to make them for. It does not change, nor do the weights that
                it refers to.
            seed: Seed of random weights; the same seed gives the same weights.

        Yields:
            Each branch, which keeps the contract of `Branch`, or a refusal with the reason if it
            can't.
        """
        ...  # pragma: no cover


def all_kinds() -> tuple[str, ...]:
    """The names of all kinds but the originals."""
    return tuple(name for name in branch_kinds() if name != ORIGINAL)


def is_kind(value: object) -> bool:
    """Whether a value can be passed as a kind."""
    return not isinstance(value, type) and callable(getattr(value, "make", None))


def branch_kinds() -> tuple[str, ...]:
    """The names of all kinds: built-in kinds, then kinds of other packages in order of their names.

    Raises:
        UsageError: Two packages register one name.
    """
    return tuple(_entries())


def branch_kind(name: str) -> Callable[..., Kind]:
    """The class of a kind.

    Args:
        name: The name of a built-in kind or of an entry point in ``fxelastic.branches``.

    Returns:
        The class; called with options, it gives a kind.

    Raises:
        UsageError: No kind or several kinds have this name, or its entry point does not refer to a
            kind.
    """
    entries = _entries()
    if name not in entries:
        raise UsageError(
            f"there is no branch kind {name!r} in this release",
            expected="one of " + ", ".join(entries),
            got=repr(name),
            fix="leave it out; other packages add kinds by an entry point in the group "
            f"{ENTRY_POINT_GROUP!r}",
        )
    found: Any = entries[name].load()
    if not callable(found) or not callable(getattr(found, "make", None)):
        raise UsageError(
            f"entry point {name!r} does not refer to a branch kind",
            expected="a class with a method make(partition, seed)",
            got=f"{entries[name].value!r}, a {type(found).__name__}",
            fix=f"correct the entry point in the group {ENTRY_POINT_GROUP!r}",
        )
    result: Callable[..., Kind] = found
    return result


def _entries() -> dict[str, EntryPoint]:
    found = {entry_point.name: entry_point for entry_point in BUILT_IN}
    others = entry_points(group=ENTRY_POINT_GROUP)
    for entry_point in sorted(others, key=lambda e: (e.name, e.value)):
        # A distribution that is on the path twice gives equal entry points.
        if found.get(entry_point.name, entry_point) != entry_point:
            raise UsageError(
                f"branch kind {entry_point.name!r} is registered twice",
                expected=f"unique names in the entry-point group {ENTRY_POINT_GROUP!r}",
                got=f"{found[entry_point.name].value!r} and {entry_point.value!r}",
                fix="rename one of them, or uninstall the package that provides it",
            )
        found[entry_point.name] = entry_point
    return found
