"""Running a supernet's branches in training, compiled where that is asked for."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import replace
from typing import Any

import torch

from fxelastic.ir.branch import Branch
from fxelastic.ir.supernet import Supernet
from fxelastic.spec import Arch


class Execution:
    """A supernet as its branches, to be run one by one.

    Originals run over weights that require no gradients, as they do beside new branches.

    Attributes:
        supernet: Whose branches they are.
        originals: The model's own path.
    """

    def __init__(self, supernet: Supernet, compile: bool | Mapping[str, Any] = False) -> None:
        """Prepare the branches.

        Args:
            supernet: The supernet; it is not changed.
            compile: Whether to run through ``torch.compile``, or its keyword arguments.
        """
        self.supernet = supernet
        self._branches: dict[str, Branch] = dict(supernet.branches)
        if compile is not False:
            options = {} if compile is True else dict(compile)
            for name, branch in self._branches.items():
                compiled: Any = torch.compile(branch.module, **options)
                self._branches[name] = replace(branch, module=compiled)
        self.originals = self.path(supernet.space.original)

    def branch(self, name: str) -> Branch:
        """A branch by its id."""
        return self._branches[name]

    def path(self, arch: Arch) -> tuple[Branch, ...]:
        """The branches of a subnet in execution order.

        Raises:
            UsageError: The arch is none of the search space.
        """
        return tuple(self._branches[spec.id] for spec in self.supernet.space.specs(arch))

    def is_context(self, branch: Branch) -> bool:
        """Whether a branch computes what is not part of the data stream, such as a mask."""
        blocks = self.supernet.partition.blocks[branch.start : branch.stop]
        return all(block.kind == "context" for block in blocks)

    def run(self, branch: Branch, values: MutableMapping[str, Any]) -> None:
        """Run a branch on named values, see `Supernet.run_branch`."""
        self.supernet.run_branch(branch, values)

    def result(self, arch: Arch, values: Mapping[str, Any]) -> Any:
        """A subnet's result, in the structure of the model's.

        Args:
            arch: The subnet.
            values: The model's inputs by name; not changed.
        """
        current = dict(values)
        for branch in self.path(arch):
            self.run(branch, current)
        return self.supernet.result(current)
