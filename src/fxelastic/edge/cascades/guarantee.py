"""An upper bound on a probability, from counts, without assumptions about the distribution."""

from __future__ import annotations

import math

import numpy as np


def upper_bound(n_found: int, n: int, delta: float) -> float:
    """The largest probability at which so few of n samples are found at least delta of the time.

    If the true probability is higher than the bound, which happens with probability ``delta`` at
    most, so few are found with a probability below ``delta``.

    Args:
        n_found: How many samples of n have the property.
        n: The number of independent samples.
        delta: The probability that the bound does not hold.

    Source: Clopper and Pearson, Biometrika 26 (1934), one-sided.
    """
    if n_found >= n:
        return 1.0
    low, high = n_found / n, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(n_found, n, middle) > delta else (low, middle)
    return high


def samples_needed(max_loss: float, delta: float) -> int:
    """The least number of samples whose bound can be as low as ``max_loss``: if none is found."""
    return math.ceil(math.log(delta) / math.log1p(-max_loss))


def _at_most(k: int, n: int, p: float) -> float:
    """The probability that at most k of n samples are found, each with probability p."""
    if p <= 0 or p >= 1:
        return float(p <= 0)
    i = np.arange(k + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log((n - i[:-1]) / (i[:-1] + 1)))])
    logs = logs + i * math.log(p) + (n - i) * math.log1p(-p)
    largest = logs.max()
    return float(np.exp(largest) * np.exp(logs - largest).sum())
