"""What compression operators share: find the layers of a block, and replace them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import fx

from fxelastic.branches.interval import NoBranchError, intervals
from fxelastic.branches.operators.layers import Layer, layers
from fxelastic.branches.operators.moments import Moments, moments
from fxelastic.branches.operators.stand_in import Shared, StandIn
from fxelastic.branches.options import Arguments
from fxelastic.ir.branch import Branch, Refusal
from fxelastic.ir.partition import Partition

#: A layer is replaced if that leaves at most this share of its weights and of its FLOPs.
MOST = 0.9

#: Numbers of channels are multiples of it where that changes little: kernels run in such steps.
STEP = 8

#: Writes what stands in for a layer.
Write = Callable[[StandIn, Moments], fx.Node]


@dataclass(frozen=True)
class Replacement:
    """What stands in for one layer.

    Attributes:
        weights: The number of its weights; a bias does not count.
        flops: Multiplications at one position of the layer's output, a position of its input
            counting as ``stride`` positions of the output.
        write: Writes it.
    """

    weights: int
    flops: float
    write: Write


@dataclass(frozen=True)
class LayerOperator(ABC):
    """A kind that replaces the convolutions and linear maps of each block.

    A subclass has a field for each option, and a field ``calibration``.

    Attributes:
        calibration: Positional and keyword arguments of some calls of the model; those of
            `fxelastic.expand` if empty. They weigh errors by what the layers really read.
    """

    calibration: tuple[Arguments, ...] = field(default=(), compare=False)

    @property
    @abstractmethod
    def name(self) -> str:
        """The name of the kind."""

    @abstractmethod
    def variants(self) -> Mapping[str, object]:
        """The branches of a block: a suffix of the id, and the value that `fit` receives.

        If branches share weights (`StandIn.prefix`), the largest comes first.
        """

    @abstractmethod
    def fit(self, layer: Layer, variant: object) -> Replacement | str:
        """What stands in for a layer.

        Args:
            layer: The layer.
            variant: A value of `variants`.

        Returns:
            The replacement, or the reason why the operator does not fit the layer.
        """

    def make(self, partition: Partition, seed: int = 0) -> Iterator[Branch | Refusal]:
        """Make the branches.

        Args:
            partition: The partition to make them for.
            seed: Not used, since nothing here is random.

        Yields:
            A branch for each block and variant, or the reason why there is none.
        """
        for interval in intervals(partition, self.name):
            shared: Shared = {}
            for suffix, variant in self.variants().items():
                change = partial(self._replace, partition=partition, variant=variant, shared=shared)
                yield interval.rewrite(change, variant=suffix, approximate=True)

    def _replace(
        self, module: fx.GraphModule, *, partition: Partition, variant: object, shared: Shared
    ) -> str:
        found, reasons = list(layers(module)), []
        if not found:
            raise NoBranchError("it has no convolution without groups and no linear map")
        measured = moments(partition, self.calibration)
        lines = []
        for layer in found:
            if not layer.weight.isfinite().all():
                reasons.append(f"{layer.node.name}: its weights hold NaN or infinity")
                continue
            fitted = self.fit(layer, variant)
            if isinstance(fitted, Replacement):
                fitted = _worth(layer, fitted)
            if isinstance(fitted, str):
                reasons.append(f"{layer.node.name}: {fitted}")
                continue
            written = StandIn(layer, self.name, shared)
            known = measured.get(layer.node.name) or Moments.white(layer)
            written.finish(fitted.write(written, known))
            lines.append(
                f"{layer.node.name}: {_percent(fitted.flops / _flops(layer))} of the FLOPs"
            )
        if not lines:
            raise NoBranchError("; ".join(dict.fromkeys(reasons)))
        return "; ".join(lines)


def _flops(layer: Layer) -> float:
    return layer.n_out * layer.n_in * layer.taps


def _worth(layer: Layer, fitted: Replacement) -> Replacement | str:
    share = max(fitted.flops / _flops(layer), fitted.weights / layer.weight.numel())
    return fitted if share <= MOST else f"it would keep {_percent(share)} of its work"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def rank_of(full: int, share: float) -> int:
    """A share of a number of channels, at least 1.

    Args:
        full: The number of channels.
        share: The share, in (0, 1).

    Returns:
        A multiple of `STEP` if there are at least two steps, else the nearest number.
    """
    rank = full * share
    if rank >= 2 * STEP:
        return STEP * round(rank / STEP)
    return max(1, round(rank))


def suffix(share: float) -> str:
    """A share as part of a branch's id: 0.25 is ``25``."""
    return f"{100 * share:g}".replace(".", "_")
