"""Estimated latencies of requests at their own sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fxelastic.spec.cascade import Servable
from fxelastic.spec.costs_by_size import Sizes
from fxelastic.spec.latency_table import LatencyTable

# Estimates that are kept; a few bytes each.
_KEPT = 65536


def describe_sizes(sizes: Sizes) -> str:
    """The sizes as text: ``seq = 83``."""
    return ", ".join(f"{name} = {size}" for name, size in sizes.items())


@dataclass(eq=False)
class _FromTable:
    """The estimates from one table.

    Attributes:
        table: The table.
        reference: The table at the sizes that the pool's estimates are for.
        scales: The factor for each subnet and the sizes of a request.
    """

    table: LatencyTable | None
    reference: LatencyTable | None = None
    scales: dict[tuple[Servable, tuple[int, ...]], float | None] = field(default_factory=dict)


class SizeEstimates:
    """How much longer than the pool's estimates requests take on the idle device, by their sizes.

    The estimates of a pool are for some sizes, those of the budget. A long input takes longer
    without any load. The latency table predicts by how much; each prediction is computed once.
    """

    def __init__(
        self,
        table: Callable[[], LatencyTable | None],
        mode: str,
        reference: Sequence[Sizes],
        names: Sequence[str],
    ) -> None:
        """Start without estimates.

        Args:
            table: Returns the device's current latency table, if there is one.
            mode: ``assembled`` or ``paged``.
            reference: The sizes that the pool's estimates are for, or are the mean of.
            names: The names of the model's sizes besides the batch size.
        """
        self._table = table
        self._mode = mode
        self._reference = tuple(reference)
        self._names = tuple(names)
        self._kept = _FromTable(None)

    def scale(self, arch: Servable, sizes: Mapping[str, int]) -> float | None:
        """The latency at the sizes of a request, as a multiple of the pool's estimate.

        Any thread may call it.

        Args:
            arch: A subnet.
            sizes: The request's sizes; may include the batch size, which is ignored.

        Returns:
            The factor; None if the table does not cover these sizes.
        """
        table = self._table()
        kept = self._kept
        if table is not kept.table:
            # The device has changed, and the table was corrected.
            kept = self._kept = _FromTable(table)
        key = (arch, tuple([sizes.get(name, 0) for name in self._names]))
        try:
            return kept.scales[key]
        except KeyError:
            own = dict(zip(self._names, key[1], strict=True))
            found = self._computed(kept, arch, own)
            if len(kept.scales) >= _KEPT:
                kept.scales.clear()
            kept.scales[key] = found
            return found

    def missing(self, sizes: Mapping[str, int]) -> str:
        """Why there is no estimate for the sizes of a request."""
        own = {name: sizes.get(name, 0) for name in self._names}
        table = self._table()
        if table is not None and table.by_size is not None:
            return table.by_size.outside(own)
        known = " or ".join(map(describe_sizes, self._reference[:3]))
        return f"the latencies are for {known or 'other sizes'}, not for {describe_sizes(own)}"

    def _computed(self, kept: _FromTable, arch: Servable, own: Sizes) -> float | None:
        table = kept.table
        if table is None or table.by_size is None:
            return 1.0 if all(sizes == own for sizes in self._reference) else None
        if table.by_size.outside(own):
            return None
        if kept.reference is None:
            kept.reference = table.mean_over(self._reference)
        reference_ms = kept.reference.predict_ms(arch, self._mode)
        ms = table.predict_ms(arch, self._mode, own)
        return ms / reference_ms if ms > 0 < reference_ms else None
