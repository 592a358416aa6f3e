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
from fxelastic.edge.candidates import Candidate
from fxelastic.edge.prepared import Item, PreparedFiles
from fxelastic.edge.serving.loaders import AssembledLoader, PagedLoader
from fxelastic.edge.serving.options import Serving
from fxelastic.edge.serving.policy import Decision, RatioPolicy, Situation
from fxelastic.edge.serving.preload import Preload
from fxelastic.edge.serving.runtime import Runtime
from fxelastic.errors import UsageError
from fxelastic.spec import Arch
from tests.edge.serving.fakes import n_threads, wait_until
from tests.edge.serving.tiny_bundle import reference, write_bundle

X = np.random.default_rng(0).standard_normal((2, 8, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("serve") / "bundle")


@pytest.fixture(scope="module")
def pool(bundle: Bundle) -> list[Candidate]:
    archs = dict.fromkeys([bundle.space.original, *bundle.space.sample(5, seed=1)])
    return [Candidate(arch, 100.0 + 20 * i, 0.5 + i / 100) for i, arch in enumerate(archs)]


@pytest.fixture(scope="module")
def expected(bundle: Bundle, pool: list[Candidate]) -> dict[Arch, Any]:
    return {entry.arch: reference(bundle, entry.arch, {"x": X}) for entry in pool}


class Random:
    """A policy that wants another subnet all the time."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def decide(self, situation: Situation) -> Decision:
        target = self._rng.choice(situation.table.frontier)
        return Decision(target, True, situation.budget_ms, "random")


@pytest.fixture(params=["assembled", "paged"])
def mode(request: pytest.FixtureRequest) -> Iterator[str]:
    before = n_threads()
    yield request.param
    assert n_threads() == before


def test_a_request_gets_what_its_subnet_computes(
    bundle: Bundle, pool: list[Candidate], expected: dict[Arch, Any], mode: str
) -> None:
    with edge.serve(bundle, None, pool, budget_ms=1000, mode=mode) as runtime:
        reply = runtime.infer(X)
        assert reply.arch == pool[-1].arch
        assert isinstance(reply.value, np.ndarray)
        np.testing.assert_allclose(reply.value, expected[reply.arch], rtol=1e-4, atol=1e-4)
        with pytest.raises(UsageError, match="float64"):
            runtime(X.astype(np.float64))


def test_switching_under_four_threads_gives_each_subnet_s_numbers(
    bundle: Bundle, pool: list[Candidate], expected: dict[Arch, Any], mode: str
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

    options = Serving(policy=Random(0), preload=Preload(), tick_s=0.001)
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
    tmp_path: Path, pool: list[Candidate], expected: dict[Arch, Any], mode: str
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    options = Serving(policy=Random(1), preload=Preload(limit=0), tick_s=0.001, retry_s=0.01)
    with edge.serve(bundle, None, pool, budget_ms=1000, mode=mode, options=options) as runtime:
        runtime(X)
        prepared = PreparedFiles.of(bundle).folder
        files = sorted([*(bundle.path / "branches").iterdir(), *prepared.rglob("model.*")])
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


def test_paged_mode_holds_the_subnet_in_use_only(bundle: Bundle, pool: list[Candidate]) -> None:
    options = Serving(policy=RatioPolicy(calm_s=0.0))
    with edge.serve(bundle, None, pool, budget_ms=1000, mode="paged", options=options) as runtime:
        for best in (pool[0], pool[3], pool[1]):
            runtime.budget_ms = 1.1 * best.latency_ms
            wait_until(lambda best=best: runtime.status().step == best)
            n_bytes = sum(bundle.segment(branch).weight_bytes for branch in best.arch)
            wait_until(lambda n_bytes=n_bytes: runtime.status().resident_bytes == n_bytes)


def test_memory_decides_the_mode_and_the_pool(bundle: Bundle, pool: list[Candidate]) -> None:
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
        ({"mode": "fast"}, "unknown mode 'fast'"),
        ({"mdoe": "paged"}, "unknown option 'mdoe'[\\s\\S]*did you mean mode"),
        ({"threads": -1}, "threads must be at least 0, got -1"),
        ({"threads": 2.0}, "threads must be at least 0, got 2.0"),
        ({"policy": max}, "policy must be a SwitchPolicy"),
        ({"monitor": 3}, "monitor must be callable"),
        ({"limits": {"latency_ms": 5}}, "one latency budget"),
        ({"limits": {"weight_bytes": 1}}, "no subnet of the pool keeps the limits"),
        ({"limits": {"watts": 1}}, "unknown resource 'watts'"),
        ({"memory_bytes": 0}, "memory_bytes"),
        ({"pool": []}, "pool is empty"),
        ({"pool": [Candidate(Arch(("other@0",)), 1.0, 0.5)]}, "no branch"),
        ({"budget_ms": -1}, "budget_ms"),
    ],
)
def test_bad_arguments_are_refused(
    bundle: Bundle, pool: list[Candidate], changes: dict[str, Any], message: str
) -> None:
    arguments: dict[str, Any] = {"pool": pool, "budget_ms": 10, "mode": "paged", **changes}
    with pytest.raises(UsageError, match=message):
        edge.serve(bundle, None, arguments.pop("pool"), **arguments)


def test_what_paged_mode_lacks_is_prepared_in_the_background(
    bundle: Bundle, pool: list[Candidate]
) -> None:
    files = PreparedFiles.of(bundle)
    with edge.serve(bundle, None, pool, budget_ms=1000, mode="paged") as runtime:
        loader = runtime._loader
        assert isinstance(loader, PagedLoader)
        assert loader.preparation.wait(60)
    assert all(files.find(Item.branch(branch)) for entry in pool for branch in entry.arch)


def test_prepared_subnets_are_served_without_another_process(
    bundle: Bundle, pool: list[Candidate], tmp_path: Path, mode: str
) -> None:
    edge.prepare(bundle, pool, mode=mode, prepared=tmp_path)
    options = Serving(policy=Random(0), preload=Preload(), tick_s=0.001, prepared=tmp_path)
    with edge.serve(bundle, None, pool, budget_ms=1000, mode=mode, options=options) as runtime:
        served: set[Arch] = set()

        def all_served() -> bool:
            served.add(runtime.infer(X).arch)
            return len(served) >= 3

        wait_until(all_served)
        loader = runtime._loader
        assert isinstance(loader, AssembledLoader | PagedLoader)
        assert loader.preparation._process is None
        assert "load_failed" not in runtime.status().events


def test_without_room_for_prepared_files_paged_subnets_are_served(
    bundle: Bundle, pool: list[Candidate], expected: dict[Arch, Any], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    options = Serving(prepared=tmp_path / "file", mode="paged")
    with edge.serve(bundle, None, pool, budget_ms=1000, options=options) as runtime:
        reply = runtime.infer(X)
        np.testing.assert_allclose(reply.value, expected[reply.arch], rtol=1e-4, atol=1e-4)


def test_limits_on_other_resources_leave_subnets_out(bundle: Bundle, pool: list[Candidate]) -> None:
    original = bundle.space.original
    with edge.serve(
        bundle, None, pool, limits={"latency_ms": 1000, "weight_bytes": "90%"}, mode="paged"
    ) as runtime:
        assert runtime.budget_ms == 1000
        assert runtime.infer(X).arch != original
        allowed = [c.arch for c in runtime._catalogue.table]
        whole = weight_bytes(bundle, original)
        assert allowed
        assert all(weight_bytes(bundle, arch) <= 0.9 * whole for arch in allowed)


def weight_bytes(bundle: Bundle, arch: Arch) -> int:
    return sum(bundle.segment(branch).weight_bytes for branch in arch)
