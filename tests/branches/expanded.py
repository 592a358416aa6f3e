"""A supernet of every kind of branch for a test model, and the model's own values at each cut."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from unittest import mock

import torch
from torch import nn

import fxelastic
from fxelastic import Supernet, expansion
from fxelastic.branches import DEFAULT_KINDS
from fxelastic.ir.branch import Branch
from tests.branches.plain_kind import Plain
from tests.models import CASES, ModelCase
from tests.models.captured import captured, partitioned

NAMES = tuple(name for name, case in CASES.items() if "slow" not in case.tags)
_PLAIN = ", plain"
#: Models that are expanded with a kind of another package, too, whose modules are no graphs.
WITH_PLAIN = tuple(f"{name}{_PLAIN}" for name in ("efficientnet", "vit", "gpt2"))
#: The published sizes take a second for each pass.
LARGE = frozenset(name for name in NAMES if "real" in CASES[name].tags)


@dataclass(frozen=True)
class Expanded:
    """A model, and its supernet at gamma 0.25."""

    case: ModelCase
    model: nn.Module
    supernet: Supernet

    @property
    def new(self) -> list[Branch]:
        """The branches that are not the model's own blocks."""
        return [b for b in self.supernet.branches.values() if b.kind != "original"]

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Two sizes, where the batch may vary."""
        return (2, 3)

    def values(self, batch_size: int) -> dict[str, Any]:
        """Every value that the model's own blocks read or give, for the case's inputs."""
        args, kwargs = self.case.inputs(batch_size)
        found = dict(self.supernet.bind(args, kwargs))
        with torch.no_grad():
            for branch in self.supernet.path():
                result = self.run(branch, found)
                several = len(branch.outputs) > 1
                found.update(zip(branch.outputs, result if several else (result,), strict=True))
        return found

    @staticmethod
    def run(branch: Branch, values: dict[str, Any]) -> Any:
        """A branch on these values."""
        return branch.module(*(values[name] for name in (*branch.inputs, *branch.context)))


def expanded(name: str, **options: Any) -> Expanded:
    """Expand a test model with all branches of the default kinds."""
    case = CASES[name]
    model = case.build()
    options = {"kinds": DEFAULT_KINDS, **options}
    supernet = fxelastic.expand(model, 0.25, example_inputs=case.inputs(2), **options)
    return Expanded(case, model, supernet)


def over_shared_capture(name: str, **options: Any) -> Expanded:
    """The same over the shared capture; for tests that leave the model's weights as they were."""
    case, model = CASES[name], captured(name).model
    options = {"kinds": DEFAULT_KINDS, **options}
    with mock.patch.object(expansion, "partition", return_value=partitioned(name, 0.25)):
        supernet = fxelastic.expand(model, 0.25, example_inputs=case.inputs(2), **options)
    return Expanded(case, model, supernet)


@lru_cache(maxsize=1)
def shared(name: str) -> Expanded:
    """The same, made once; for tests that leave the supernet as it was, too.

    Args:
        name: The model; one of ``WITH_PLAIN`` has the plain kind, too.
    """
    found = over_shared_capture(name.removesuffix(_PLAIN))
    if not name.endswith(_PLAIN):
        return found
    partition = found.supernet.partition
    branches = list(found.supernet.branches.values())
    added = [made for made in Plain().make(partition) if isinstance(made, Branch)]
    assert added
    return Expanded(found.case, found.model, Supernet(partition, [*branches, *added]))
