"""Open files while another process replaces them: no bytes run that were not verified.

    python -m tests.edge.racing_opens [OPENS]

A child replaces the files of a bundle and its prepared files, again and again, by those of another
one with other weights, and back: by renaming, and in place, half by half. Meanwhile subnets and
cascades are loaded and run in all modes, until as many sessions were made of files. Prints a JSON
object: the number of sessions, and how many loads ran verified bytes, were refused, or ran other
bytes, which must be 0.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from fxelastic.edge import sessions
from fxelastic.edge.bundle import Bundle, load
from fxelastic.errors import BundleError, ServingError
from tests.edge.test_replaced_files import RUNS, write_folders

# The quick ones of all ways to load.
WAYS = ("executor", "paged", "assembled", "paged cascade", "assembled cascade", "prepare")


def replace_for_ever(good: Path, bad: Path, place: Path) -> None:
    """Give files of a folder the content of the same file in one of two others."""
    rng = random.Random("race")
    names = [p.relative_to(bad) for p in sorted(bad.rglob("*")) if p.suffix != ".json"]
    names = [name for name in names if (bad / name).is_file()]
    contents = {name: [(root / name).read_bytes() for root in (good, bad)] for name in names}
    while True:
        name = rng.choice(names)
        data = contents[name][rng.random() < 0.3]
        target = place / name
        if rng.random() < 0.5:
            new = target.with_name(f"{target.name}.new")
            new.write_bytes(data)
            new.replace(target)
        else:
            with target.open("r+b") as file:
                for half in (data[: len(data) // 2], data[len(data) // 2 :]):
                    file.write(half)
                    file.flush()
        if rng.random() < 0.5:
            time.sleep(rng.random() * 1e-3)


def race(n_opens: int, folder: Path) -> dict[str, Any]:
    """Open files during a race; returns the counts.

    Args:
        n_opens: How many sessions to make of files.
        folder: An empty folder.
    """
    made = [0]
    own = sessions.source

    def source(*args: Any) -> Any:
        made[0] += 1
        return own(*args)

    with mock.patch.object(sessions, "source", source):
        return _raced(n_opens, folder, made)


def _raced(n_opens: int, folder: Path, made: list[int]) -> dict[str, Any]:
    good, bad = write_folders(folder)
    place = Path(shutil.copytree(good, folder / "place"))
    expected = {way: RUNS[way](load(good / "bundle"), good) for way in WAYS}
    counts = {"verified": 0, "refused": 0, "unverified": 0}
    begin_s = time.perf_counter()
    child = os.fork()
    if not child:
        try:
            replace_for_ever(good, bad, place)
        finally:
            os._exit(1)
    try:
        made[0] = 0
        while made[0] < n_opens:
            counts[_ended(WAYS[sum(counts.values()) % len(WAYS)], place, expected)] += 1
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return {"opens": made[0], **counts, "seconds": round(time.perf_counter() - begin_s, 1)}


def _ended(way: str, place: Path, expected: dict[str, Any]) -> str:
    run: Callable[[Bundle, Path], Any] = RUNS[way]
    shutil.rmtree(place / "new", ignore_errors=True)
    try:
        found = run(load(place / "bundle"), place)
    except (BundleError, ServingError):
        return "refused"
    return "verified" if np.allclose(found, expected[way], atol=1e-3) else "unverified"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        n_opens = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
        result = race(n_opens, Path(name))
    print(json.dumps(result))
    sys.exit(result["unverified"] > 0)
