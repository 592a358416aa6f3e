"""Kinds of branches, for ``fxelastic.expand(model, kinds=(...))``, and the parts to write one.

A kind is a frozen dataclass whose fields are its options. `Merged`, `Pruned` and `Skip` come with
the package. A kind of your own has a method ``make(partition, seed)`` that yields branches and
refusals; `intervals` and `Interval` do what most kinds have in common:

    @dataclasses.dataclass(frozen=True)
    class Halved:
        "Each block with weights scaled by a factor."

        factor: float = 0.5

        def make(self, partition, seed=0):
            for interval in kinds.intervals(partition, "halved"):
                yield interval.rewrite(self._scale)

        def _scale(self, module):
            if not list(module.parameters()):
                raise kinds.NoBranchError("it has no weights")
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.mul_(self.factor)
            return f"weights times {self.factor}"
"""

from fxelastic.branches.interval import Interval, NoBranchError, intervals
from fxelastic.branches.merged import Merged
from fxelastic.branches.pruned import Pruned
from fxelastic.branches.registry import Kind
from fxelastic.branches.skip import Skip
from fxelastic.ir.branch import Branch, Refusal

__all__ = [
    "Branch",
    "Interval",
    "Kind",
    "Merged",
    "NoBranchError",
    "Pruned",
    "Refusal",
    "Skip",
    "intervals",
]
