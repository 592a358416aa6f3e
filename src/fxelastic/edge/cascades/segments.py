"""The parts of a cascade between two exits, each of which runs as one model."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from fxelastic.edge.assembly import join_part
from fxelastic.edge.bundle import Bundle
from fxelastic.spec.cascade import Cascade

_LEAVES, _AND = ";", ","


@dataclass(frozen=True)
class CascadeSegment:
    """Branches that a cascade runs without a decision in between.

    ``str(segment)`` is ``original@0,original@1;exit@2``; `CascadeSegment.parse` reads that text.

    Attributes:
        shared: The branches that the later segments continue from; the last ones in the cascade's
            last segment.
        leaving: The exit at which samples may leave; empty in the last segment.
    """

    shared: tuple[str, ...]
    leaving: str = ""

    @property
    def branches(self) -> tuple[str, ...]:
        """All of its branches, in the order in which they run."""
        return (*self.shared, self.leaving) if self.leaving else self.shared

    def kept(self, bundle: Bundle) -> tuple[str, ...]:
        """The values after its shared branches that later branches may read, of those it computes.

        Args:
            bundle: The bundle.
        """
        if not self.leaving:
            return ()
        position = bundle.segment(self.leaving).spec.start
        names = [name for branch in self.shared for name in bundle.segment(branch).outputs]
        return tuple(name for name in names if bundle.last_read.get(name, -1) >= position)

    def results(self, bundle: Bundle) -> tuple[str, ...]:
        """The results of the model that it computes.

        Args:
            bundle: The bundle.
        """
        last = self.shared if not self.leaving else (self.leaving,)
        computed = {name for branch in last for name in bundle.segment(branch).outputs}
        return tuple(dict.fromkeys(v.name for v in bundle.outputs if v.name in computed))

    def outputs(self, bundle: Bundle) -> tuple[str, ...]:
        """The names of the values that its model returns.

        Args:
            bundle: The bundle.
        """
        return (*self.kept(bundle), *self.results(bundle))

    def model(self, bundle: Bundle) -> onnx.ModelProto:
        """The segment as one model, whose inputs and outputs are values of the bundle.

        Args:
            bundle: The bundle.

        Raises:
            UsageError: The bundle has no such branch.
            BundleError: A file of the bundle is damaged.
        """
        return join_part(bundle, self.branches, self.outputs(bundle))

    def __str__(self) -> str:
        return _AND.join(self.shared) + (f"{_LEAVES}{self.leaving}" if self.leaving else "")

    @classmethod
    def parse(cls, text: str) -> CascadeSegment:
        """Read the text of a segment."""
        shared, _, leaving = text.partition(_LEAVES)
        return cls(tuple(filter(None, shared.split(_AND))), leaving)


def segments_of(cascade: Cascade) -> tuple[CascadeSegment, ...]:
    """The segments of a cascade, in the order in which they run."""
    *early, last = cascade.segments
    return (*(CascadeSegment(names[:-1], names[-1]) for names in early), CascadeSegment(last))
