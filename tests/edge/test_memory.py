"""What the process grows by is bounded, and results do not depend on the bound."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxelastic import edge
from fxelastic.edge import executor, memory, subnet_timing
from fxelastic.edge.memory import GrowthLimit
from fxelastic.edge.sessions import SessionMaker
from fxelastic.edge.subnet_timing import SubnetTimer
from tests.cli.commands import environment
from tests.edge.serving.tiny_bundle import write_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> edge.Bundle:
    return write_bundle(tmp_path_factory.mktemp("memory") / "bundle")


def image() -> dict[str, Any]:
    return {"x": np.random.default_rng(0).standard_normal((1, 8, 8, 8)).astype(np.float32)}


class Sessions:
    """A limit that counts the sessions of an executor instead of bytes."""

    n_bytes = 2**20

    def __init__(self, most: int) -> None:
        self.most = most
        self.executor: edge.Executor | None = None
        self.n_begun = 0

    def begin(self) -> None:
        self.n_begun += 1

    def has_room(self, n_bytes: int = 0) -> bool:
        assert self.executor is not None
        return len(self.executor._sessions) + (n_bytes > 0) <= self.most


def limited(bundle: edge.Bundle, most: int) -> tuple[edge.Executor, Sessions]:
    limit = Sessions(most)
    limit.executor = edge.Executor(bundle, limit=limit)  # type: ignore[arg-type]
    return limit.executor, limit


def test_growth_is_counted_from_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    now, freed = [1000], [0]
    monkeypatch.setattr(memory, "resident_bytes", lambda: now[0])

    def freeing() -> None:
        now[0] -= freed[0]
        freed[0] = 0

    monkeypatch.setattr(memory, "give_back", freeing)
    limit = GrowthLimit(100)
    assert limit.has_room(100)
    assert not limit.has_room(101)
    now[0] = 1120
    assert not limit.has_room()
    freed[0] = 20
    assert limit.has_room()
    limit.begin()
    assert limit.has_room(100)


# In a process of its own: another one may hold so much free memory that it does not grow.
_FREED = """
import numpy as np
from fxelastic.edge.memory import give_back, resident_bytes
before = resident_bytes()
# Too small for maps of their own: the C library keeps what is freed, below what is not.
blocks = [np.ones(12_500) for _ in range(500)]
print(resident_bytes() - before)
del blocks[:-1]
give_back()
print(resident_bytes() - before)
"""


def test_memory_that_was_freed_is_given_back() -> None:
    taken, kept = map(int, output_of(_FREED).split())
    assert taken > 40_000_000
    assert kept < 20_000_000


def test_sessions_go_where_the_process_has_grown_by_too_much(bundle: edge.Bundle) -> None:
    executor, _ = limited(bundle, 3)
    with executor, edge.Executor(bundle) as free:
        for arch in bundle.space.sample(10, seed=2):
            np.testing.assert_array_equal(
                executor.run(arch, image())[0], free.run(arch, image())[0]
            )
            assert len(executor._sessions) <= 3
        assert executor.n_dropped > 0
        assert free.n_dropped == 0
        executor.make_room(1)
        assert len(executor._sessions) == 2


def test_a_limit_that_nothing_keeps_is_told(
    bundle: edge.Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    executor, limit = limited(bundle, 0)
    with executor, edge.Executor(bundle) as free, caplog.at_level(logging.WARNING):
        arch = bundle.space.original
        np.testing.assert_array_equal(executor.run(arch, image())[0], free.run(arch, image())[0])
    assert caplog.text.count("limit of 1 MiB of memory is too low") == 1
    assert limit.n_begun > 0


@pytest.mark.parametrize("mode", ["assembled", "paged"])
def test_subnets_that_do_not_fit_are_not_timed(
    bundle: edge.Bundle,
    mode: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    archs = [a for a in bundle.space.sample(6, seed=0) if a != bundle.space.original][:4]

    class Room(Sessions):
        """Room for so many subnets."""

        n_added = 0

        def has_room(self, n_bytes: int = 0) -> bool:
            if n_bytes and mode == "assembled":
                self.n_added += 1
            return mode == "paged" or self.n_added <= self.most

    def timed(limit: Any, executor: edge.Executor) -> dict[Any, float]:
        timer = SubnetTimer(executor, image(), limit)
        return timer.time(archs, mode, SessionMaker(1), rounds=2)

    with edge.Executor(bundle) as executor:
        assert list(timed(Room(99), executor)) == [bundle.space.original, *archs]
    assert not caplog.text
    if mode == "assembled":
        with edge.Executor(bundle) as executor:
            assert list(timed(Room(2), executor)) == [bundle.space.original, archs[0]]
        assert "3 of 4 assembled subnets were not measured" in caplog.text
        return
    n_original = len({bundle.segment(b).sha256 for b in bundle.space.original})
    executor, limit = limited(bundle, n_original)
    with executor:
        # Those of the original's own branches would fit; there is none.
        assert timed(limit, executor) == {}
    assert "4 of 4 paged subnets were not measured" in caplog.text


def test_groups_are_as_large_as_there_is_room(
    bundle: edge.Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    archs = [a for a in bundle.space.sample(20, seed=0) if a != bundle.space.original][:5]
    sizes: list[int] = []
    sampled = subnet_timing.sample_groups

    def recorded(groups: Any, *args: Any, **options: Any) -> list[list[list[float]]]:
        sizes.extend(map(len, groups))
        return sampled(groups, *args, **options)

    monkeypatch.setattr(subnet_timing, "sample_groups", recorded)
    monkeypatch.setattr(subnet_timing, "_MOST", 2)
    with edge.Executor(bundle) as executor:
        found = SubnetTimer(executor, image()).time(archs, "paged", SessionMaker(1), rounds=2)
    assert list(found) == [bundle.space.original, *archs]
    assert sizes == [3, 3, 2]


_PROFILE = """
import sys
import numpy as np
from fxelastic import edge
from fxelastic.edge.memory import give_back, resident_bytes
bundle = edge.load(sys.argv[1])
with edge.Executor(bundle, 1) as executor:
    executor.run(bundle.space.original, {"x": np.zeros((1, 8, 8, 8), np.float32)})
