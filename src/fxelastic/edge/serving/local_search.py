"""Searches for quicker subnets on the device's own data, beside the requests."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.pool import TARGETS, SubnetPool
from fxelastic.edge.searching.choice import chosen_metric
from fxelastic.edge.searching.data import has_targets
from fxelastic.edge.searching.scores import METRICS, Score
from fxelastic.edge.searching.search import search
from fxelastic.edge.searching.study import SearchAbortedError, Study
from fxelastic.edge.serving.ladder import Step
from fxelastic.errors import UsageError
from fxelastic.spec.latency_table import LatencyTable

_NICENESS = 15


@dataclass(frozen=True)
class LocalSearch:
    """A `Researcher` that runs `edge.search` in one thread of low priority (AdaptiveNet §5.3).

    Attributes:
        bundle: The bundle.
        table: Gives the device's latencies as they are known by then.
        data: Samples, in any of the forms that `edge.search` takes.
        path: The pool's file; what is found is added to it. None to keep it in memory only.
        options: Other arguments of `edge.search`, such as ``max_subnets`` and ``score``.
    """

    bundle: Bundle
    table: Callable[[], LatencyTable]
    data: Any
    path: str | os.PathLike[str] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def search(self, limit_ms: float, stop: threading.Event) -> Sequence[Step]:
        """Search for subnets of at most an estimated latency; see `Researcher`."""
        _lower_priority()

        def end_if_stopped(budget_ms: float, study: Study) -> None:
            if stop.is_set():
                raise SearchAbortedError

        result = search(
            self.bundle,
            self.table(),
            self.data,
            budget_ms=limit_ms,
            threads=1,
            path=self.path,
            progress=end_if_stopped,
            **self.options,
        )
        return result.pool.entries


def local_score(
    bundle: Bundle, data: Any, pool: object, score: str | Score | None
) -> str | Score | None:
    """The score of a search whose subnets are compared with a pool's.

    Args:
        bundle: The bundle.
        data: What to search on.
        pool: The pool, or subnets whose score is not known.
        score: The caller's score; None for the pool's.

    Raises:
        UsageError: The pool was scored by another score or with other targets.
    """
    known = pool.score if isinstance(pool, SubnetPool) else ""
    if not isinstance(pool, SubnetPool) or not known:
        return score
    if score is None:
        if known.partition(":")[0] not in METRICS:
            raise UsageError(
                "the pool's score is a function that is not known here",
                expected=f"score={known}, to search on data while serving",
                got="no score",
                fix="pass the function that the pool was searched with, or no data",
            )
        score = known
    labelled = has_targets(bundle, data)
    name = chosen_metric(bundle, score, labelled=labelled).name
    found = TARGETS[0] if labelled else TARGETS[1]
    if name != known or pool.targets not in ("", found):
        raise UsageError(
            "a search while serving would score subnets otherwise than the pool",
            expected=f"{known}, on {_on(pool.targets)}",
            got=f"{name}, on {_on(found)}",
            fix="search a pool on this data first: edge.search(bundle, table, data, …)",
        )
    return score


def _on(targets: str) -> str:
    return {"given": "targets", "original": "the original's results"}.get(targets, "its data")


def _lower_priority() -> None:
    """Let requests have the processor first; on Linux a thread has a priority of its own."""
    if hasattr(os, "setpriority"):
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
