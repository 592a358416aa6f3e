"""Kinds of branches, for ``fxelastic.expand(model, kinds=(...))``, and the parts to write one.

A kind is a frozen dataclass whose fields are its options. `Merged`, `Pruned`, `Skip` and
`Separable` are the default, `Exit` makes early exits, and the others are compression operators. A
kind of your own has a method ``make(partition, seed)`` that yields branches and refusals;
`intervals` and `Interval` do what most kinds have in common:

    @dataclasses.dataclass(frozen=True)
    class Scaled:
        "Each block with weights scaled by a factor."

        factor: float = 0.5

        def make(self, partition, seed=0):
            for interval in kinds.intervals(partition, "scaled"):
                yield interval.rewrite(self._scale)

        def _scale(self, module):
            if not list(module.parameters()):
                raise kinds.NoBranchError("it has no weights")
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.mul_(self.factor)
            return f"weights times {self.factor}"
"""

from fxelastic.branches.exits import Exit
from fxelastic.branches.interval import Interval, NoBranchError, intervals
from fxelastic.branches.merged import Merged
from fxelastic.branches.operators.dense import Dense
from fxelastic.branches.operators.fire import Fire
from fxelastic.branches.operators.ghost import Ghost
from fxelastic.branches.operators.grouped import Grouped
from fxelastic.branches.operators.lowrank import LowRank
from fxelastic.branches.operators.lowres import LowRes
from fxelastic.branches.operators.separable import Separable
from fxelastic.branches.operators.tucker import Tucker
from fxelastic.branches.pruned import Pruned
from fxelastic.branches.registry import Kind
from fxelastic.branches.skip import Skip
from fxelastic.ir.branch import Branch, Refusal

__all__ = [
    "Branch",
    "Dense",
    "Exit",
    "Fire",
    "Ghost",
    "Grouped",
    "Interval",
    "Kind",
    "LowRank",
    "LowRes",
    "Merged",
    "NoBranchError",
    "Pruned",
    "Refusal",
    "Separable",
    "Skip",
    "Tucker",
    "intervals",
]
