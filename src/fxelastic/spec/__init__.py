"""What crosses from the machine that trains to the device: plain data, nothing but numpy.

Today that is the search space. A model is cut into N blocks in execution order; a branch stands
in for an interval ``[start, stop)`` of them; an `Arch` is a tiling of ``[0, N)`` by branches.
"""

from fxelastic.spec.arch import Arch
from fxelastic.spec.branch_spec import ORIGINAL, BranchSpec, branch_id
from fxelastic.spec.cost_window import CostWindow
from fxelastic.spec.search_space import SearchSpace

__all__ = ["ORIGINAL", "Arch", "BranchSpec", "CostWindow", "SearchSpace", "branch_id"]
