"""Plain data that the training machine writes and the device reads; needs numpy only.

A model is cut into N blocks in execution order; a branch replaces an interval ``[start, stop)`` of
them; an `Arch` is a tiling of ``[0, N)`` by branches; a `SearchSpace` holds all branches.
"""

from fxelastic.spec.arch import Arch
from fxelastic.spec.branch_spec import EXIT, ORIGINAL, BranchSpec, branch_id
from fxelastic.spec.cost_window import CostWindow
from fxelastic.spec.search_space import SearchSpace

__all__ = ["EXIT", "ORIGINAL", "Arch", "BranchSpec", "CostWindow", "SearchSpace", "branch_id"]
