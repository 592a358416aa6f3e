"""Named loads that change over time: seeded, replayable, and run by competing processes.

    python benchmarks/changing_load.py bursts --seconds 60

A load is a list of pieces: so many processes of a kind compute, copy memory, or write and read
files during some seconds; the number may be a fraction, and may rise or fall linearly.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

KINDS = ("cpu", "memory", "disk")
_SLICE_S = 0.05


@dataclass(frozen=True)
class Piece:
    """A part of a load.

    Attributes:
        kind: One of `KINDS`.
        start_s: When it begins, in seconds from the load's start.
        stop_s: When it ends.
        before: The number of processes at its start.
        after: The number at its end.
    """

    kind: str
    start_s: float
    stop_s: float
    before: float
    after: float

    def level(self, time_s: float) -> float:
        """The number of processes at a time."""
        if not self.start_s <= time_s < self.stop_s:
            return 0.0
        share = (time_s - self.start_s) / (self.stop_s - self.start_s)
        return self.before + share * (self.after - self.before)


def level(pieces: Sequence[Piece], time_s: float, kind: str | None = None) -> float:
    """The number of processes of a kind, or of all kinds, at a time."""
    return sum(piece.level(time_s) for piece in pieces if kind in (None, piece.kind))


def steps(seconds: float, rng: random.Random, processes: float) -> Iterator[Piece]:
    """Competing processes that come and go at random times."""
    yield from _on_and_off("cpu", seconds, rng, processes, (4.0, 12.0))


def ramps(seconds: float, rng: random.Random, processes: float) -> Iterator[Piece]:
    """A load that rises for some seconds, stays, and falls."""
    now_s = 2.0
    while now_s < seconds:
        up_s, top_s, down_s = (rng.uniform(*r) for r in ((8, 14), (3, 8), (6, 12)))
        most = processes * rng.uniform(0.7, 1.0)
        yield Piece("cpu", now_s, now_s + up_s, 0.0, most)
        yield Piece("cpu", now_s + up_s, now_s + up_s + top_s, most, most)
        yield Piece("cpu", now_s + up_s + top_s, now_s + up_s + top_s + down_s, most, 0.0)
        now_s += up_s + top_s + down_s + rng.uniform(3, 8)


def bursts(seconds: float, rng: random.Random, processes: float) -> Iterator[Piece]:
    """Bursts at equal distances, as of a player that decodes a video ahead."""
    period_s = rng.uniform(9.0, 14.0)
    share = rng.uniform(0.35, 0.5)
    now_s = rng.uniform(1.0, period_s)
    while now_s < seconds:
        yield Piece("cpu", now_s, now_s + share * period_s, processes, processes)
        now_s += period_s


def memory(seconds: float, rng: random.Random, processes: float) -> Iterator[Piece]:
    """Memory traffic that comes and goes."""
    yield from _on_and_off("memory", seconds, rng, processes, (3.0, 10.0))


def disk(seconds: float, rng: random.Random, processes: float) -> Iterator[Piece]:
    """Writing and reading files, off and on."""
    yield from _on_and_off("disk", seconds, rng, processes, (3.0, 10.0))


def changes(seconds: float, rng: random.Random, processes: float) -> Iterator[Piece]:
    """Changes of all kinds at random times: the paper's first scenario."""
    now_s = 0.0
    while now_s < seconds:
        stop_s = now_s + rng.uniform(3.0, 12.0)
        n = rng.choice((0.0, 0.5, 1.0)) * processes
        yield Piece(rng.choice(KINDS), now_s, stop_s, n, n)
        now_s = stop_s


def video(seconds: float, rng: random.Random, processes: float) -> Iterator[Piece]:
    """A user who plays videos: bursts of decoding and of writes to a cache, with pauses between.

    The paper's second scenario.
    """
    now_s = rng.uniform(2.0, 5.0)
    while now_s < seconds:
        period_s, n_bursts = rng.uniform(5.0, 8.0), rng.randint(4, 8)
        for _ in range(n_bursts):
            n = processes * rng.uniform(0.85, 1.0)
            yield Piece("cpu", now_s, now_s + 0.4 * period_s, n, n)
            yield Piece("disk", now_s, now_s + 0.15 * period_s, 1.0, 1.0)
            now_s += period_s
        now_s += rng.uniform(5.0, 15.0)


#: The loads by name.
LOADS = {made.__name__: made for made in (steps, ramps, bursts, memory, disk, changes, video)}


def _on_and_off(
    kind: str, seconds: float, rng: random.Random, processes: float, lasts_s: tuple[float, float]
) -> Iterator[Piece]:
    now_s = rng.uniform(*lasts_s)
    while now_s < seconds:
        stop_s = now_s + rng.uniform(*lasts_s)
        n = processes * rng.uniform(0.5, 1.0)
        yield Piece(kind, now_s, stop_s, n, n)
        now_s = stop_s + rng.uniform(*lasts_s)


def pieces_of(name: str, seconds: float, seed: int, processes: float = 2.0) -> list[Piece]:
    """The pieces of a load; the same for the same arguments.

    Args:
        name: A key of `LOADS`.
        seconds: How long it lasts.
        seed: Its seed.
        processes: The largest number of processes.
    """
    return list(LOADS[name](seconds, random.Random(f"{name} {seed}"), processes))


@contextmanager
def running(pieces: Sequence[Piece]) -> Iterator[None]:
    """The competing processes of a load, which begin now and end with the context."""
    start_s = time.time()
    processes = []
    for kind in sorted({piece.kind for piece in pieces}):
        own = [piece for piece in pieces if piece.kind == kind]
        most = max(max(piece.before, piece.after) for piece in own)
        for i in range(int(-(-most // 1))):
            told = json.dumps([start_s, i, list(map(asdict, own))])
            command = [sys.executable, __file__, "--work", told]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            processes.append(subprocess.Popen(command, env=environment))
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def work(start_s: float, index: int, pieces: Sequence[Piece]) -> None:
    """One of the competing processes: busy for its share of each slice of time."""
    parent, kind = os.getppid(), pieces[0].kind
    step = _step(kind)
    while os.getppid() == parent:
        begin_s = time.time()
        share = min(1.0, max(0.0, level(pieces, begin_s - start_s) - index))
        while time.time() < begin_s + share * _SLICE_S:
            step()
        time.sleep(max(0.0, begin_s + _SLICE_S - time.time()))


def _step(kind: str) -> object:
    """A millisecond or so of work of a kind."""
    import tempfile

    import numpy as np

    if kind == "cpu":
        a = np.random.default_rng(0).standard_normal((128, 128), dtype=np.float32)
        return lambda: a @ a
    if kind == "memory":
        source, target = np.zeros((2, 2**21), np.float32)
        return lambda: np.copyto(target, source)
    file = tempfile.NamedTemporaryFile()  # noqa: SIM115 - until the process ends
    block = bytes(2**18)

    def write_and_read() -> None:
        file.seek(0)
        file.write(block)
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        file.read()

    return write_and_read


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", choices=LOADS, default="steps")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=float, default=2.0)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.work:
        start_s, index, pieces = json.loads(args.work)
        work(start_s, index, [Piece(**piece) for piece in pieces])
        return
    pieces = pieces_of(args.name, args.seconds, args.seed, args.processes)
    with running(pieces):
        time.sleep(args.seconds)


if __name__ == "__main__":
    main()
