"""Which subnets are in memory, and that none leaves under a request."""

from __future__ import annotations

import threading
import time

import pytest

from fxelastic.edge.serving.cache import MemoryLimitError, SubnetCache
from fxelastic.edge.serving.events import EventLog
from fxelastic.errors import ServingError
from tests.edge.serving.fakes import SIZE, FakeLoader, pool, wait_until

POOL = pool(1, 2, 3, 4, 5)


def cache(loader: FakeLoader, limit_bytes: int | None = None) -> SubnetCache:
    return SubnetCache(loader, EventLog(time.monotonic), time.monotonic, limit_bytes)


def cached(n: int, loader: FakeLoader | None = None, limit: int | None = None) -> SubnetCache:
    """A cache with the first n subnets of the pool, the first of them in use."""
    made = cache(loader or FakeLoader(), None if limit is None else limit * SIZE)
    for step in POOL[:n]:
        made.load(step)
    made.use(POOL[0])
    return made


def test_a_request_keeps_its_subnet_while_another_takes_over() -> None:
    loader = FakeLoader()
    made = cached(2, loader)
    request = made.acquire()
    assert made.use(POOL[1])
    assert made.discard(POOL[0].arch)
    assert loader.open[POOL[0].arch] == 1
    assert made.acquire().candidate is POOL[1]
    made.release(request)
    assert loader.open[POOL[0].arch] == 0
    assert not loader.faults


def test_the_subnet_in_use_does_not_leave() -> None:
    made = cached(1)
    assert not made.discard(POOL[0].arch)
    assert made.current is POOL[0]


def test_what_was_not_loaded_can_t_be_used() -> None:
    made = cached(1)
    assert not made.use(POOL[1])
    assert made.current is POOL[0]


def test_the_longest_unused_makes_room() -> None:
    made = cached(3, limit=3)
    made.use(POOL[2])
    made.use(POOL[0])
    assert made.load(POOL[3]) == (POOL[1].arch,)
    assert made.archs == {POOL[0].arch, POOL[2].arch, POOL[3].arch}


def test_what_is_kept_does_not_make_room() -> None:
    made = cached(3, limit=3)
    assert made.load(POOL[3], keep=(POOL[1].arch,)) == (POOL[2].arch,)
    with pytest.raises(MemoryLimitError, match="no room"):
        made.load(POOL[4], keep=(POOL[1].arch, POOL[3].arch))
    assert made.resident_bytes == 3 * SIZE


def test_loading_waits_for_the_last_request_of_what_leaves() -> None:
    loader = FakeLoader()
    made = cached(2, loader, limit=2)
    made.use(POOL[1])
    request = made.acquire()
    made.use(POOL[0])
    thread = threading.Thread(target=made.load, args=(POOL[2],))
    thread.start()
    wait_until(lambda: POOL[1].arch not in made.archs)
    assert POOL[2].arch not in made.archs
    made.release(request)
    thread.join()
    assert POOL[2].arch in made.archs
    assert loader.most_open == 2


def test_a_subnet_is_loaded_once() -> None:
    loader = FakeLoader(load_s=0.01)
    made = cache(loader)
    threads = [threading.Thread(target=made.load, args=(POOL[0],)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loader.loaded == [POOL[0].arch]


def test_a_failed_load_leaves_nothing() -> None:
    loader = FakeLoader(broken={POOL[1].arch})
    made = cached(1, loader)
    with pytest.raises(OSError, match="no file"):
        made.load(POOL[1])
    assert made.archs == {POOL[0].arch}


def test_close_waits_for_requests_and_frees_everything() -> None:
    loader = FakeLoader()
    made = cached(3, loader)
    request = made.acquire()
    assert not made.close(timeout_s=0.01)
    assert sum(loader.open.values()) == 1
    made.release(request)
    assert made.close()
    assert sum(loader.open.values()) == 0
    with pytest.raises(ServingError, match="closed"):
        made.acquire()
    with pytest.raises(ServingError, match="closed"):
        made.load(POOL[4])
    assert not loader.faults


def test_what_is_loaded_during_close_is_closed() -> None:
    loader = FakeLoader(load_s=0.05)
    made = cached(1, loader)
    failed: list[BaseException] = []

    def load() -> None:
        try:
            made.load(POOL[1])
        except ServingError as e:
            failed.append(e)

    thread = threading.Thread(target=load)
    thread.start()
    made.close()
    thread.join()
    assert sum(loader.open.values()) == 0
    assert failed or loader.loaded == [POOL[0].arch]