give_back()
before = resident_bytes()
edge.profile(bundle, threads=1, n_samples=3, n_subnets=4, n_held_out=2, memory_bytes=64 * 2**20)
print(resident_bytes() - before)
"""


# --- The bound of an executor whose caller sets none ------------------------------------------


def weighty(
    monkeypatch: pytest.MonkeyPatch, bundle: edge.Bundle, session_bytes: int
) -> edge.Executor:
    """An executor of which each session seems to take so much."""
    made: list[edge.Executor] = []

    def grown() -> int:
        return session_bytes * sum(len(executor._sessions) for executor in made)

    for module in (memory, executor):
        monkeypatch.setattr(module, "resident_bytes", grown)
    monkeypatch.setattr(memory, "give_back", lambda: None)
    made.append(edge.Executor(bundle))
    return made[0]


def test_an_executor_does_not_keep_the_sessions_of_every_subnet_that_it_ran(
    bundle: edge.Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = weighty(monkeypatch, bundle, 40 * 2**20)
    with executor, edge.Executor(bundle, memory_bytes=None) as free:
        for arch in bundle.space.sample(12, seed=2):
            np.testing.assert_array_equal(
                executor.run(arch, image())[0], free.run(arch, image())[0]
            )
            assert len(executor._sessions) <= 256 // 40
        assert executor.n_dropped > 0
        assert len(free._sessions) > 256 // 40
        assert free.n_dropped == 0


def test_what_the_running_subnet_needs_stays(
    bundle: edge.Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However large: to make its sessions anew for each run would take far longer."""
    with weighty(monkeypatch, bundle, 2**30) as executor:
        for arch in (bundle.space.original, *bundle.space.sample(6, seed=0)):
            executor.run(arch, image())
            n_loaded = executor.n_loaded
            for _ in range(3):
                executor.run(arch, image())
            assert executor.n_loaded == n_loaded
            assert len(executor._sessions) <= bundle.space.n_blocks + 1


def test_the_default_bound_follows_the_original(
    bundle: edge.Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = sum(bundle.segment(branch).weight_bytes for branch in bundle.space.original)
    assert executor.default_bytes(bundle) == 2**28
    monkeypatch.setattr(executor, "_LEAST_BYTES", 1)
    assert executor.default_bytes(bundle) == 4 * weights


_RUN = """
import sys
import numpy as np
from fxelastic import edge
from fxelastic.edge import executor
from fxelastic.edge.memory import give_back, resident_bytes
path, kind, least = sys.argv[1:]
bundle = edge.load(path)
executor._LEAST_BYTES, executor._TIMES_ORIGINAL = int(least), 0
(info,) = bundle.inputs
def image(n):
    return {"x": np.zeros((n, *info.shape[1:]), np.float32)}
archs = bundle.space.sample(12, seed=1)
with edge.Executor(bundle, 1) as executor:
    executor.run(archs[0], image(1))
    before = resident_bytes()
    if kind == "large batch":
        executor.run(archs[0], image(60))
        for _ in range(3):
            executor.run(archs[0], image(1))
    else:
        for arch in archs:
            executor.run(arch, image(20))
    give_back()
    print(resident_bytes() - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("large") / "b", depth=10, width=32, size=48).path


def test_many_subnets_at_a_large_batch_take_little_memory(large: Path) -> None:
    """Each session used to keep what its largest batch took: 600 MiB here."""
    assert int(output_of(_RUN, str(large), "batch", str(2**28))) < 2**28


def test_memory_of_one_large_batch_is_returned(large: Path) -> None:
    bound = 2**25
    assert int(output_of(_RUN, str(large), "large batch", str(bound))) < bound


def output_of(code: str, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_a_profile_stays_within_what_it_was_allowed(bundle: edge.Bundle) -> None:
    assert int(output_of(_PROFILE, str(bundle.path))) <= 64 * 2**20
