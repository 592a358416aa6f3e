"""Batch-norm statistics of new branches, measured anew for one subnet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from fxelastic.ir.supernet import Supernet
from fxelastic.spec import Arch
from fxelastic.train.batches import BatchReader, Split, numbered
from fxelastic.train.execution import Execution


def recalibrate(
    supernet: Supernet,
    arch: Arch,
    loader: Iterable[Any],
    *,
    n_samples: int = 512,
    split: Split | None = None,
) -> int:
    """Measure the batch-norm statistics of a subnet's new branches on data, in place.

    In tuning a branch sees the features of many subnets, and its running statistics are a mix of
    theirs. Here they become those of one subnet: the mean over the batches. Statistics of
    originals, and of branches that are not in the subnet, stay as they are. Another subnet with
    the same branches then has these statistics too; `supernet.subnet` makes a copy.

    Args:
        supernet: The supernet.
        arch: The subnet.
        loader: Any iterable of batches; targets do not count.
        n_samples: Samples after which to stop.
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
    momenta = [layer.momentum for layer in layers]
    supernet.eval()
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # A plain mean over the batches.
            layer.train()
        seen = 0
        with torch.no_grad():
            for number, raw in numbered(loader, "the loader"):
                batch = reader.read(raw, number)
                execution.result(arch, reader.bind(batch))
                seen += batch.size
                if seen >= n_samples:
                    break
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()
    return len(layers)


def _norms(module: nn.Module) -> Iterator[Any]:
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.track_running_stats:
            yield part
