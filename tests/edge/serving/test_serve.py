"""`edge.serve` over a real bundle."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxelastic import edge
from fxelastic.edge.bundle import Bundle
from fxelastic.edge.serving.paged import PagedLoader
from fxelastic.edge.serving.policy import Decision, RatioPolicy, Situation
from fxelastic.edge.serving.runtime import Runtime, ServingOptions
from fxelastic.edge.serving.standby import Standby
from fxelastic.errors import ServingError, UsageError
from fxelastic.spec import Arch
from tests.edge.serving.fakes import wait_until
from tests.edge.serving.simulation import Entry
from tests.edge.serving.tiny_bundle import reference, write_bundle

X = np.random.default_rng(0).standard_normal((2, 8, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("serve") / "bundle")


@pytest.fixture(scope="module")
def pool(bundle: Bundle) -> list[Entry]:
    archs = dict.fromkeys([bundle.space.original, *bundle.space.sample(5, seed=1)])
    return [Entry(arch, 100.0 + 20 * i, 0.5 + i / 100) for i, arch in enumerate(archs)]


@pytest.fixture(scope="module")
def expected(bundle: Bundle, pool: list[Entry]) -> dict[Arch, Any]:
    return {entry.arch: reference(bundle, entry.arch, {"x": X}) for entry in pool}


class Random:
    """A policy that wants another subnet all the time."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def decide(self, situation: Situation) -> Decision:
        target = self._rng.choice(situation.ladder.steps)
        return Decision(target, True, situation.budget_ms, "random")


@pytest.fixture(params=["assembled", "paged"])
def mode(request: pytest.FixtureRequest) -> Iterator[str]:
    before = threading.active_count()
    yield request.param
    assert threading.active_count() == before


def test_a_request_gets_what_its_subnet_computes(
    bundle: Bundle, pool: list[Entry], expected: dict[Arch, Any], mode: str
) -> None:
    with edge.serve(bundle, None, pool, budget_ms=1000, mode=mode) as runtime:
        reply = runtime.infer(X)
        assert reply.arch == pool[-1].arch
        assert isinstance(reply.value, np.ndarray)
        np.testing.assert_allclose(reply.value, expected[reply.arch], rtol=1e-4, atol=1e-4)
        with pytest.raises(UsageError, match="float64"):
            runtime(X.astype(np.float64))


