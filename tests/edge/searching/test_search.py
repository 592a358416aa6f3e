"""`edge.search` on a real bundle, from data to a pool."""

from __future__ import annotations

import errno
import logging
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxelastic import edge
from fxelastic.edge.executor import Executor
from fxelastic.edge.searching.evaluation import Evaluator
from fxelastic.edge.searching.pool_store import PoolStore
from fxelastic.edge.searching.proposals import all_subnets
from fxelastic.edge.searching.search import metric_and_data
from fxelastic.edge.searching.study import Study, strategy_names
from fxelastic.errors import BundleError, UsageError
from fxelastic.spec import json_document
from fxelastic.spec.latency_table import LatencyTable
from tests.cli.commands import ROOT
from tests.edge.serving.tiny_bundle import CLASSES, reference, write_bundle
from tests.edge.test_profiling import poison

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 8, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> edge.Bundle:
    return write_bundle(tmp_path_factory.mktemp("search") / "bundle")


@pytest.fixture(scope="module")
def table(bundle: edge.Bundle) -> LatencyTable:
    found = edge.profile(bundle, n_samples=3, n_subnets=0, n_held_out=0)
    # Times of a machine that is shared make no two runs alike: these are fixed.
    rows = {
        name: replace(row, ms=ms, median_ms=ms, high_ms=ms)
        for name, row in found.rows.items()
        for ms in [{"original": 1.0, "pruned50": 0.6, "merged": 1.1}[name.split("@")[0]]]
    }
    costs = {name: row.ms for name, row in rows.items()}
    found = found.mapped(lambda before: replace(before, overhead=0.0, costs=costs))
    return replace(found, rows=rows)


