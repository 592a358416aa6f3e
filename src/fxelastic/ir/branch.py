"""A branch, which stands in for an interval of blocks, and the refusal where none can."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxelastic.ir.graph_modules import FrozenGraphModule
from fxelastic.spec import BranchSpec
from fxelastic.spec.cache import KeptCache


@dataclass(frozen=True, eq=False)
class Branch:
    """A module that computes what an interval of blocks computes for the other blocks.

    The contract:

    - ``module(*inputs, *context)`` returns the tensor of ``outputs``, or a tuple of tensors if
      there are several, with the shapes and dtypes that the interval's own blocks give.
    - ``inputs`` and ``context`` are values of the partition's graph that are live before the
      interval: the model's inputs or values computed before the interval, which a block of the
      interval or a later block reads.
    - ``outputs`` are exactly the values that the interval computes for later blocks and for the
      model's result, so that any branch can follow. Those of ``presents`` come last.
    - A cache of ``spec.cache`` is smaller than the model's: the module takes and returns only the
      indices that it keeps.
    - The module writes to none of its operands.

    Attributes:
        spec: Its id, kind, interval and size.
        module: The module; a `FrozenGraphModule` if its weights are the model's.
        inputs: Names of the stream values that it reads.
        outputs: Names of the values that it computes.
        context: Names of the context values that it reads.
        presents: Names of the outputs that are caches, which no later block reads.
        approximate: Whether it differs from the block that it was made from by more than the
            removed parts (a norm over a dimension that lost channels).
        note: How it was made, in one sentence for the user, or empty.
    """

    spec: BranchSpec
    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    context: tuple[str, ...] = ()
    approximate: bool = False
    note: str = ""
    presents: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The name of the branch in an `Arch`."""
        return self.spec.id

    @property
    def kind(self) -> str:
        """The kind that made it."""
        return self.spec.kind

    @property
    def start(self) -> int:
        """The first block that it stands in for."""
        return self.spec.start

    @property
    def stop(self) -> int:
        """The block after the last one that it stands in for."""
        return self.spec.stop

    @property
    def n_params(self) -> int:
        """Number of parameters that it adds to the supernet."""
        return self.spec.n_params

    @property
    def flops(self) -> int:
        """Floating point operations for one sample."""
        return self.spec.flops

    @property
    def features(self) -> tuple[str, ...]:
        """The outputs that later blocks read or that the model returns, without caches."""
        return self.outputs[: len(self.outputs) - len(self.presents)]

    def operands(self, values: Mapping[str, Any]) -> list[Any]:
        """The operands of the module.

        Args:
            values: Values by name. A past of the model's shape is cut to what the branch keeps.
        """
        kept = {part.past: part for part in self.spec.cache}
        names = (*self.inputs, *self.context)
        return [
            cut_cache(values[name], kept[name]) if name in kept else values[name] for name in names
        ]

    @property
    def frozen(self) -> bool:
        """Whether it never trains."""
        return isinstance(self.module, FrozenGraphModule)

    def __str__(self) -> str:
        return str(self.spec)


def cut_cache(value: torch.Tensor, kept: KeptCache) -> torch.Tensor:
    """The part of a cache that a branch keeps; a cache of that part's size is returned as it is."""
    if value.shape[kept.dim] == len(kept.kept):
        return value
    index = torch.tensor(kept.kept, dtype=torch.int64, device=value.device)
    return value.index_select(kept.dim, index)


@dataclass(frozen=True)
class Refusal:
    """A branch that a kind did not make.

    Attributes:
        reason: Why there is no branch, in one sentence.
        kind: The branch's kind.
        start: The first block of the interval.
        stop: The block after the last one of the interval.
    """

    reason: str
    kind: str = ""
    start: int | None = None
    stop: int | None = None
