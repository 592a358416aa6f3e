"""The channels of a block: which indices of which dimensions can only be removed together.

Each dimension of each tensor has a label for every index. Indices with equal labels go together:
the i-th output channel of a convolution, the i-th scale of the norm behind it, the i-th input
channel of the next convolution. `FIXED` marks indices that always stay: batch and spatial
dimensions, and the block's own input and output.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx

from fxelastic.ir.operators import operator_name

#: For each index of one dimension its label.
Labels = NDArray[np.int64]
#: The labels of a tensor, one array for each dimension.
Dims = tuple[Labels, ...]

FIXED = 0


class Channels:
    """A union-find structure over labels.

    Attributes:
        reasons: The reasons why labels were fixed, in order.
    """

    def __init__(self) -> None:
        """Start with `FIXED` alone."""
        self._parent = np.zeros(1, np.int64)
        self._size = 1
        self.reasons: dict[str, None] = {}

    def fresh(self, shape: Sequence[int]) -> Dims:
        """New labels for every index of every dimension of a tensor; a single index is fixed."""
        return tuple(self._new(int(size)) if size > 1 else fixed(int(size)) for size in shape)

    def _new(self, size: int) -> Labels:
        start, self._size = self._size, self._size + size
        if self._size > len(self._parent):
            more = max(self._size, 2 * len(self._parent)) - len(self._parent)
            stop = len(self._parent) + more
            self._parent = np.concatenate([self._parent, np.arange(len(self._parent), stop)])
        return np.arange(start, self._size, dtype=np.int64)

    def roots(self, labels: Labels) -> Labels:
        """The representative of each label."""
        found = self._parent[labels]
        while True:
            further = self._parent[found]
            if np.array_equal(further, found):
                self._parent[labels] = found
                return found
            found = further

    def unite(self, one: Labels, other: Labels) -> None:
        """Unite the labels at the same positions.

        Raises:
            ValueError: The arrays have different lengths.
        """
        if len(one) != len(other):
            raise ValueError(f"can't unite {len(one)} labels with {len(other)}")
        while True:
            x, y = self.roots(one), self.roots(other)
            differ = x != y
            if not differ.any():
                return
            # The smaller label represents both, so that FIXED wins. A label that meets several at
            # once keeps the smallest for now; the next round unites the others.
            large, small = np.maximum(x, y)[differ], np.minimum(x, y)[differ]
            np.minimum.at(self._parent, large, small)

    def unite_all(self, labels: Labels) -> None:
        """Unite all labels of an array."""
        if len(labels) > 1:
            self.unite(labels[1:], np.full(len(labels) - 1, labels[0], np.int64))

    def fix(self, labels: Labels, reason: str = "") -> None:
        """Fix labels.

        Args:
            labels: The labels to keep.
            reason: Why, for the refusal if nothing can be removed.
        """
        if (self.roots(labels) != FIXED).any():
            self.unite(labels, np.zeros(len(labels), np.int64))
            if reason:
                self.reasons.setdefault(reason)

    def fix_dims(self, dims: Iterable[Labels], reason: str = "") -> None:
        """Fix every index of these dimensions."""
        for labels in dims:
            self.fix(labels, reason)


def fixed(size: int) -> Labels:
    """The labels of a fixed dimension."""
    return np.zeros(size, np.int64)


def fixed_dims(value: Tensor) -> Dims:
    """The labels of a fixed tensor."""
    return tuple(fixed(int(size)) for size in value.shape)


@dataclass(frozen=True)
class PruningPolicy:
    """How the analysis chooses channels where an operator leaves a choice.

    Attributes:
        factor: Which factor of a split dimension keeps its labels; see `reshaping.reshaped`.
        whole_groups: Whether a grouped convolution loses whole groups, or the same number of
            channels in each group.
        approximate: Whether channels may go that a layer norm takes its statistics over. The norm
            then takes them over the other channels, so the branch only approximates the block
            without the contributions of the removed channels.
    """

    factor: int = -2
    whole_groups: bool = True
    approximate: bool = False


@dataclass
class Analysis:
    """The channels of a block, to which rules add.

    Attributes:
        module: The block, with shapes at its nodes (``meta["val"]``, numbers only).
        policy: How choices are made.
        channels: The relations between labels.
        dims: The labels of each tensor node.
        parts: The labels of each result of an operator with several.
        norms: The labels of the channels of each batch norm, by its target.
        held: Tensors that depend on the block's weights alone.
        contractions: The weights' dimensions over which products sum: (target, dimension).
        summed: The labels over which products with weights sum.
        normalised: The labels over which norms take statistics, if the policy allows that.
        caches: Names of the pasts that have as few channels as their presents.
    """

    module: fx.GraphModule
    policy: PruningPolicy = PruningPolicy()
    channels: Channels = field(default_factory=Channels)
    dims: dict[fx.Node, Dims] = field(default_factory=dict)
    parts: dict[fx.Node, list[Dims]] = field(default_factory=dict)
    norms: dict[str, Any] = field(default_factory=dict)
    held: set[fx.Node] = field(default_factory=set)
    contractions: list[tuple[str, int]] = field(default_factory=list)
    summed: list[Labels] = field(default_factory=list)
    normalised: list[Labels] = field(default_factory=list)
    caches: frozenset[str] = frozenset()

    def shape(self, node: fx.Node) -> list[int]:
        """A tensor's sizes."""
        return [int(size) for size in node.meta["val"].shape]

    def mixes(self, node: fx.Node, dims: Iterable[Labels]) -> None:
        """Fix dimensions whose channels an operator mixes: without one, the others change."""
        name = operator_name(node).removeprefix("aten.")
        self.channels.fix_dims(dims, f"{name} mixes the channels")

    def freeze(self, node: fx.Node, reason: str) -> None:
        """Fix everything that an operator reads and computes."""
        for operand in node.all_input_nodes:
            for dims in (self.dims.get(operand, ()), *self.parts.get(operand, ())):
                self.channels.fix_dims(dims, reason)
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            self.dims[node] = fixed_dims(value)
        elif isinstance(value, (tuple, list)):
            self.parts[node] = [fixed_dims(x) if isinstance(x, Tensor) else () for x in value]

    def of_copy(self, module: fx.GraphModule) -> Analysis:
        """The same analysis for a copy of the block."""
        nodes = {node.name: node for node in module.graph.nodes}
        return replace(
            self,
            module=module,
            dims={nodes[node.name]: dims for node, dims in self.dims.items()},
            parts={nodes[node.name]: parts for node, parts in self.parts.items()},
            held={nodes[node.name] for node in self.held},
        )
