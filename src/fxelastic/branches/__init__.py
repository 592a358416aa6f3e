"""Kinds of branches, one per file. A branch can replace an interval of a partition's blocks."""

from fxelastic.branches.registry import (
    DEFAULT_KINDS,
    DEFAULT_MAX_SIZE,
    Kind,
    all_kinds,
    branch_kind,
    branch_kinds,
    is_kind,
)

__all__ = [
    "DEFAULT_KINDS",
    "DEFAULT_MAX_SIZE",
    "Kind",
    "all_kinds",
    "branch_kind",
    "branch_kinds",
    "is_kind",
]
