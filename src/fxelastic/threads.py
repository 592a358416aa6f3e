"""How many threads torch computes with, and how they wait for each other."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

from fxelastic.errors import UsageError

# More elements than torch lets one thread compute alone.
_PARALLEL_SIZE = 2**17


@contextlib.contextmanager
def computing_with(threads: int | None = None, *, spinning: bool = False) -> Iterator[None]:
    """Have torch compute with so many threads, which leave the processors to others, for a while.

    As a decorator it holds for each call of a function. The number of threads is as before
    afterwards.

    Args:
        threads: How many; `usual_threads` where None.
        spinning: Let threads that wait spin, which is faster on an idle machine.

    Raises:
        UsageError: ``threads`` is not an integer of at least 1.
    """
    check_threads(threads)
    before = torch.get_num_threads()
    number = usual_threads() if threads is None else threads
    try:
        torch.set_num_threads(number)
        with contextlib.nullcontext() if spinning else _waiting_asleep(number):
            yield
    finally:
        torch.set_num_threads(before)


def check_threads(threads: object) -> None:
    """Check the argument ``threads`` of a public function.

    Raises:
        UsageError: It is neither None nor an integer of at least 1.
    """
    if threads is None or (type(threads) is int and threads >= 1):
        return
    raise UsageError(
        f"threads must be at least 1, got {threads!r}"
        if isinstance(threads, (int, float))
        else "threads must be a number",
        expected="an integer of at least 1, or None for the default",
        got=repr(threads),
    )


def usual_threads() -> int:
    """Torch's own number of threads, but no more than this process has processors."""
    return min(torch.get_num_threads(), processors())


def processors(root: Path = Path("/")) -> int:
    """How many processors this process may use: by its affinity and the quota of its cgroup.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    if hasattr(os, "sched_getaffinity"):
        number = len(os.sched_getaffinity(0))
    else:
        number = os.cpu_count() or 1
    return max(1, math.ceil(min(number, _quota(root))))


def _quota(root: Path) -> float:
    """Processors that the cgroup (version 2) of this process and those above it allow."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return math.inf
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
    if own is None:
        return math.inf
    folder = root / "sys/fs/cgroup" / own
    lowest = math.inf
    # In a container the path may be the host's, of which only the last folders are there.
    while folder.is_relative_to(root / "sys/fs/cgroup"):
        with contextlib.suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            lowest = min(lowest, int(quota) / int(period))
        folder = folder.parent
    return lowest


@contextlib.contextmanager
def _waiting_asleep(number: int) -> Iterator[None]:
    """Have threads of GNU's OpenMP that wait for others sleep at once, for a while.

    They spin for 3 ms, beside another process on its processor, and each of a step's thousands of
    parallel operators waits for them. With more threads than processors they do not: a team that
    sleeps is enough for that. See "Threads" in ARCHITECTURE.md.
    """
    idle = processors() - number + 2
    if sys.platform != "linux" or number == 1 or idle < 2:
        yield
        return
    ready, end = threading.Event(), threading.Event()

    def hold_a_team() -> None:
        try:
            torch.set_num_threads(idle)
            torch.ones(_PARALLEL_SIZE).add_(1)
        finally:
            ready.set()
        end.wait()

    # A daemon: an interpreter that ends waits for no other.
    holder = threading.Thread(target=hold_a_team, name="fxelastic-idle-team", daemon=True)
    holder.start()
    try:
        ready.wait()
        # New threads of the process begin with the number that was set last.
        torch.set_num_threads(number)
        yield
    finally:
        end.set()
        holder.join()
