"""Batch-norm statistics of new branches, measured anew for one subnet."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fxelastic.ir.supernet import Supernet
from fxelastic.spec import Arch
from fxelastic.train.batches import BatchReader, Split, numbered
from fxelastic.train.execution import Execution
from fxelastic.train.losses import soft_cross_entropies


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
    on these samples are nearer to the original model's like that; and they stay as they are unless
    the results get nearer by two standard errors.
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
    original = supernet.space.original
    with torch.no_grad():
        old = _statistics(layers)
        _measure(layers, lambda: [execution.result(arch, values) for values in batches])
        new = _statistics(layers)
        if not compare:
            return len(layers)
        wanted = [execution.result(original, values) for values in batches]

        def distances(statistics: Sequence[Tensor]) -> Tensor:
            _set_statistics(layers, statistics)
            found = (execution.result(arch, values) for values in batches)
            return torch.cat(list(map(soft_cross_entropies, found, wanted)))

        best, before = old, distances(old)
        nearest = float(before.mean())
        for statistics in (new, [(n + o) / 2 for n, o in zip(new, old, strict=True)]):
            after = distances(statistics)
            if float(after.mean()) < nearest and _surely_less(after, before):
                best, nearest = statistics, float(after.mean())
        _set_statistics(layers, best)
    return len(layers)


def _surely_less(values: Tensor, others: Tensor) -> bool:
    """Whether values are less on average by two standard errors of their paired differences."""
    gain = others - values
    if len(gain) < 2:
        return bool(gain.mean() > 0)
    return bool(gain.mean() > 2 * gain.std() / math.sqrt(len(gain)))


def _measure(layers: Sequence[Any], run: Callable[[], object]) -> None:
    """Make the layers' statistics the plain mean over the batches of a run."""
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()
        run()
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()


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
