"""Kinds of branches, one a file: what may stand in for an interval of a partition's blocks."""

from fxelastic.branches.registry import DEFAULT_KINDS, Kind, branch_kind, branch_kinds, is_kind

__all__ = ["DEFAULT_KINDS", "Kind", "branch_kind", "branch_kinds", "is_kind"]