def test_switching_under_four_threads_gives_each_subnet_s_numbers(
    bundle: Bundle, pool: list[Entry], expected: dict[Arch, Any], mode: str
) -> None:
    served: set[Arch] = set()
    wrong: list[str] = []

    def ask(runtime: Runtime) -> None:
        n = 0
        while n < 150 or (len(served) < 3 and n < 20_000):
            n += 1
            reply = runtime.infer(X)
            served.add(reply.arch)
            if not np.allclose(reply.value, expected[reply.arch], rtol=1e-4, atol=1e-4):
                wrong.append(str(reply.arch))

    options = ServingOptions(policy=Random(0), standby=Standby(), tick_s=0.001)
    with edge.serve(bundle, None, pool, budget_ms=1000, mode=mode, options=options) as runtime:
        threads = [threading.Thread(target=ask, args=(runtime,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        status = runtime.status()
    assert wrong == []
    assert len(served) >= 3
    assert status.n_failed == 0


def test_files_that_vanish_and_break_under_it_fail_no_request(
    tmp_path: Path, pool: list[Entry], expected: dict[Arch, Any], mode: str
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    options = ServingOptions(policy=Random(1), standby=Standby(limit=0), tick_s=0.001, retry_s=0.01)
    with edge.serve(bundle, None, pool, budget_ms=1000, mode=mode, options=options) as runtime:
        runtime(X)
        files = sorted((bundle.path / "branches").iterdir())
        for i, file in enumerate(files):
            file.unlink() if i % 2 else file.write_bytes(file.read_bytes()[:-9] + b"corrupted")
        for _ in range(200):
            reply = runtime.infer(X)
            np.testing.assert_allclose(reply.value, expected[reply.arch], rtol=1e-4, atol=1e-4)

        def failed() -> bool:
            reply = runtime.infer(X)
            np.testing.assert_allclose(reply.value, expected[reply.arch], rtol=1e-4, atol=1e-4)
            return "load_failed" in runtime.status().events

        wait_until(failed)
        assert runtime.status().n_failed == 0


def test_paged_mode_holds_the_subnet_in_use_only(bundle: Bundle, pool: list[Entry]) -> None:
    options = ServingOptions(policy=RatioPolicy(calm_s=0.0))
    with edge.serve(bundle, None, pool, budget_ms=1000, mode="paged", options=options) as runtime:
        for best in (pool[0], pool[3], pool[1]):
            runtime.budget_ms = 1.1 * best.latency_ms
            wait_until(lambda best=best: runtime.status().step == best)
            n_bytes = sum(bundle.segment(branch).weight_bytes for branch in best.arch)
            wait_until(lambda n_bytes=n_bytes: runtime.status().resident_bytes == n_bytes)


def test_memory_decides_the_mode_and_the_pool(bundle: Bundle, pool: list[Entry]) -> None:
    sizes = [sum(bundle.segment(b).weight_bytes for b in entry.arch) for entry in pool]
    smallest = min(sizes)
    with edge.serve(bundle, None, pool, budget_ms=1000, memory_bytes=smallest) as runtime:
        assert len(runtime.entries) == sizes.count(smallest)
        assert runtime.status().resident_bytes == smallest
    with pytest.raises(UsageError, match="too small for every subnet"):
        edge.serve(bundle, None, pool, budget_ms=1000, memory_bytes=smallest - 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "fast"}, "no such mode"),
        ({"memory_bytes": 0}, "memory_bytes"),
        ({"pool": []}, "pool is empty"),
        ({"pool": [Entry(Arch(("other@0",)), 1.0, 0.5)]}, "no branch"),
        ({"budget_ms": -1}, "budget_ms"),
    ],
)
def test_bad_arguments_are_refused(
    bundle: Bundle, pool: list[Entry], changes: dict[str, Any], message: str
) -> None:
    arguments: dict[str, Any] = {"pool": pool, "budget_ms": 10, "mode": "paged", **changes}
    with pytest.raises(UsageError, match=message):
        edge.serve(bundle, None, arguments.pop("pool"), **arguments)


def test_paged_subnets_are_prepared_on_disk_alone(
    bundle: Bundle, pool: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    with edge.serve(bundle, None, pool, budget_ms=1000, mode="paged") as runtime:
        loader = runtime._residents._loader
        assert isinstance(loader, PagedLoader)
        assert loader.pages is not None
        assert loader.pages.wait(60)
        assert all(loader.pages.path(branch) for entry in pool for branch in entry.arch)
    monkeypatch.setattr("fxelastic.edge.serving.serve.on_disk", lambda: None)
    with edge.serve(bundle, None, pool, budget_ms=1000, mode="paged") as runtime:
        loader = runtime._residents._loader
        assert isinstance(loader, PagedLoader)
        assert loader.pages is None


def test_without_room_for_temporary_files_paged_subnets_are_served(
    bundle: Bundle, pool: list[Entry], expected: dict[Arch, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(prefix: str, dir: Path) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fxelastic.edge.serving.scratch.tempfile.mkdtemp", full)
    with edge.serve(bundle, None, pool, budget_ms=1000, mode="paged") as runtime:
        reply = runtime.infer(X)
        np.testing.assert_allclose(reply.value, expected[reply.arch], rtol=1e-4, atol=1e-4)
    with pytest.raises(ServingError, match="no folder for temporary files"):
        edge.serve(bundle, None, pool, budget_ms=1000, mode="assembled")
