"""Statistics of new branches' norms, from the model's own features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from fxelastic.train.batches import Batch, BatchReader
from fxelastic.train.held_out import HeldOut
from fxelastic.train.new_branches import NewBranches, norms_of
from fxelastic.train.objective import Objective, Plan
from fxelastic.train.processes import Processes


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
            layer.train()
        with torch.no_grad(), autocast():
            for batch in batches:
                objective.backward(batch, reader.bind(batch), plan, lambda _: None)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()
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
