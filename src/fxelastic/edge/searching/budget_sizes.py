"""The sizes of inputs that the limits of a search are for."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.searching.data import Dataset
from fxelastic.errors import UsageError
from fxelastic.spec.costs_by_size import Sizes
from fxelastic.spec.latency_table import LatencyTable

logger = logging.getLogger(__name__)


def table_for_limits(
    bundle: Bundle,
    table: LatencyTable,
    data: Sequence[Dataset],
    mode: str,
    sizes: Sizes | None = None,
    percentile: float | None = None,
) -> LatencyTable:
    """The table whose costs the limits of a search bound.

    Args:
        bundle: The bundle.
        table: The latency table.
        data: The samples of the search.
        mode: ``assembled`` or ``paged``.
        sizes: The sizes that the limits are for; None for the samples' own.
        percentile: Which of the samples the limits are for, by the original's latency; None for
            the mean over all samples.

    Raises:
        UsageError: Both sizes and a percentile are given, the bundle has no sizes that vary, or
            the table does not hold for the sizes.
    """
    if sizes is not None and percentile is not None:
        raise UsageError(
            "limits are either for given sizes or for a percentile of the data",
            expected="sizes or size_percentile",
            got=f"sizes={sizes!r}, size_percentile={percentile!r}",
            fix="leave one of them out",
        )
    given = sizes is not None or percentile is not None
    if not bundle.manifest.model.sizes:
        if given:
            raise UsageError(
                "the model has no size that may vary besides the batch size",
                expected="neither sizes nor size_percentile",
                got=f"size_percentile={percentile!r}" if sizes is None else f"sizes={sizes!r}",
                fix="pass dynamic_shapes= to fxelastic.expand to let sizes vary",
            )
        return table
    if sizes is not None:
        return table.at(sizes)
    own = [found for part in data for found in part.sizes()]
    if percentile is not None:
        return table.at_percentile(own, percentile, mode)
    if table.by_size is not None:
        return table.mean_over(own)
    if not _distinct(own) <= _distinct(table.sizes):
        logger.warning(
            "the latency table is for %s, and the data has other sizes: limits are for the table's",
            table.sizes_text or "the sizes of the example",
        )
    return table


def _distinct(sizes: Iterable[Sizes]) -> set[tuple[tuple[str, int], ...]]:
    return {tuple(sorted(found.items())) for found in sizes}
