"""Second moments of what layers read and return, on calibration data."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from operator import is_
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxelastic.branches.operators.layers import Layer, layers
from fxelastic.branches.options import Arguments
from fxelastic.branches.original import Original
from fxelastic.branches.trainable import trainable
from fxelastic.ir.block import REPLACEABLE
from fxelastic.ir.branch import Branch
from fxelastic.ir.liveness import Liveness
from fxelastic.ir.partition import Partition
from fxelastic.ir.supernet import Supernet

#: Positions of a batch that are used for each channel of the layer; more hardly change moments.
_ROWS = 4
_MIN_ROWS = 512


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of one layer's inputs and outputs. Without data, inputs count as white noise.

    Attributes:
        channels: Covariance of the input's channels ``[n_in, n_in]``, a mean over the taps.
        outputs: Returns the covariance of the outputs ``[n_out, n_out]``, which few operators need.
        taps: Covariance over the taps of each input channel ``[n_in, taps, taps]``.
        mean: The mean of each input channel ``[n_in]``; None without data.
    """

    channels: Tensor
    outputs: Callable[[], Tensor]
    taps: Tensor
    mean: Tensor | None = None

    @classmethod
    def white(cls, layer: Layer) -> Moments:
        """The moments of inputs that are uncorrelated and have a variance of 1."""
        device = layer.weight.device
        one = torch.eye(layer.taps, dtype=torch.float64, device=device)

        @cache
        def outputs() -> Tensor:
            flat = layer.matrix.flatten(1)
            return flat @ flat.mT

        return cls(
            torch.eye(layer.n_in, dtype=torch.float64, device=device),
            outputs,
            one.expand(layer.n_in, layer.taps, layer.taps),
        )

    @property
    def coloured(self) -> Tensor | None:
        """The covariance of the input's channels; None for white noise."""
        return None if self.mean is None else self.channels


