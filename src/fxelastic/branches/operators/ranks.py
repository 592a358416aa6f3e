"""Shares of a rank or of channels as numbers, and in the ids of branches."""

from __future__ import annotations

#: Numbers of channels are multiples of it where that changes little: kernels run in such steps.
STEP = 8


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
