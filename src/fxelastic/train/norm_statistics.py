"""The running statistics of new branches' norms: estimated, followed, or measured for a subnet."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fxelastic.ir.supernet import Supernet
from fxelastic.processes import Processes
from fxelastic.spec import Arch
from fxelastic.threads import computing_with
from fxelastic.train.batches import Batch, BatchReader, Split, numbered
from fxelastic.train.held_out import HeldOut
from fxelastic.train.learners import BranchRunner, Learners, norms_of
from fxelastic.train.losses import soft_cross_entropies
from fxelastic.train.sampling import Plan

#: Norms follow the batch where errors with its statistics are at most this many times as large as
#: in inference.
_TOLERATED = 1.25

#: Computes the losses of some branches on a batch, without gradients.
Losses = Callable[[Batch, Plan], Mapping[str, Tensor]]


def estimate(learners: Learners, losses: Losses, held_out: HeldOut, processes: Processes) -> None:
    """Give the norms of branches the mean statistics over batches, where that reduces the error.

    The norms of a branch with fewer channels, or with one convolution for two, get other values
    than the model's own blocks. Training with frozen statistics begins from the better ones.

    Args:
        learners: The branches; each reads the model's own features.
        losses: Runs branches on a batch.
        held_out: Holds the batches, decides which statistics are better, and keeps them.
        processes: Their statistics are averaged.
    """
    norms, plan, layers = _with_norms(learners)
    if not layers or not held_out.batches:
        return
    with _measuring(layers):
        for batch in held_out.batches:
            losses(batch, plan)
    processes.average(learners.buffers())
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
    learners: Learners, losses: Losses, batches: Sequence[Batch], processes: Processes
) -> bool:
    """Whether branches can learn with the statistics of each batch.

    Batch statistics help the optimiser where a batch is like the data that the model was trained
    on. Where batches are small, or the data differ, they change what a branch computes, but not
    its target, which the original computes as in inference. Each branch is measured alone, on the
    original's features: the loss of a whole subnet hardly shows it.

    Args:
        learners: The branches; their state is the same afterwards.
        losses: Runs branches on a batch, each alone.
        batches: Batches as the run takes them.
        processes: Those that hold the other shares of the batches.

    Returns:
        False where no branch has running statistics, or there are no batches.
    """
    _, plan, layers = _with_norms(learners)
    if not layers or not batches:
        return False

    def error() -> float:
        total = torch.zeros(1, dtype=torch.float64, device=processes.device)
        for batch in batches:
            for loss in losses(batch, plan).values():
                total += loss.double()
        processes.average([total])
        return float(total)

    inference = error()
    buffers = [buffer for layer in layers for buffer in layer.buffers(recurse=False)]
    saved = [buffer.clone() for buffer in buffers]
    try:
        with _following(layers):
            following = error()
    finally:
        for buffer, value in zip(buffers, saved, strict=True):
            buffer.copy_(value)
    return following <= _TOLERATED * inference


@computing_with()
def recalibrate(
    supernet: Supernet,
    arch: Arch,
    loader: Iterable[Any],
    *,
    n_samples: int = 512,
    compare: bool = True,
    split: Split | None = None,
) -> int:
    """Measure the batch-norm statistics of a subnet's new branches on data, in place.

    In tuning a branch sees the features of many subnets, and its running statistics are a mix of
    theirs. This function replaces them by the mean over batches of one subnet's features. A few
    hundred samples give noisy statistics: the mean of old and new ones is taken where the results
    are closer to the original model's with it, and the old ones stay unless the results get closer
    by two standard errors. Each half of the batches is compared with statistics of the other half,
    since any statistics look good on the samples that they were measured on. Statistics of
    originals, and of branches that are not in the subnet, stay as they are. Other subnets with the
    same branches get the new statistics too; `supernet.subnet` makes a copy.

    Args:
        supernet: The supernet.
        arch: The subnet.
        loader: Any iterable of batches; targets do not count.
        n_samples: Samples after which to stop.
        compare: Compare with the original model as above; otherwise always take the new
            statistics.
        split: Takes a batch apart, see `BatchReader`.

    Returns:
        How many layers were measured; without any, nothing is run.

    Raises:
        UsageError: The arch is not in the search space, the loader is empty, or a batch is not
            understood.

    Source: AdaptiveNet's tuning; the method is that of universally slimmable networks (Yu and
    Huang, 2019).
    """
    layers = [
        layer
        for branch in supernet.path(arch)
        if not branch.frozen
        for layer in norms_of(branch.module)
    ]
    if not layers:
        return 0
    reader, runner = BatchReader(supernet, split), BranchRunner(supernet)
    batches = []
    seen = 0
    for number, raw in numbered(loader, "the loader"):
        batch = reader.read(raw, number)
        batches.append(reader.bind(batch))
        seen += batch.size
        if seen >= n_samples:
            break
    supernet.eval()
    with torch.no_grad():
        old = _statistics(layers)
        chosen: Sequence[Tensor] = old
        try:
            chosen = _Statistics(layers, runner, arch, batches).chosen(old, compare=compare)
        finally:
            _set_statistics(layers, chosen)
    return len(layers)


@dataclass(frozen=True)
class _Statistics:
    """Measures the statistics of a subnet's layers and finds the best ones."""

    layers: Sequence[Any]
    runner: BranchRunner
    arch: Arch
    batches: Sequence[Any]

    def chosen(self, old: Sequence[Tensor], *, compare: bool) -> Sequence[Tensor]:
        share = self._best_share(old) if compare else 1.0
        return _mixed(old, self._measured(self.batches, old), share) if share else old

    def _best_share(self, old: Sequence[Tensor]) -> float:
        """The share of new statistics that surely brings results closer to the original's."""
        halves = (
            [self.batches[::2], self.batches[1::2]] if len(self.batches) > 1 else [self.batches]
        )
        others = [self._measured(half, old) for half in reversed(halves)]
        original = self.runner.supernet.space.original
        wanted = [[self.runner.result(original, values) for values in half] for half in halves]

        def distances(share: float) -> Tensor:
            return torch.cat(
                [
                    self._distances(_mixed(old, other, share), half, results)
                    for half, other, results in zip(halves, others, wanted, strict=True)
                ]
            )

        before = distances(0.0)
        best, closest = 0.0, float(before.mean())
        for share in (1.0, 0.5):
            after = distances(share)
            if float(after.mean()) < closest and _surely_less(after, before):
                best, closest = share, float(after.mean())
        return best

    def _measured(self, batches: Sequence[Any], old: Sequence[Tensor]) -> list[Tensor]:
        """The plain mean over batches; for layers that no batch reaches, the old statistics."""
        with _measuring(self.layers):
            for values in batches:
                self.runner.result(self.arch, values)
        reached = [bool(layer.num_batches_tracked) for layer in self.layers for _ in range(2)]
        found = zip(_statistics(self.layers), old, reached, strict=True)
        return [new if is_reached else kept for new, kept, is_reached in found]

    def _distances(
        self, statistics: Sequence[Tensor], batches: Sequence[Any], wanted: Sequence[Any]
    ) -> Tensor:
        """How far the results are from those wanted, for each sample."""
        _set_statistics(self.layers, statistics)
        found = (self.runner.result(self.arch, values) for values in batches)
        distance = partial(self.runner.layout.compare, soft_cross_entropies)
        return torch.cat(list(map(distance, found, wanted)))


