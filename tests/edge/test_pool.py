"""Pools of subnets: the best ones, merged, kept on disk."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest

from fxelastic import files
from fxelastic.edge import PoolEntry, SubnetPool
from fxelastic.errors import UsageError
from fxelastic.spec import Arch


def entry(name: str, latency_ms: float, accuracy: float) -> PoolEntry:
    return PoolEntry(Arch((f"{name}@0",)), latency_ms, accuracy)


def random_pool(n: int, seed: int) -> SubnetPool:
    rng = random.Random(seed)
    entries = [
        entry(f"b{i}", rng.choice((1.0, 2.0, 3.0, rng.uniform(0.5, 9))), rng.randrange(20) / 20)
        for i in range(n)
    ]
    return SubnetPool.of("digest", entries, "data")


@pytest.mark.parametrize("seed", range(20))
def test_the_best_under_a_latency_is_the_best(seed: int) -> None:
    pool = random_pool(40, seed)
    for latency_ms in (0.1, 0.5, 1.0, 2.0, 2.5, 3.0, 7.0, 100.0):
        fitting = [e for e in pool.entries if e.latency_ms <= latency_ms]
        found = pool.best_under(latency_ms)
        if not fitting:
            assert found is None
            continue
        assert found is not None
        best = max(e.accuracy for e in fitting)
        assert found.accuracy == best
        assert found.latency_ms == min(e.latency_ms for e in fitting if e.accuracy == best)


@pytest.mark.parametrize("seed", range(5))
def test_no_entry_beats_one_of_the_pareto_set(seed: int) -> None:
    pool = random_pool(40, seed)
    for kept in pool.pareto:
        assert not any(
            e.latency_ms <= kept.latency_ms
            and e.accuracy >= kept.accuracy
            and (e.latency_ms, e.accuracy) != (kept.latency_ms, kept.accuracy)
            for e in pool.entries
        )


def test_round_trip(tmp_path: Path) -> None:
    pool = random_pool(30, 1)
    pool = replace(
        pool, entries=(replace(pool.entries[0], held_out_accuracy=0.5), *pool.entries[1:])
    )
    pool.save(tmp_path / "pool.json")
    assert SubnetPool.load(tmp_path / "pool.json") == pool
    assert SubnetPool.from_json(pool.to_json()).to_json() == pool.to_json()


def test_merged_pools_have_all_entries_and_the_later_ones_of_both() -> None:
    one = SubnetPool.of("d", [entry("a", 1, 0.5), entry("b", 2, 0.6)])
    other = SubnetPool.of("d", [entry("b", 3, 0.7), entry("c", 4, 0.8)])
    merged = one.merge(other)
    assert [(str(e.arch), e.latency_ms) for e in merged] == [("a@0", 1), ("b@0", 3), ("c@0", 4)]


def test_a_score_on_few_samples_does_not_replace_one_on_more() -> None:
    scores = {None: 0.5, 4: 0.7, 8: 0.6}
    pools = [
        SubnetPool.of("d", [replace(entry("a", 1, accuracy), n_samples=n)])
        for n, accuracy in scores.items()
    ]
    for one, other in itertools.permutations(pools, 2):
        numbers = [pool.entries[0].n_samples for pool in (one, other)]
        most = None if None in numbers else max(n for n in numbers if n is not None)
        assert one.merge(other).entries[0].accuracy == scores[most]


def test_pools_of_other_bundles_and_data_are_not_merged() -> None:
    pool = SubnetPool.of("d", [entry("a", 1, 0.5)], "x")
    with pytest.raises(UsageError, match="different bundles"):
        pool.merge(SubnetPool.of("e", [], "x"))
    with pytest.raises(UsageError, match="different data"):
        pool.merge(SubnetPool.of("d", [], "y"))


@pytest.mark.parametrize(
    ("latency_ms", "accuracy"), [(0, 1), (-1, 1), (float("nan"), 1), (1, float("nan"))]
)
def test_entries_that_are_none(latency_ms: float, accuracy: float) -> None:
    with pytest.raises(UsageError, match="latency above 0"):
        SubnetPool.of("d", [entry("a", latency_ms, accuracy)])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"schema": "fxelastic.pool/9", "entries": []}',
        '{"schema": "fxelastic.pool/1", "entries": []}',
        '{"schema": "fxelastic.pool/1", "bundle_digest": "", "data_digest": "", "entries": [1]}',
        '{"schema": "fxelastic.pool/1", "bundle_digest": "", "data_digest": "", "entries": '
        '[{"arch": "", "latency_ms": 1, "accuracy": 1, "held_out_accuracy": null}]}',
    ],
)
def test_what_is_no_pool(tmp_path: Path, text: str) -> None:
    path = tmp_path / "pool.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="is not a pool"):
        SubnetPool.load(path)


def test_a_full_disk_keeps_the_old_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pool.json"
    random_pool(3, 0).save(path)
    before = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(UsageError, match="No space left"):
        random_pool(30, 2).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["pool.json"]
