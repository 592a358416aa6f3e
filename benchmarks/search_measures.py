"""The effort of searches to the same accuracy, from their histories."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

#: The best so far, as points of subnets evaluated, seconds and accuracy.
Steps = Sequence[Sequence[float]]

AXES = {"subnets": 0, "seconds": 1}


def to_the_same_average(
    rows: Sequence[dict[str, Any]], plain: str, what: str
) -> tuple[float, float]:
    """The effort of searches until their means over seeds reach the plain search's final mean.

    AdaptiveNet compares searches in this way (§7.6, Figure 12a).

    Args:
        rows: For each seed, each search's ``steps``.
        plain: Name of the plain search.
        what: ``subnets`` or ``seconds``.

    Returns:
        The effort of the guided and the plain search; infinity if the guided one never reaches it.
    """
    goal = statistics.mean(row[plain]["steps"][-1][2] for row in rows)
    guided = until([row["evolutionary"]["steps"] for row in rows], goal, AXES[what])
    return guided, until([row[plain]["steps"] for row in rows], goal, AXES[what])


def until(histories: Sequence[Steps], goal: float, axis: int) -> float:
    """The first point of an axis at which the mean of the best so far reaches a goal."""
    for at in sorted(step[axis] for steps in histories for step in steps):
        best = [[step[2] for step in steps if step[axis] <= at] for steps in histories]
        if all(best) and statistics.mean(map(max, best)) >= goal - 1e-9:
            return at
    return math.inf


def seed_by_seed(rows: Sequence[dict[str, Any]], plain: str, what: str) -> float:
    """The guided search's effort to the plain one's final accuracy, as a share of the plain one's.

    The median over seeds; the plain search's effort counts until it first has that accuracy.
    """
    axis = AXES[what]
    ratios = []
    for row in rows:
        steps = row[plain]["steps"]
        guided = until([row["evolutionary"]["steps"]], steps[-1][2], axis)
        ratios.append(guided / until([steps], steps[-1][2], axis))
    return statistics.median(ratios)
