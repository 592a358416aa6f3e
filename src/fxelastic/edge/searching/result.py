"""The result of a search, and what is not certain about it."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from fxelastic.edge.cascades.entry import CascadeEntry
from fxelastic.edge.pool import PoolEntry, SubnetPool
from fxelastic.edge.searching.evaluation import Counts
from fxelastic.edge.searching.study import (
    Improvement,
)
from fxelastic.spec.latency_table import LatencyTable
from fxelastic.spec.limits import Limits
from fxelastic.spec.resources import LATENCY

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Attributes:
        limits: The limits of the search, with absolute bounds.
        bests: The best subnet within each of the limits; ties go to the quickest. With ``weights``,
            the cheapest of those that are nearly as good.
        pool: Everything that was evaluated.
        histories: For each of the limits an entry for each improvement.
        counts: The work of the evaluations.
        interrupted: Whether Ctrl-C ended the search, so that the subnets are the best so far.
        table: The costs of branches that the limits bound: those of the latency table at the sizes
            of inputs that the limits are for.
        cascades: The cascades that keep one of the limits and, with probability 1 - ``delta``, the
            search's ``max_loss``: those found now and earlier ones of the same pool, quickest
            first. The pool may have others.
        original: The original, scored on the same samples; None if the search ended early or was
            short of time.
        marks: For each of the limits, whether its best subnet was scored completely: empty if it
            was scored on all samples; otherwise, if time was short, ``"not evaluated"`` or
            ``"scored on 7 of 205 samples"``.

    A subnet that was not evaluated is the likely best within its limits: the one with the least
    known total error of branches. Its ``n_samples`` is 0 and its ``accuracy`` NaN.

    The pool records the name of the score, and whether subnets are compared with targets of the
    data or with the original's own results.
    """

    limits: tuple[Limits, ...]
    bests: tuple[PoolEntry, ...]
    pool: SubnetPool
    histories: tuple[tuple[Improvement, ...], ...]
    counts: Counts
    table: LatencyTable
    interrupted: bool = False
    marks: tuple[str, ...] = ()
    original: PoolEntry | None = None
    cascades: tuple[CascadeEntry, ...] = ()

    @property
    def budgets_ms(self) -> tuple[float, ...]:
        """The bounds on the latency, in ms; infinity where it is not limited."""
        return tuple(limits.bound(LATENCY) for limits in self.limits)

    @property
    def best(self) -> PoolEntry:
        """The best subnet within the first limits."""
        return self.bests[0]

    @property
    def history(self) -> tuple[Improvement, ...]:
        """The history of the first limits."""
        return self.histories[0]


def mark_of(best: PoolEntry, n_samples: int) -> str:
    """Whether a best subnet was scored completely; see `SearchResult.marks`."""
    if best.n_samples is None:
        return ""
    if best.n_samples == 0:
        return "not evaluated"
    return f"scored on {best.n_samples} of {n_samples} samples"


def warn_of_marks(result: SearchResult, needed_s: float | None) -> None:
    """Log a warning about subnets that were not scored completely.

    Args:
        result: The result.
        needed_s: The time that would have sufficed, in s; None if the search was interrupted.
    """
    marked = [
        f"{limits}: {mark}"
        for limits, mark in zip(result.limits, result.marks, strict=True)
        if mark
    ]
    if not marked:
        return
    if needed_s is None or math.isinf(needed_s):
        logger.warning("the search was interrupted: the best subnet within %s", "; ".join(marked))
        return
    digit = 10.0 ** (math.floor(math.log10(needed_s)) - 1)
    logger.warning(
        "the search was short of time: the best subnet within %s; raise time_budget_s "
        "(--time-budget) to about %g s",
        "; ".join(marked),
        math.ceil(needed_s / digit) * digit,
    )
