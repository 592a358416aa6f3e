"""The running statistics of new branches' norms: what they begin with, and whether they change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from fxelastic.train.batches import Batch, BatchReader
from fxelastic.train.distillation import TeacherForced
from fxelastic.train.execution import Execution
from fxelastic.train.held_out import HeldOut
from fxelastic.train.new_branches import NewBranches, norms_of
from fxelastic.train.objective import Objective, Plan
from fxelastic.train.processes import Processes

#: Norms follow the batch where errors with its statistics are at most this many times as large as
#: in inference.
_TOLERATED = 1.25


def estimate(
    new: NewBranches,
    objective: Objective,
    reader: BatchReader,
    batches: Sequence[Batch],
    held_out: HeldOut,
    processes: Processes,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> None:
    """Give the norms of branches the mean statistics over batches, where the error gets less.

    A branch with fewer channels, or one convolution for two, sends its norms other values than the
    model's own blocks do. Training with frozen statistics begins from the better ones.

    Args:
        new: The branches; each reads the model's own features.
        objective: Runs the branches.
        reader: Binds batches.
        batches: The batches to measure on.
        held_out: Tells which statistics are better, and keeps them.
        processes: Their statistics are averaged.
        autocast: The context for forward passes.
    """
    norms = {name: norms_of(new.module(name)) for name in new.branches}
    plan = Plan(tuple(name for name, own in norms.items() if own))
    layers = [layer for own in norms.values() for layer in own]
    if not layers or not batches or not held_out.measures:
        return
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
        with _following(layers), torch.no_grad(), autocast():
            for batch in batches:
                objective.backward(batch, reader.bind(batch), plan, lambda _: None)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    processes.average_buffers(new.state(), new.parameters)
    errors = held_out.measure()
    better = held_out.better(errors, held_out.best)
    reached = [
        unit
        for unit in better
        if all(int(n.num_batches_tracked) for b in held_out.units[unit] for n in norms[b])
    ]
    held_out.keep(reached, errors)
    held_out.restore(held_out.units)


def batches_serve(
    execution: Execution,
    new: NewBranches,
    reader: BatchReader,
    batches: Sequence[Batch],
    processes: Processes,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> bool:
    """Whether branches can learn with the statistics of each batch.

    Batch statistics help the optimiser where a batch is like the data that the model was trained
    on. Where batches are small, or the data differ, they change what a branch computes, but not
    the target, which the original computes as in inference. Each branch is measured alone, on the
    original's features: the loss of a whole subnet hardly shows it.

    Args:
        execution: Runs the branches.
        new: The branches; their state is the same afterwards.
        reader: Binds batches.
        batches: Batches as the run takes them.
        processes: Those that hold the other shares of the batches.
        autocast: The context for forward passes.

    Returns:
        False where no branch has running statistics, or there are no batches.
    """
    layers = {name: norms_of(new.module(name)) for name in new.branches}
    plan = Plan(tuple(name for name, own in layers.items() if own))
    norms = [layer for own in layers.values() for layer in own]
    if not norms or not batches:
        return False
    objective = TeacherForced(execution, new)

    def error() -> float:
        losses: list[Tensor] = []
        with torch.no_grad(), autocast():
            for batch in batches:
                found = objective.backward(batch, reader.bind(batch), plan, lambda _: None)
                losses.extend(loss.double() for loss in found.values())
        total = torch.zeros(1, dtype=torch.float64, device=device)
        for loss in losses:
            total += loss
        processes.average([total])
        return float(total)

    device = next(iter(new.parameters.values())).device
    inference = error()
    buffers = [buffer for layer in norms for buffer in layer.buffers(recurse=False)]
    saved = [buffer.clone() for buffer in buffers]
    try:
        with _following(norms):
            following = error()
    finally:
        for buffer, value in zip(buffers, saved, strict=True):
            buffer.copy_(value)
    return following <= _TOLERATED * inference


@contextmanager
def _following(layers: Sequence[Any]) -> Iterator[None]:
    """Layers normalise with the statistics of the batch for a while, and keep them."""
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        for layer in layers:
            layer.eval()
