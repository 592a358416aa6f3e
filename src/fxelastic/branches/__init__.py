"""Branch makers, one a file: what may stand in for an interval of a partition's blocks."""

from fxelastic.branches.registry import DEFAULT_KINDS, BranchMaker, branch_kinds, branch_maker

__all__ = ["DEFAULT_KINDS", "BranchMaker", "branch_kinds", "branch_maker"]