@pytest.fixture(scope="module")
def data(bundle: edge.Bundle) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Targets are what the original says were its classes equally frequent, so subnets differ."""
    logits = reference(bundle, bundle.space.original, {"x": X})
    return X, (logits - logits.mean(0)).argmax(1)


def test_the_best_of_a_small_space_is_found(
    bundle: edge.Bundle, table: LatencyTable, data: Any
) -> None:
    result = edge.search(bundle, table, data, budget="70%", held_out=0.0, batch_size=20)
    budget_ms = 0.7 * table.predict_ms(bundle.space.original)
    assert result.budgets_ms == (pytest.approx(budget_ms),)
    scores = {
        arch: float((reference(bundle, arch, {"x": X}).argmax(1) == data[1]).mean())
        for arch in all_subnets(bundle.space)
        if table.predict_ms(arch) <= budget_ms
    }
    assert result.best.accuracy == pytest.approx(max(scores.values()))
    assert result.best.latency_ms == pytest.approx(table.predict_ms(result.best.arch))
    assert {e.arch: pytest.approx(e.accuracy) for e in result.pool} == scores


def test_several_budgets_share_what_is_known(
    bundle: edge.Bundle, table: LatencyTable, data: Any
) -> None:
    budgets = ["70%", 4.0, "100%"]
    result = edge.search(bundle, table, data, budget=budgets)
    assert len(result.bests) == len(result.histories) == 3
    accuracies = [best.accuracy for best in result.bests]
    assert accuracies == sorted(accuracies)
    assert result.counts.subnets == len(result.pool)
    assert all(best.held_out_accuracy is not None for best in result.bests)
    for best, budget_ms in zip(result.bests, result.budgets_ms, strict=True):
        assert best.latency_ms <= budget_ms


def test_each_budget_has_the_best_of_all_that_fits_it(
    bundle: edge.Bundle, table: LatencyTable, data: Any
) -> None:
    """What was found for a later, smaller one counts for the earlier ones, too."""
    for seed in range(4):
        budgets = ["100%", "90%", "80%", "70%"]
        result = edge.search(bundle, table, data, budget=budgets, max_subnets=4, seed=seed)
        for best, budget_ms in zip(result.bests, result.budgets_ms, strict=True):
            fitting = [e.accuracy for e in result.pool if e.latency_ms <= budget_ms + 1e-9]
            assert best.accuracy == max(fitting)


def test_scores_on_held_out_data_outlast_a_later_search(
    bundle: edge.Bundle, table: LatencyTable, data: Any, tmp_path: Path
) -> None:
    path = tmp_path / "pool.json"
    first = edge.search(bundle, table, data, budget="100%", path=path, max_subnets=10)
    before = {e.arch: e.held_out_accuracy for e in first.pool if e.held_out_accuracy is not None}
    assert before
    assert {e.arch for e in first.pool.pareto} <= before.keys()
    meanwhile: list[dict[Any, Any]] = []

    def look(budget_ms: float, study: Study) -> None:
        meanwhile.append({e.arch: e.held_out_accuracy for e in edge.SubnetPool.load(path)})

    edge.search(
        *(bundle, table, data),
        **{"budget": "80%", "path": path, "max_subnets": 20, "seed": 1, "progress": look},
    )
    meanwhile.append({e.arch: e.held_out_accuracy for e in edge.SubnetPool.load(path)})
    for known in meanwhile:
        assert {arch: known[arch] for arch in before} == before


@pytest.mark.parametrize("mode", ["assembled", "paged"])
def test_the_same_seed_gives_the_same_result(
    bundle: edge.Bundle, table: LatencyTable, data: Any, mode: str
) -> None:
    options: dict[str, Any] = {"budget_ms": 3.5, "max_subnets": 15, "seed": 4, "mode": mode}
    one, other = (edge.search(bundle, table, data, **options) for _ in range(2))
    assert one.pool.to_json() == other.pool.to_json()


def test_a_pool_on_disk_is_gone_on_with(
    bundle: edge.Bundle, table: LatencyTable, data: Any, tmp_path: Path
) -> None:
    path = tmp_path / "pool.json"
    first = edge.search(bundle, table, data, budget="70%", path=path)
    assert edge.SubnetPool.load(path) == first.pool
    again = edge.search(bundle, table, data, budget="70%", path=path, seed=1)
    assert again.counts.subnets == 0
    assert again.best.arch == first.best.arch
    with pytest.raises(UsageError, match="pool of another search"):
        edge.search(bundle, table, (data[0], (data[1] + 1) % CLASSES), budget="70%", path=path)
    with pytest.raises(UsageError, match="another score"):
        edge.search(bundle, table, data, budget="70%", path=path, score="negative_loss")
    assert edge.SubnetPool.load(path) == again.pool


def test_ctrl_c_gives_the_best_so_far(
    bundle: edge.Bundle, table: LatencyTable, data: Any, tmp_path: Path
) -> None:
    path = tmp_path / "pool.json"

    def interrupt(budget_ms: float, study: Study) -> None:
        raise KeyboardInterrupt

    result = edge.search(
        bundle, table, data, budget=["70%", "80%"], path=path, progress=interrupt, max_subnets=8
    )
    assert result.interrupted
    assert len(result.bests) == 1
    assert result.best.latency_ms <= result.budgets_ms[0]
    assert edge.SubnetPool.load(path).entries == result.pool.entries


def test_limits_that_nothing_keeps_together(
    bundle: edge.Bundle, table: LatencyTable, data: Any
) -> None:
    with pytest.raises(UsageError, match="no subnet keeps"):
        edge.search(bundle, table, data, budget="100%", weight_bytes=10)
    with pytest.raises(UsageError, match="batch_size"):
        edge.search(bundle, table, data, budget="100%", batch_size=0)


def test_a_fixed_batch_size_leaves_the_rest_out(
    data: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fixed = write_bundle(tmp_path / "bundle", batch_size=8)
    table = edge.profile(fixed, n_samples=3, n_subnets=0, n_held_out=0)
    with caplog.at_level(logging.WARNING):
        result = edge.search(fixed, table, data, budget="100%", max_subnets=5, held_out=0.25)
    # Of 60 samples 45 are searched with and 15 held out: 40 and 8 of them fill batches.
    assert "12 samples are left out, since they fill no batch of 8" in caplog.text
    entry = result.best
    assert entry.held_out_accuracy is not None
    assert (entry.accuracy * 40) % 1 == pytest.approx(0, abs=1e-6)
    assert (entry.held_out_accuracy * 8) % 1 == pytest.approx(0, abs=1e-6)
    few = (data[0][:7], data[1][:7])
    with pytest.raises(UsageError, match=r"batches have 8|\[8"):
        edge.search(fixed, table, few, budget="100%")
    one_held_out = (data[0][:9], data[1][:9])
    with pytest.raises(UsageError, match="batches have 8"):
        edge.search(fixed, table, one_held_out, budget="100%", held_out=0.5)


def test_time_ends_a_search(bundle: edge.Bundle, table: LatencyTable, data: Any) -> None:
    result = edge.search(bundle, table, data, budget="70%", time_budget_s=1e-9)
    assert result.best.latency_ms <= result.budgets_ms[0]


@pytest.mark.parametrize("name", [n for n in strategy_names() if n != "exhaustive"])
def test_a_search_without_time_gives_no_cheapest_subnet(
    bundle: edge.Bundle, table: LatencyTable, data: Any, name: str
) -> None:
    result = edge.search(
        *(bundle, table, data),
        **{"budget": ["90%", "75%"], "time_budget_s": 1e-9, "strategy": name},
    )
    for best, budget_ms in zip(result.bests, result.budgets_ms, strict=True):
        assert 0.8 * budget_ms <= best.latency_ms <= budget_ms


def test_features_and_weights_keep_the_memory(
    bundle: edge.Bundle, table: LatencyTable, data: Any
) -> None:
    free = edge.search(bundle, table, data, budget="70%", cache_bytes=None)
    least = max(bundle.segment(s.id).weight_bytes for s in bundle.space.branches)
    tight = edge.search(
        bundle, table, data, budget="70%", cache_bytes=20_000, memory_bytes=2 * least
    )
    assert free.pool == tight.pool
    assert free.counts.executed < tight.counts.executed


def test_the_weights_of_a_subnet_can_be_bounded(
    bundle: edge.Bundle, table: LatencyTable, data: Any
) -> None:
    def weights(arch: Any) -> int:
        return sum(bundle.segment(branch).weight_bytes for branch in arch)

    limit = weights(bundle.space.original) - 1
    result = edge.search(bundle, table, data, budget="100%", weight_bytes=limit)
    assert all(weights(entry.arch) <= limit for entry in result.pool)


def test_a_confidence_ends_more_candidates(
    bundle: edge.Bundle, table: LatencyTable, data: Any
) -> None:
    options: dict[str, Any] = {
        "budget": "80%",
        "batch_size": 5,
        "max_subnets": 20,
        "strategy": "evolutionary",
    }
    exact = edge.search(bundle, table, data, **options)
    likely = edge.search(bundle, table, data, **options, confidence=0.6)
    assert likely.counts.ended_early >= exact.counts.ended_early


def test_a_user_score(bundle: edge.Bundle, table: LatencyTable, data: Any) -> None:
    def agreement(outputs: Any, targets: Any) -> tuple[float, float]:
        return float((outputs[0].argmax(1) == targets).sum()), float(len(targets))

    own = edge.search(bundle, table, data, budget="70%", score=agreement)
    assert own.best.accuracy == edge.search(bundle, table, data, budget="70%").best.accuracy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": "1%"}, "no subnet keeps"),
        ({"budget": "-5"}, "limit on latency_ms must be a number above 0"),
        ({"budget": "many"}, "limit on latency_ms must be a number above 0"),
        ({"budget": float("nan")}, "limit on latency_ms must be a number above 0"),
        ({"budget": []}, "needs a limit"),
        ({}, "needs a limit"),
        ({"budget": 1, "budget_ms": 1}, "must not be given together"),
        ({"limits": {"energy_mj": 1e-6}}, "no subnet keeps energy 1e-06 mJ"),
        ({"limits": {"joy": 1}}, "unknown resource 'joy'"),
        ({"limits": {"latency_ms": "100%", "weight_bytes": "1%"}}, "no subnet keeps"),
        ({"budget": "70%", "sed": 1}, "did you mean seed"),
        ({"budget": "70%", "max_subnets": 0}, "max_subnets must be at least 1"),
        ({"budget": "70%", "batch_size": 0}, "batch_size must be at least 1"),
        ({"budget": "70%", "time_budget_s": 0}, "time_budget_s must be above 0"),
        ({"budget": "70%", "strategy": "luck"}, "unknown search strategy"),
        ({"budget": "70%", "strategy": 7}, "strategy must be a name"),
        ({"budget": "70%", "mode": "quantum"}, "no mode"),
        ({"budget": "70%", "score": "beauty"}, "unknown score"),
        ({"budget": "70%", "held_out": 1.0}, "held_out"),
        ({"budget": "70%", "held_out": 0.999}, "no samples are left"),
        ({"budget": "70%", "confidence": 0.0}, "confidence"),
        ({"budget": "70%", "threads": -1}, "threads must be at least 0"),
    ],
)
def test_wrong_arguments_are_refused(
    bundle: edge.Bundle, table: LatencyTable, data: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        edge.search(bundle, table, data, **options)


def test_an_unmet_budget_names_the_nearest(
    bundle: edge.Bundle, table: LatencyTable, data: Any
) -> None:
    least = table.predict_ms(bundle.space.min_cost_arch(table.costs()))
    told: list[float] = []
    with pytest.raises(UsageError, match=f"latency {least:.4g} ms"):
        edge.search(
            bundle, table, data, budget_ms=[5.0, 0.1], progress=lambda ms, _: told.append(ms)
        )
    assert not told, "what can't be done is told before anything is done"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((X[:0], np.zeros(0, np.int64)), "must have samples"),
        ((X, np.zeros(3, np.int64)), "the same number of them"),
        ((X.astype(np.float64), np.zeros(60, np.int64)), "float32"),
        ((X[:, :4], np.zeros(60, np.int64)), r"\[N, 8, 8, 8\]"),
        ((X, np.full(60, CLASSES)), "not a class of the model"),
        ((X, np.full(60, -1)), "not a class of the model"),
        ((X, np.zeros((60, 2), np.int64)), "top1 can't compare"),
        ({"x": X, "labels": np.zeros(60)}, "labels, which is neither an input nor targets"),
        ({"targets": np.zeros(60)}, "lacks x"),
        (7, "the data has an unknown form"),
        ("none.npz", "can't be read"),
    ],
)
def test_wrong_data_is_refused(
    bundle: edge.Bundle, table: LatencyTable, given: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        edge.search(bundle, table, given, budget="70%")


def test_tables_of_other_bundles_and_devices(
    bundle: edge.Bundle, table: LatencyTable, data: Any, caplog: pytest.LogCaptureFixture
) -> None:
    other = replace(table, bundle_digest="0" * 64, structure_digest="0" * 64)
    with pytest.raises(UsageError, match="another bundle"):
        edge.search(bundle, other, data, budget="70%")
    other = replace(table, device={**table.device, "cores": "99"})
    with caplog.at_level(logging.WARNING):
        edge.search(bundle, other, data, budget="70%")
    assert "cores: 99" in caplog.text


@pytest.mark.parametrize("damage", ["missing", "corrupt", "nan"])
def test_a_bad_branch_ends_the_search_and_loses_nothing(
    bundle: edge.Bundle, table: LatencyTable, data: Any, tmp_path: Path, damage: str
) -> None:
    copy = edge.load(shutil.copytree(bundle.path, tmp_path / "bundle"))
    file = copy.path / "branches" / "pruned50@0.onnx"
    path = tmp_path / "pool.json"
    if damage == "missing":
        file.unlink()
    elif damage == "corrupt":
        file.write_bytes(b"?" * file.stat().st_size)
    else:
        poison(copy.path, "pruned50@0")
        copy = edge.load(copy.path)
    before = edge.SubnetPool.of(copy.digest, [])
    before.save(path)
    path.unlink()
    with pytest.raises(BundleError, match="pruned50@0"):
        edge.search(copy, table, data, budget="90%", path=path)


def test_a_full_disk_is_reported(
    bundle: edge.Bundle,
    table: LatencyTable,
    data: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "pool.json"
    edge.search(bundle, table, data, budget="70%", path=path, max_subnets=5)
    kept = path.read_bytes()

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(json_document, "replace_file", full)
    with pytest.raises(UsageError, match="No space left on device"):
        edge.search(bundle, table, data, budget="100%", path=path)
    assert path.read_bytes() == kept


def test_everything_works_where_torch_can_not_be_imported(
    bundle: edge.Bundle, tmp_path: Path
) -> None:
    """Profile, search, pool, assemble and serve, with numpy, onnx, onnxruntime and psutil."""
    script = textwrap.dedent(
        """
        import sys
        for name in ("torch", "onnxscript", "tqdm", "safetensors", "networkx", "matplotlib"):
            sys.modules[name] = None
        import numpy as np
        from fxelastic import edge
        bundle = edge.load(sys.argv[1])
        table = edge.profile(bundle, n_samples=3, n_subnets=3, n_held_out=2)
        rng = np.random.default_rng(0)
        x = rng.standard_normal((20, 8, 8, 8)).astype(np.float32)
        data = (x, rng.integers(0, 5, 20))
        result = edge.search(bundle, table, data, budget="100%", max_subnets=10, path=sys.argv[2],
                             force=True)
        edge.SubnetPool.load(sys.argv[2])
        edge.assemble(bundle, result.best.arch, sys.argv[3])
        served = edge.serve(bundle, table, result.pool, budget_ms=1000.0, data=data, force=True)
        with served as runtime:
            assert runtime(x[:1]).shape == (1, 5)
        """
    )
    paths = [str(bundle.path), str(tmp_path / "pool.json"), str(tmp_path / "best.onnx")]
    done = subprocess.run(
        [sys.executable, "-c", script, *paths],
        env={"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_scores_are_means_over_samples(bundle: edge.Bundle, table: LatencyTable, data: Any) -> None:
    """Whatever the batches are."""
    accuracies = [
        edge.search(bundle, table, data, budget="100%", batch_size=size).best.accuracy
        for size in (1, 7, 60, 1000)
    ]
    assert accuracies == pytest.approx([accuracies[0]] * 4)
    assert accuracies[0] < 1


def test_the_same_search_is_answered_by_the_pool(
    bundle: edge.Bundle, table: LatencyTable, data: Any, tmp_path: Path
) -> None:
    def search(seed: int) -> edge.SearchResult:
        budgets = ["70%", "85%"]
        path = tmp_path / "pool.json"
        return edge.search(bundle, table, data, budget=budgets, path=path, max_subnets=9, seed=seed)

    first, again = search(seed=0), search(seed=0)
    assert first.counts.subnets > 0
    assert (again.counts.subnets, again.counts.executed) == (0, 0)
    assert again.bests == first.bests
    assert again.original == first.original
    assert again.original is not None
    assert again.pool == first.pool
    steps = [[(step.subnets, step.accuracy) for step in h] for h in first.histories]
    assert [[(step.subnets, step.accuracy) for step in h] for h in again.histories] == steps
    # Another search is not, and is remembered beside the first one.
    search(seed=1)
    assert len(edge.SubnetPool.load(tmp_path / "pool.json").searches) == 2
    assert search(seed=0).counts.executed == 0


def test_a_subnet_that_ended_early_is_not_evaluated_again(
    bundle: edge.Bundle, table: LatencyTable, data: Any, tmp_path: Path
) -> None:
    metric, samples, _ = metric_and_data(bundle, data, None, 0.0)
    with Executor(bundle, 1) as executor:

        def evaluator() -> Evaluator:
            return Evaluator(executor, samples, metric, batch_size=5)

        scores = evaluator().scores(all_subnets(bundle.space))
        worst = min(scores, key=scores.__getitem__)
        floors = {worst: 0.9}
        first = evaluator()
        assert first.scores([worst], floors) == {}
        assert scores[worst] <= first.bounds[worst] < floors[worst]
        store = PoolStore(bundle, table, "assembled", "", tmp_path / "pool.json", first, True)
        first.scores([arch for arch in scores if arch != worst][:1])
        store.save()
        other = evaluator()
        PoolStore(bundle, table, "assembled", "", tmp_path / "pool.json", other, True).resume()
        assert other.scores([worst], floors) == {}
        assert (other.counts.executed, other.counts.ended_early) == (0, 1)
        assert other.scores([worst]) == {worst: scores[worst]}