class _Sums:
    """The sums over positions that one layer's moments are computed from."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self._n = 0
        self._sums: list[Tensor] = []

    def add(self, value: Tensor) -> None:
        """Add some positions of a batch.

        Args:
            value: What the layer reads.
        """
        layer = self.layer
        wanted = max(_MIN_ROWS, _ROWS * max(layer.n_in, layer.n_out))
        rows = patches(layer, value.detach(), wanted).double()
        if not len(rows) or not rows.isfinite().all():
            return
        outputs = rows.flatten(1) @ layer.matrix.flatten(1).mT
        centre = rows.transpose(1, 2).flatten(0, 1)
        sums = [
            centre.mT @ centre / layer.taps,
            outputs.mT @ outputs,
            torch.einsum("nct,ncs->cts", rows, rows),
            outputs.sum(0),
            rows.sum(0),
        ]
        self._n += len(rows)
        self._sums = [a + b for a, b in zip(self._sums, sums, strict=True)] if self._sums else sums

    def moments(self) -> Moments:
        """The moments; those of white noise if there were no positions."""
        if not self._n:
            return Moments.white(self.layer)
        channels, outputs, taps, total, read = (value / self._n for value in self._sums)
        mean = read.mean(1)
        centred = outputs - torch.outer(total, total)
        return Moments(
            channels - torch.outer(mean, mean),
            lambda: centred,
            taps - torch.einsum("ct,cs->cts", read, read),
            mean,
        )


def patches(layer: Layer, value: Tensor, n: int) -> Tensor:
    """What a layer multiplies with its weight at some positions.

    Args:
        layer: The layer.
        value: What it reads.
        n: About how many positions to take, evenly spread.

    Returns:
        ``[positions, n_in, taps]``.
    """
    if not layer.kernel:
        rows = value.reshape(-1, layer.n_in)
        return rows[:: max(1, len(rows) // n)].unsqueeze(2)
    padded = F.pad(value, [p for pad in reversed(layer.padding) for p in (pad, pad)])
    dims = range(len(layer.kernel))
    reach = [(k - 1) * d for k, d in zip(layer.kernel, layer.dilation, strict=True)]
    counts = [(padded.shape[2 + i] - reach[i] - 1) // layer.stride[i] + 1 for i in dims]
    if min(counts) < 1 or not len(padded):
        return value.new_zeros((0, layer.n_in, layer.taps))
    total = len(padded)
    for count in counts:
        total *= count
    chosen = torch.arange(0, total, max(1, total // n), device=value.device)
    index = list(torch.unravel_index(chosen, (len(padded), *counts)))
    found = []
    for tap in range(layer.taps):
        offsets = torch.unravel_index(torch.tensor(tap, device="cpu"), layer.kernel)
        at = [index[1 + i] * layer.stride[i] + int(offsets[i]) * layer.dilation[i] for i in dims]
        # Channels come last after indexing around them.
        at_taps: tuple[Any, ...] = (index[0], slice(None), *at)
        found.append(padded[at_taps])
    return torch.stack(found, 2)


def moments(partition: Partition, batches: Sequence[Arguments]) -> Mapping[str, Moments]:
    """The moments of all layers in replaceable blocks, in one run of the model for each batch.

    Kinds of one expansion share them: they are kept while the partition and the batches are.

    Args:
        partition: The blocks.
        batches: Positional and keyword arguments of calls of the model.

    Returns:
        By the name of the layer's node; empty without batches.
    """
    if not batches:
        return {}
    known = _KNOWN.get(partition.graph_module)
    if known is None or not known.of(partition, batches):
        known = _Known(weakref.ref(partition), tuple(batches), _measured(partition, batches))
        _KNOWN[partition.graph_module] = known
    return known.moments


def forget(partition: Partition) -> None:
    """Free the moments that `moments` keeps."""
    _KNOWN.pop(partition.graph_module, None)


@dataclass(frozen=True)
class _Known:
    """The moments of a partition's layers on some batches."""

    partition: weakref.ref[Partition]
    batches: tuple[Arguments, ...]
    moments: Mapping[str, Moments]

    def of(self, partition: Partition, batches: Sequence[Arguments]) -> bool:
        """Whether these are the partition, not only an equal one, and the batches."""
        same = len(batches) == len(self.batches) and all(map(is_, batches, self.batches))
        return same and self.partition() is partition


# By the captured graph, since a partition may have constants that can't be hashed.
_KNOWN: weakref.WeakKeyDictionary[nn.Module, _Known] = weakref.WeakKeyDictionary()


def _measured(partition: Partition, batches: Iterable[Arguments]) -> dict[str, Moments]:
    liveness = Liveness(partition)
    copies = {
        i: trainable(partition, i, i + 1, liveness, share=True)
        for i, block in enumerate(partition.blocks)
        if block.kind in REPLACEABLE
    }
    sums = {i: [_Sums(layer) for layer in layers(copied.module)] for i, copied in copies.items()}
    model = Supernet(partition, (b for b in Original().make(partition) if isinstance(b, Branch)))
    with torch.no_grad():
        for args, kwargs in batches:
            values = model.bind(args, kwargs)
            for i, branch in enumerate(model.path()):
                if sums.get(i):
                    copied = copies[i]
                    operands = (values[name] for name in (*copied.inputs, *copied.context))
                    _Recorder(copied.module, sums[i]).run(*operands)
                model.run_branch(branch, values, as_model=True)
    return {s.layer.node.name: s.moments() for found in sums.values() for s in found}


class _Recorder(fx.Interpreter):
    """Runs a block's copy and adds up what its layers read."""

    def __init__(self, module: fx.GraphModule, sums: Sequence[_Sums]) -> None:
        super().__init__(module)
        self._sums = {s.layer.node: s for s in sums}

    def run_node(self, n: fx.Node) -> Any:
        if n in self._sums:
            self._sums[n].add(self.fetch_args_kwargs_from_env(n)[0][0])
        return super().run_node(n)
