"""Run competing processes in steps, as the paper does (§7.6, Figure 13).

    python benchmarks/competitors.py --steps 0,1,2,0 --seconds 15

Each process multiplies matrices in one thread until it is ended. It takes a core and memory
bandwidth, like inference in another program.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_WORK = """
import numpy, os, sys
a = numpy.random.default_rng(0).standard_normal((384, 384), dtype=numpy.float32)
parent = os.getppid()
while os.getppid() == parent:
    a @ a
"""


class Competitors:
    """A number of competing processes that can change."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []

    def set(self, n: int) -> None:
        """Start or end processes until there are n."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        while len(self._processes) < n:
            self._processes.append(subprocess.Popen([sys.executable, "-c", _WORK], env=environment))
        while len(self._processes) > n:
            process = self._processes.pop()
            process.kill()
            process.wait()


@contextmanager
def competitors() -> Iterator[Competitors]:
    """Competing processes, which end with the context."""
    made = Competitors()
    try:
        yield made
    finally:
        made.set(0)


def steps_of(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=steps_of, default=[0, 1, 2, 0])
    parser.add_argument("--seconds", type=float, default=15.0)
    args = parser.parse_args(argv)
    with competitors() as made:
        for n in args.steps:
            print(f"{n} competing processes for {args.seconds:g} s", flush=True)
            made.set(n)
            time.sleep(args.seconds)


if __name__ == "__main__":
    main()
