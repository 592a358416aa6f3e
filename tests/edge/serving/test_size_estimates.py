"""Requests of all sizes: estimates at their own sizes, and switches only under a load."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxelastic import edge
from fxelastic.cli.app import main
from fxelastic.edge.candidates import Candidate, sizes_of_pool, table_at
from fxelastic.edge.monitoring.table_probe import BranchTimer, TableProbe, renewed
from fxelastic.edge.pool import PoolEntry, SubnetPool
from fxelastic.edge.serving.background_search import LocalSearch
from fxelastic.edge.serving.loaders import PagedSubnet
from fxelastic.edge.serving.monitor import Observation
from fxelastic.edge.serving.preload import Preload
from fxelastic.edge.serving.serve import loader_of
from fxelastic.edge.signature import BundleSignature
from fxelastic.edge.size_estimates import SizeEstimates
from fxelastic.errors import UsageError
from fxelastic.report.trace import Trace, read_trace
from fxelastic.spec import Arch
from fxelastic.spec.latency_table import LatencyTable
from fxelastic.spec.pareto import ParetoTable
from fxelastic.spec.symbols import Symbol
from tests.edge.serving.fakes import wait_until
from tests.edge.serving.simulation import Simulation, entry, steps
from tests.edge.serving.sized_table import growth, sized_table
from tests.edge.serving.tiny_bundle import write_bundle

MS = {"s2": 2.0, "s4": 4.0, "s8": 8.0}
LENGTHS = np.random.default_rng(0).integers(16, 257, 400).tolist()
REFERENCE = tuple({"seq": n} for n in LENGTHS)
#: The same, short ones first: long ones then come one after another.
BURSTS = sorted(LENGTHS)


@pytest.fixture
def table() -> LatencyTable:
    return sized_table(MS)


def estimates(
    table: LatencyTable | None, reference: Any = ({"seq": 64},), mode: str = "assembled"
) -> SizeEstimates:
    return SizeEstimates(lambda: table, mode, reference, ("seq",))


@pytest.mark.parametrize("name", MS)
def test_estimates_follow_the_size_of_a_request(table: LatencyTable, name: str) -> None:
    found = estimates(table)
    for seq in (16, 64, 100, 256):
        assert found.scale(Arch((name,)), {"N": 3, "seq": seq}) == pytest.approx(growth(seq))


def test_estimates_are_relative_to_the_mean_that_the_pool_is_for(table: LatencyTable) -> None:
    found = estimates(table, REFERENCE)
    scales = [found.scale(Arch(("s4",)), sizes) for sizes in REFERENCE]
    assert np.mean([scale for scale in scales if scale is not None]) == pytest.approx(1.0)
    assert len(set(scales)) == len(set(LENGTHS))


@pytest.mark.parametrize(
    ("by_size", "seq", "said"),
    [
        (True, 300, "seq = 300 is outside of the measured 16 to 256"),
        (True, 8, "seq = 8 is outside"),
        (False, 16, "the latencies are for seq = 64, not for seq = 16"),
        (None, 16, "the latencies are for seq = 64, not for seq = 16"),
    ],
)
def test_sizes_without_an_estimate_say_why(
    table: LatencyTable, by_size: bool | None, seq: int, said: str
) -> None:
    fixed = None if by_size is None else table if by_size else table.at({"seq": 64})
    found = estimates(fixed)
    assert found.scale(Arch(("s4",)), {"seq": seq}) is None
    assert said in found.missing({"seq": seq})
    assert found.scale(Arch(("s4",)), {"seq": 64}) == pytest.approx(1.0)


def test_estimates_follow_a_corrected_table(table: LatencyTable) -> None:
    tables = [table]
    found = SizeEstimates(lambda: tables[-1], "assembled", ({"seq": 64},), ("seq",))
    arch = Arch(("s4",))
    before = found.scale(arch, {"seq": 256})
    tables.append(renewed(table, {"s4": 3.0}))
    # Twice as slow at every size: the factor between sizes stays, and is computed anew.
    assert found.scale(arch, {"seq": 256}) == pytest.approx(before)
    assert tables[-1].predict_ms(arch, sizes={"seq": 256}) == pytest.approx(
        3 * table.predict_ms(arch, sizes={"seq": 256})
    )


def requests(
    table: LatencyTable, lengths: list[int] = LENGTHS, known: bool = True, noise: float = 0.05
) -> Callable[[Candidate], tuple[float, float | None]]:
    """Requests of these lengths, again and again, that take a little more or less."""
    found, rng, following = estimates(table, REFERENCE), random.Random(1), cycle(lengths)

    def request(candidate: Candidate) -> tuple[float, float | None]:
        scale = found.scale(candidate.arch, {"seq": next(following)})
        assert scale is not None
        return scale * rng.lognormvariate(0, noise), scale if known else 1.0

    return request


def simulation(load: Callable[[float], float], **options: Any) -> Simulation:
    """A pool at the mean over the lengths, and a budget a third above its best."""
    table = sized_table(MS)
    mean = table_at(table, REFERENCE)
    entries = [entry(mean.predict_ms(Arch((name,))), ms, name) for name, ms in MS.items()]
    best = max(candidate.ms for candidate in entries)
    return Simulation(ParetoTable(entries), 1.3 * best, load, request=requests(table, **options))


@pytest.mark.parametrize("lengths", [LENGTHS, BURSTS], ids=["a mix", "bursts"])
def test_long_inputs_make_no_switch_on_an_idle_device(lengths: list[int]) -> None:
    run = simulation(lambda _: 1.0, lengths=lengths).run(60.0)
    assert len(run.requests) > 2 * len(lengths)
    assert run.switches == []


def test_long_inputs_look_like_a_load_without_estimates_at_their_sizes() -> None:
    assert simulation(lambda _: 1.0, lengths=BURSTS, known=False).run(60.0).switches


def test_a_mix_of_lengths_follows_a_load() -> None:
    run = simulation(steps((0.0, 1.0), (10.0, 3.0), (20.0, 1.0))).run(60.0)
    assert not run.switches_between(0.0, 10.0)
    assert [past.up for past in run.switches_between(10.0, 20.0)] == [False]
    assert [past.up for past in run.switches_between(20.0, 60.0)] == [True]
    assert run.current.arch == Arch(("s8",))


SIZES = (Symbol("H", 64, 1, 256),)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> edge.Bundle:
    folder = tmp_path_factory.mktemp("served") / "bundle"
    return write_bundle(folder, depth=1, width=2, size=2, sizes=SIZES)


def served(bundle: edge.Bundle, **options: Any) -> tuple[LatencyTable, SubnetPool]:
    """A table and a pool whose latencies no machine moves."""
    ms = {spec.id: 1.0 + i for i, spec in enumerate(bundle.space.branches)}
    table = sized_table(ms, SIZES, bundle_digest=bundle.digest)
    mean = table_at(table, options.get("sizes", ()) or table.sizes)
    entries = [
        PoolEntry(arch, mean.predict_ms(arch), mean.predict_ms(arch))
        for arch in (bundle.space.original, *bundle.space.sample(1, 0))
    ]
    return table, SubnetPool.of(bundle.digest, entries, **options)


def image(height: int, n: int = 1) -> np.ndarray[Any, Any]:
    return np.zeros((n, 2, height, 2), np.float32)


def test_a_runtime_estimates_each_request_at_its_size(bundle: edge.Bundle, tmp_path: Path) -> None:
    table, pool = served(bundle, sizes=[{"H": 16}, {"H": 64}, {"H": 64}])
    seen: list[Observation] = []
    with Trace(tmp_path / "trace", 1e6, 0.0) as trace:

        def on_tick(situation: Any, decision: Any) -> None:
            seen.extend(situation.load.fresh)
            trace.on_tick(situation, decision)

        options: dict[str, Any] = {"on_tick": on_tick, "check_every_s": None, "threads": 1}
        with edge.serve(
            *(bundle, table, pool), budget_ms=1e6, preload=Preload(limit=0), **options
        ) as runtime:
            replies = [runtime.infer(image(height)) for height in (16, 64, 100, 200, 256)]
            assert runtime(image(77, n=3)).shape == (3, 5)
            runtime(image(4))
            with pytest.raises(UsageError, match="H = 300 is outside"):
                runtime(image(300))
            wait_until(lambda: runtime.status().n_unmeasured == 1)
            (event,) = [e for e in runtime.events if e.kind == "size_not_measured"]
    assert "H = 4 is outside of the measured 16 to 256" in event.message
    arch = replies[0].arch
    assert [reply.estimated_ms for reply in replies] == pytest.approx(
        [table.predict_ms(arch, sizes={"H": height}) for height in (16, 64, 100, 200, 256)]
    )
    # The pool's own estimate is for the mean of its sizes.
    mean = table.predict_ms(arch, sizes={"H": 16}) + 2 * table.predict_ms(arch, sizes={"H": 64})
    assert seen[0].candidate.ms == pytest.approx(mean / 3)
    assert [observation.sizes for observation in seen][-2:] == [{"N": 3, "H": 77}, {"N": 1, "H": 4}]
    data = read_trace(tmp_path / "trace")
    assert len(data.requests) == 6
    assert data.requests[0][2] == pytest.approx(
        replies[0].latency_ms * mean / 3 / table.predict_ms(arch, sizes={"H": 16}), rel=1e-2
    )


def test_the_budget_is_for_the_sizes_asked_for(bundle: edge.Bundle) -> None:
    table, pool = served(bundle, sizes=[{"H": 16}, {"H": 64}])
    own = sizes_of_pool(bundle, pool, table)
    assert own == ({"H": 16}, {"H": 64})
    assert sizes_of_pool(bundle, pool, table, {"H": 200}) == ({"H": 200},)
    assert sizes_of_pool(bundle, pool, None) == own
    assert sizes_of_pool(bundle, replace(pool, sizes=()), table) == ({"H": 64},)
    assert sizes_of_pool(bundle, replace(pool, sizes=()), None) == ({"H": 64},)
    # A table at one size has replaced the pool's latencies.
    assert sizes_of_pool(bundle, pool, table.at({"H": 16})) == ({"H": 16},)
    with edge.serve(
        *(bundle, table, pool), budget_ms=1e6, sizes={"H": 256}, preload=Preload(limit=0)
    ) as runtime:
        step = runtime.status().step
        assert step is not None
        assert step.ms == pytest.approx(table.predict_ms(step.arch, sizes={"H": 256}))
    for sizes, said in (({"H": 300}, "out of range"), ({"W": 3}, "no size 'W'"), (3, "mapping")):
        with pytest.raises(UsageError, match=said):
            edge.serve(bundle, table, pool, budget_ms=1.0, sizes=sizes)
    with pytest.raises(UsageError, match="for other sizes"):
        edge.serve(bundle, None, pool, budget_ms=1.0, sizes={"H": 200})


def test_a_pool_keeps_its_sizes(bundle: edge.Bundle, tmp_path: Path) -> None:
    _, pool = served(bundle, sizes=[{"H": 16}, {"H": 64}, {"H": 16}])
    pool.save(tmp_path / "pool.json")
    found = SubnetPool.load(tmp_path / "pool.json")
    assert sorted(size["H"] for size in found.sizes) == [16, 16, 64]
    assert found.merge(pool).sizes == found.sizes
    with pytest.raises(UsageError, match="for different sizes"):
        found.merge(replace(pool, sizes=({"H": 16},)))


def test_calls_are_checked_once_for_each_shape(bundle: edge.Bundle) -> None:
    signature = BundleSignature(bundle)
    inputs = signature.bind([image(7, n=2)], {})
    assert signature.sizes(inputs) == {"N": 2, "H": 7}
    assert signature.bind([image(7, n=2)], {})["x"].shape == (2, 2, 7, 2)
    for _ in range(2):
        with pytest.raises(UsageError, match="not what the model takes"):
            signature.bind([image(7).astype(float)], {})


def test_sessions_keep_no_plan_of_memory_for_each_size(bundle: edge.Bundle, tmp_path: Path) -> None:
    """onnxruntime would keep one for each combination of sizes."""
    fixed = write_bundle(tmp_path / "fixed", depth=1, width=2, size=2)
    for found, planned in ((bundle, False), (fixed, True)):
        with edge.Executor(found, threads=1) as executor:
            session = executor.session(found.space.original.branches[0])
            assert session.get_session_options().enable_mem_pattern is planned
        loaded = loader_of(found, "paged").load(found.space.original)
        assert isinstance(loaded, PagedSubnet)
        assert loaded.calls[0].session.get_session_options().enable_mem_pattern is planned


def test_a_search_beside_serving_is_for_the_sizes_of_the_budget(bundle: edge.Bundle) -> None:
    """Its subnets are compared with those of the pool, whatever the sizes of its own samples."""
    table, pool = served(bundle, sizes=[{"H": 16}, {"H": 256}])
    timer = BranchTimer(bundle, lambda path: None)
    probe = TableProbe(table, timer, "assembled", sizes=pool.sizes)
    data = [image(height)[0] for height in (4, 4, 8, 4, 8)]
    how = {"score": "cosine", "max_subnets": 2, "held_out": 0.0}
    searcher = LocalSearch(bundle, probe.fixed_table, data, None, how)
    found = searcher.search(1e6, threading.Event())
    mean = table.mean_over(pool.sizes)
    assert [entry.latency_ms for entry in found] == pytest.approx(
        [mean.predict_ms(entry.arch) for entry in found]
    )
    # A drift changes the pool's estimates at these sizes, and the table at all sizes.
    change = probe.renew(dict.fromkeys(bundle.space.original, 2.0))
    assert change(bundle.space.original) == pytest.approx(2.0)
    assert probe.table.by_size is not None


def test_the_command_serves_files_of_all_sizes(
    bundle: edge.Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, pool = served(bundle, sizes=[{"H": 16}, {"H": 64}])
    table.save(tmp_path / "table.json")
    pool.save(tmp_path / "pool.json")
    (tmp_path / "in").mkdir()
    for height in (16, 100, 256):
        np.save(tmp_path / "in" / f"{height}.npy", image(height))
    files = ["--pool", str(tmp_path / "pool.json"), "--table", str(tmp_path / "table.json")]
    common = [str(bundle.path), *files, "--prepared", str(tmp_path / "prepared"), "--json"]
    assert main(["prepare", *common, "--sizes", "H=256"]) == 0
    capsys.readouterr()
    requests = ["--inputs", str(tmp_path / "in"), "--outputs", str(tmp_path / "out")]
    how = ["--budget-ms", "1e6", "--sizes", "H=256", "--threads", "1"]
    assert main(["serve", *common, *requests, *how]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["n_requests"], report["n_unmeasured"], report["refused"]) == (3, 0, 0)
    best = max(table.predict_ms(entry.arch, sizes={"H": 256}) for entry in pool)
    assert report["estimated_ms"] == pytest.approx(best)
    assert np.load(tmp_path / "out" / "100.npy").shape == (1, 5)


def test_a_search_with_a_table_for_other_sizes_says_so(
    bundle: edge.Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    table, _ = served(bundle)
    data = [image(height)[0] for height in (4, 16)] * 3
    options: dict[str, Any] = {"budget": "100%", "score": "cosine", "max_subnets": 1}
    for heights, warned in (((4, 16, 16), False), ((16, 16), True)):
        fixed = table.mean_over([{"H": height} for height in heights])
        caplog.clear()
        found = edge.search(bundle, fixed, data, **options)
        assert ("the data has other sizes" in caplog.text) is warned
        assert found.pool.sizes == fixed.sizes
