"""Batch-norm statistics of new branches, measured anew for one subnet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxelastic.ir.supernet import Supernet
from fxelastic.spec import Arch
from fxelastic.threads import computing_with
from fxelastic.train.batches import BatchReader, Split, numbered
from fxelastic.train.execution import Execution
from fxelastic.train.losses import soft_cross_entropies


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
    theirs. Here they become those of one subnet: the mean over the batches. As a few hundred
    samples tell statistics with some noise, they become the mean of both where the subnet's results
    are nearer to the original model's like that; and they stay as they are unless the results get
    nearer by two standard errors. Each half of the batches is compared with statistics of the other
    half, for on the samples that they were measured on, any statistics look better than they are.
    Statistics of originals, and of branches that are not in the subnet, stay as they are. Another
    subnet with the same branches then has these statistics too; `supernet.subnet` makes a copy.

    Args:
        supernet: The supernet.
        arch: The subnet.
        loader: Any iterable of batches; targets do not count.
        n_samples: Samples after which to stop.
        compare: Compare with the original model as above; without it the new statistics are taken
            in any case.
        split: Takes a batch apart, see `BatchReader`.

    Returns:
        How many layers were measured; where there is none, nothing was run.

    Raises:
        UsageError: The arch is none of the search space, the loader is empty, or a batch is not
            understood.

    Source: AdaptiveNet's tuning; the method is that of universally slimmable networks (Yu and
    Huang, 2019).
    """
    layers = [
        layer
        for branch in supernet.path(arch)
        if not branch.frozen
        for layer in _norms(branch.module)
    ]
    if not layers:
        return 0
    reader, execution = BatchReader(supernet, split), Execution(supernet)
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
            chosen = _Statistics(layers, execution, arch, batches).chosen(old, compare=compare)
        finally:
            _set_statistics(layers, chosen)
    return len(layers)


@dataclass(frozen=True)
class _Statistics:
    """Measures the statistics of a subnet's layers, and tells which are best."""

    layers: Sequence[Any]
    execution: Execution
    arch: Arch
    batches: Sequence[Any]

    def chosen(self, old: Sequence[Tensor], *, compare: bool) -> Sequence[Tensor]:
        share = self._best_share(old) if compare else 1.0
        return _mixed(old, self._measured(self.batches, old), share) if share else old

    def _best_share(self, old: Sequence[Tensor]) -> float:
        """The share of new statistics with which the results are surely nearer to the original's.

        Each half of the batches is compared with the statistics of the other half.
        """
        halves = (
            [self.batches[::2], self.batches[1::2]] if len(self.batches) > 1 else [self.batches]
        )
        others = [self._measured(half, old) for half in reversed(halves)]
        original = self.execution.supernet.space.original
        wanted = [[self.execution.result(original, values) for values in half] for half in halves]

        def distances(share: float) -> Tensor:
            return torch.cat(
                [
                    self._distances(_mixed(old, other, share), half, results)
                    for half, other, results in zip(halves, others, wanted, strict=True)
                ]
            )

        before = distances(0.0)
        best, nearest = 0.0, float(before.mean())
        for share in (1.0, 0.5):
            after = distances(share)
            if float(after.mean()) < nearest and _surely_less(after, before):
                best, nearest = share, float(after.mean())
        return best

    def _measured(self, batches: Sequence[Any], old: Sequence[Tensor]) -> list[Tensor]:
        """The plain mean over batches; for layers that no batch reaches, the old statistics."""
        momenta = [layer.momentum for layer in self.layers]
        try:
            for layer in self.layers:
                layer.reset_running_stats()
                layer.momentum = None
                layer.train()
            for values in batches:
                self.execution.result(self.arch, values)
        finally:
            for layer, momentum in zip(self.layers, momenta, strict=True):
                layer.momentum = momentum
                layer.eval()
        reached = [bool(layer.num_batches_tracked) for layer in self.layers for _ in range(2)]
        found = zip(_statistics(self.layers), old, reached, strict=True)
        return [new if is_reached else kept for new, kept, is_reached in found]

    def _distances(
        self, statistics: Sequence[Tensor], batches: Sequence[Any], wanted: Sequence[Any]
    ) -> Tensor:
        """How far the results are from those wanted, for each sample."""
        _set_statistics(self.layers, statistics)
        found = (self.execution.result(self.arch, values) for values in batches)
        return torch.cat(list(map(soft_cross_entropies, found, wanted)))


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


def _norms(module: nn.Module) -> Iterator[Any]:
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.track_running_stats:
            yield part