def _mixed(old: Sequence[Tensor], new: Sequence[Tensor], share: float) -> list[Tensor]:
    """Statistics with a share of the new ones."""
    return [torch.lerp(o, n, share) for o, n in zip(old, new, strict=True)]


def _surely_less(values: Tensor, others: Tensor) -> bool:
    """Whether values are less on average by two standard errors of their paired differences."""
    gain = others - values
    if len(gain) < 2:
        return bool(gain.mean() > 0)
    return bool(gain.mean() > 2 * gain.std() / math.sqrt(len(gain)))


def _statistics(layers: Sequence[Any]) -> list[Tensor]:
    return [value.clone() for layer in layers for value in (layer.running_mean, layer.running_var)]


def _set_statistics(layers: Sequence[Any], values: Sequence[Tensor]) -> None:
    for layer, mean, variance in zip(layers, values[::2], values[1::2], strict=True):
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)


def _with_norms(learners: Learners) -> tuple[dict[str, list[Any]], Plan, list[Any]]:
    """The norms of each branch, the branches that have some, and all norms."""
    norms = {name: norms_of(learners.module(name)) for name in learners.branches}
    plan = Plan(tuple(name for name, own in norms.items() if own))
    return norms, plan, [layer for own in norms.values() for layer in own]


@contextmanager
def _measuring(layers: Sequence[Any]) -> Iterator[None]:
    """Within the context, layers collect new statistics as plain means over batches."""
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
        with _following(layers):
            yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


@contextmanager
def _following(layers: Sequence[Any]) -> Iterator[None]:
    """Within the context, layers normalise with the statistics of the batch, and record them."""
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        for layer in layers:
            layer.eval()
