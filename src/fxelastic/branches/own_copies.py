"""Copies of a subnet's branches with weights of their own, the model's own blocks included."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fxelastic.branches.trainable import trainable
from fxelastic.ir.branch import Branch
from fxelastic.ir.liveness import Liveness
from fxelastic.ir.operators import attach
from fxelastic.ir.partition import Partition
from fxelastic.spec import branch_id

#: The kind of a trainable copy of the model's own block.
COPY = "copy"


def own_copies(
    partition: Partition, path: Sequence[Branch], device: torch.device
) -> Iterator[Branch]:
    """Copy branches, so that training them changes neither the supernet nor the model.

    A new branch keeps its id; an original becomes a trainable branch of the kind ``copy``, as
    `trainable` makes it. Weights that branches of the path share are shared by the copies, too.

    Args:
        partition: The blocks.
        path: The branches of a subnet in execution order.
        device: Where the weights of the copies are.

    Yields:
        The copies, in order and in eval mode.
    """
    liveness = Liveness(partition)
    taken = {branch.id for branch in path}
    memo: dict[int, Any] = {}
    tied: dict[int, nn.Parameter] = {}
    for branch in path:
        if not branch.frozen:
            module = copy.deepcopy(branch.module, memo)
            yield replace(branch, module=module.to(device).eval())
            continue
        name = branch_id(COPY, branch.start, branch.stop)
        while name in taken:
            name = f"{name}+"
        taken.add(name)
        made = trainable(partition, branch.start, branch.stop, liveness)
        _tie(made.module, partition.graph_module, tied)
        yield replace(
            branch,
            spec=replace(branch.spec, id=name, kind=COPY),
            module=made.module.to(device).eval(),
            inputs=made.inputs,
            context=made.context,
            outputs=made.outputs,
        )


def _tie(module: nn.Module, source: nn.Module, tied: dict[int, nn.Parameter]) -> None:
    """Use one parameter for each of the source's, in all copies."""
    known = dict(source.named_parameters(remove_duplicate=False))
    for name, parameter in list(module.named_parameters(remove_duplicate=False)):
        # A weight that the blocks compute has another value than a parameter of that name.
        if name in known and torch.equal(known[name], parameter):
            first = tied.setdefault(id(known[name]), parameter)
            if first is not parameter:
                attach(module, name, first)
