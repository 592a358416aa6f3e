"""Searches on data without targets: the original's own results are the targets."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fxelastic import edge
from fxelastic.cli.app import main
from fxelastic.edge.pool import PoolEntry, SubnetPool
from fxelastic.edge.searching import scores
from fxelastic.edge.searching.answers import Answers
from fxelastic.edge.searching.data import Dataset
from fxelastic.edge.searching.evaluation import Evaluator
from fxelastic.edge.searching.proposals import all_subnets
from fxelastic.edge.searching.scores import METRICS
from fxelastic.edge.serving.background_search import LocalSearch
from fxelastic.errors import BundleError, UsageError
from fxelastic.spec import Arch
from fxelastic.spec.latency_table import LatencyTable
from tests.edge.serving.tiny_bundle import reference, steady, write_bundle
from tests.edge.test_profiling import poison

RNG = np.random.default_rng(0)
# Means of channels that differ between samples, so that samples are of several classes.
X = (RNG.standard_normal((60, 8, 8, 8)) + 3 * RNG.standard_normal((60, 8, 1, 1))).astype(np.float32)
SCORES = ("agreement", "cosine", "spearman")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> edge.Bundle:
    return write_bundle(tmp_path_factory.mktemp("answers") / "bundle")


@pytest.fixture(scope="module")
def table(bundle: edge.Bundle) -> LatencyTable:
    return steady(edge.profile(bundle, n_samples=3, n_subnets=0, n_held_out=0))


def expected(name: str, ours: Any, theirs: Any) -> float:
    """The score, by NumPy and SciPy."""
    if name == "agreement":
        return float((ours.argmax(1) == theirs.argmax(1)).mean())
    if name == "cosine":
        sizes = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        return float(((ours * theirs).sum(1) / sizes).mean())
    pairs = zip(ours, theirs, strict=True)
    return float(np.mean([stats.spearmanr(a, b).statistic for a, b in pairs]))


@pytest.fixture(scope="module")
def outputs(bundle: edge.Bundle) -> dict[Arch, Any]:
    return {arch: reference(bundle, arch, {"x": X}) for arch in all_subnets(bundle.space)}


@pytest.mark.parametrize("name", SCORES)
def test_the_best_of_all_subnets_is_found_without_targets(
    bundle: edge.Bundle, table: LatencyTable, outputs: dict[Arch, Any], name: str
) -> None:
    budget_ms = 0.7 * table.predict_ms(bundle.space.original)
    original = outputs[bundle.space.original]
    wanted = {
        arch: expected(name, found, original)
        for arch, found in outputs.items()
        if table.predict_ms(arch) <= budget_ms
    }
    result = edge.search(bundle, table, X, budget="70%", score=name, held_out=0.0, batch_size=20)
    assert result.best.accuracy == pytest.approx(max(wanted.values()), abs=1e-5)
    assert {e.arch: pytest.approx(e.accuracy, abs=1e-5) for e in result.pool} == wanted
    assert (result.pool.score, result.pool.targets) == (name, "original")


@pytest.mark.parametrize("batch_size", [1, 7, 60])
@pytest.mark.parametrize("name", SCORES)
def test_the_original_agrees_with_itself(bundle: edge.Bundle, name: str, batch_size: int) -> None:
    data = Dataset({"x": X}, np.arange(60), labelled=False)
    with edge.Executor(bundle) as executor:
        evaluator = Evaluator(executor, data, METRICS[name], batch_size=batch_size)
        assert evaluator.scores([bundle.space.original]) == {bundle.space.original: 1.0}


@pytest.mark.parametrize("name", SCORES)
def test_ending_early_loses_no_winner(
    bundle: edge.Bundle,
    table: LatencyTable,
    outputs: dict[Arch, Any],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A candidate that can't win any more ends before its last batch; the best stays the best."""
    data = Dataset({"x": X}, np.arange(60), labelled=False)
    archs = list(outputs)
    with edge.Executor(bundle) as executor:
        free = Evaluator(executor, data, replace(METRICS[name], most=None), batch_size=5)
        wanted = free.scores(archs)
        floor = sorted(wanted.values())[-5]
        early = Evaluator(executor, data, METRICS[name], batch_size=5)
        early.scores(archs[:3])
        found = early.scores(archs, dict.fromkeys(archs, floor))
    winners = {arch: score for arch, score in wanted.items() if score >= floor}
    assert {arch: pytest.approx(found[arch], abs=1e-6) for arch in winners} == winners
    assert early.counts.ended_early > len(archs) // 4
    options: dict[str, Any] = {"budget": "80%", "score": name, "batch_size": 5, "max_subnets": 30}
    exact = edge.search(bundle, table, X, **options)
    monkeypatch.setitem(scores.METRICS, name, replace(METRICS[name], most=None))
    whole = edge.search(bundle, table, X, **options)
    assert exact.best.accuracy == pytest.approx(whole.best.accuracy, abs=1e-6)


@pytest.mark.parametrize("name", ["cosine", "spearman"])
def test_estimates_of_subnets_that_ended_early_are_near_their_scores(
    bundle: edge.Bundle, outputs: dict[Arch, Any], name: str
) -> None:
    data = Dataset({"x": X}, np.arange(60), labelled=False)
    archs = list(outputs)
    original = outputs[bundle.space.original]
    with edge.Executor(bundle) as executor:
        evaluator = Evaluator(executor, data, METRICS[name], batch_size=10)
        assert evaluator.estimates() == {}
        whole = evaluator.scores(archs[:4])
        assert evaluator.estimates() == {}
        found = evaluator.scores(archs, dict.fromkeys(archs, 0.999))
        estimates = evaluator.estimates()
    assert found.keys() == whole.keys()
    assert estimates.keys() == set(archs) - whole.keys()
    wanted = {arch: expected(name, outputs[arch], original) for arch in estimates}
    assert np.corrcoef(list(estimates.values()), list(wanted.values()))[0, 1] > 0.7


def test_the_original_runs_once_on_each_sample(bundle: edge.Bundle) -> None:
    n_run = [0]

    class Counting(edge.Executor):
        def results(self, state: Any) -> Any:
            n_run[0] += 1
            return super().results(state)

    numbers = np.arange(60)
    with Counting(bundle) as executor:
        answers = Answers(executor, METRICS["cosine"], 60)
        order = np.random.default_rng(1).permutation(60)
        for index in (numbers[:20], numbers[20:40], numbers[40:], order[:20], order):
            found = answers.targets({"x": X[index]}, index, lambda: False)
            assert found is not None
            (logits,) = executor.run(bundle.space.original, {"x": X[index]})
            np.testing.assert_allclose(found, logits, rtol=1e-5, atol=1e-5)
        assert n_run[0] - 5 == 3
        fresh = Answers(executor, METRICS["cosine"], 60)
        assert fresh.targets({"x": X}, numbers, lambda: True) is None


def test_agreement_learns_from_each_sample(bundle: edge.Bundle, table: LatencyTable) -> None:
    """As top1 on the same targets does: the searches are the same."""
    classes = reference(bundle, bundle.space.original, {"x": X}).argmax(1)
    options: dict[str, Any] = {"budget": "80%", "batch_size": 5, "max_subnets": 20, "seed": 3}
    own = edge.search(bundle, table, X, **options)
    given = edge.search(bundle, table, (X, classes), **options)
    assert own.pool.entries == given.pool.entries
    assert own.counts == given.counts
    assert (own.pool.score, given.pool.score) == ("agreement", "top1")
    assert own.counts.ended_early > 0
    # top1 without targets is agreement.
    assert edge.search(bundle, table, X, **options, score="top1").pool == own.pool


@pytest.mark.parametrize(
    "form", ["array", "dict", "x", "file"], ids=lambda form: f"given as {form}"
)
def test_targets_may_be_left_out_in_any_form(
    bundle: edge.Bundle, table: LatencyTable, tmp_path: Path, form: str
) -> None:
    data: Any = {"array": X, "dict": {"x": X}, "x": {bundle.inputs[0].name: X}}.get(form)
    if form == "file":
        data = tmp_path / "local.npz"
        np.savez(data, x=X)
    result = edge.search(bundle, table, data, budget="70%", max_subnets=3)
    assert result.pool == edge.search(bundle, table, X, budget="70%", max_subnets=3).pool


@pytest.mark.parametrize("name", ["negative_loss", "miou", "own"])
def test_other_scores_compare_with_the_original_too(
    bundle: edge.Bundle, table: LatencyTable, name: str
) -> None:
    def own(results: Any, targets: Any) -> tuple[float, float]:
        assert targets.shape == results[0].shape
        return float(-np.abs(results[0] - targets).sum()), float(len(targets))

    if name == "miou":
        with pytest.raises(UsageError, match="miou can't compare"):
            edge.search(bundle, table, X, budget="70%", score=name)
        return
    result = edge.search(
        bundle, table, X, budget="100%", score=own if name == "own" else name, max_subnets=80
    )
    assert result.pool.score == name
    if name == "own":
        assert result.best.arch == bundle.space.original
        assert result.best.accuracy == 0


def test_given_targets_may_be_vectors(bundle: edge.Bundle, table: LatencyTable) -> None:
    """Those of a larger model, for example."""
    vectors = np.random.default_rng(1).standard_normal((60, 5)).astype(np.float32)
    for name in ("cosine", "spearman"):
        result = edge.search(
            bundle, table, (X, vectors), budget="70%", score=name, max_subnets=5, held_out=0.0
        )
        found = reference(bundle, result.best.arch, {"x": X})
        assert result.best.accuracy == pytest.approx(expected(name, found, vectors), abs=1e-5)
        assert result.pool.targets == "given"


@pytest.mark.parametrize("name", ["cosine", "spearman"])
def test_a_confidence_counts_with_scores_below_zero(bundle: edge.Bundle, name: str) -> None:
    """Their range is twice as wide as that of a share, so as much less is certain."""
    data = Dataset({"x": X}, np.arange(60), labelled=False)
    with edge.Executor(bundle) as executor:
        of = Evaluator(executor, data, METRICS[name], confidence=0.9)
        share = Evaluator(executor, data, METRICS["agreement"], confidence=0.9)
        assert of._at_most(1.0, 0.0, 20, 40) == pytest.approx(
            min(2 * share._at_most(1.0, 0.0, 20, 40), 40 / 60)
        )


def test_the_pool_goes_on_whatever_the_threads(
    bundle: edge.Bundle, table: LatencyTable, tmp_path: Path
) -> None:
    """It knows the samples and the score: the original's results may differ in the last digit."""
    path = tmp_path / "pool.json"
    options: dict[str, Any] = {"budget": "70%", "score": "cosine", "path": path}
    edge.search(bundle, table, X, **options, threads=1)
    assert json.loads(path.read_bytes())["score"] == "cosine"
    assert edge.search(bundle, table, X, **options, threads=2).counts.subnets == 0
    with pytest.raises(UsageError, match="pool of another search"):
        edge.search(bundle, table, X, **{**options, "score": "spearman"})
    with pytest.raises(UsageError, match="pool of another search"):
        edge.search(bundle, table, (X, np.zeros((60, 5), np.float32)), **options)


def test_pools_say_their_score(tmp_path: Path) -> None:
    arch = Arch(("original@0",))
    pool = SubnetPool.of("d" * 64, [PoolEntry(arch, 1.0, 0.5)], "e" * 64, "spearman", "original")
    pool.save(tmp_path / "pool.json")
    assert SubnetPool.load(tmp_path / "pool.json") == pool
    assert pool.merge(pool) == pool
    value = json.loads(pool.to_json())
    del value["score"], value["targets"], value["sha256"]
    old = SubnetPool.from_json(json.dumps(value).encode())
    assert (old.score, old.targets, old.entries) == ("", "", pool.entries)


def test_an_original_that_gives_nan_is_refused_as_target(
    table: LatencyTable, tmp_path: Path
) -> None:
    folder = write_bundle(tmp_path / "bundle").path
    poison(folder, "original@2")
    with pytest.raises(BundleError, match="the original returns NaN"):
        edge.search(edge.load(folder), table, X, budget="70%", strategy="exhaustive")


@pytest.mark.parametrize(
    ("score", "message"),
    [
        ("cosine:nothing", "no result 'nothing'"),
        ("cosine:1", "no result '1'"),
        ("beauty", "unknown score 'beauty'"),
    ],
)
def test_a_score_of_an_unknown_result_is_refused(
    bundle: edge.Bundle, table: LatencyTable, score: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        edge.search(bundle, table, X, budget="70%", score=score)


def test_the_command_takes_a_file_without_targets(
    bundle: edge.Bundle,
    table: LatencyTable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    np.savez(tmp_path / "local.npz", x=X)
    table.save(tmp_path / "table.json")
    argv = ["search", str(bundle.path), "--data", str(tmp_path / "local.npz"), "--budget", "70%"]
    argv += ["--table", str(tmp_path / "table.json"), "--max-subnets", "5", "--quiet"]
    for name, more in (("agreement", []), ("cosine:logits", ["--score", "cosine:logits"])):
        out = str(tmp_path / f"{len(more)}.json")
        assert main([*argv, "-o", out, "--json", *more]) == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["score"], report["targets"]) == (name, "original")
    assert main([*argv, "-o", str(tmp_path / "0.json")]) == 0
    assert "score: agreement with the original's own results" in capsys.readouterr().out


# --- While serving -----------------------------------------------------------------------------


def test_serving_searches_on_data_without_targets(
    bundle: edge.Bundle, table: LatencyTable, tmp_path: Path
) -> None:
    path = tmp_path / "pool.json"
    first = edge.search(bundle, table, X, budget="90%", score="cosine", max_subnets=3, path=path)
    with edge.serve(bundle, table, first.pool, budget_ms=1e3, data=X, pool_path=path) as runtime:
        searcher = runtime._search._searcher  # type: ignore[union-attr]
        assert isinstance(searcher, LocalSearch)
        found = searcher.search(0.6 * table.predict_ms(bundle.space.original), threading.Event())
    assert len(found) > len(first.pool)
    assert SubnetPool.load(path).score == "cosine"


def test_serving_compares_like_with_like(
    bundle: edge.Bundle, table: LatencyTable, tmp_path: Path
) -> None:
    def own(results: Any, targets: Any) -> tuple[float, float]:
        return float(len(targets)), float(len(targets))

    def served(pool: SubnetPool, data: Any, **options: Any) -> None:
        edge.serve(bundle, table, pool, budget_ms=1e3, data=data, **options).close()

    labelled = (X, np.zeros(60, int))
    agreed = edge.search(bundle, table, X, budget="90%", max_subnets=2).pool
    served(agreed, X)
    served(agreed, X, score="agreement")
    with pytest.raises(UsageError, match="differently from the pool"):
        served(agreed, X, score="cosine")
    np.savez(tmp_path / "local.npz", x=X, targets=labelled[1])
    for data in (labelled, tmp_path / "local.npz"):
        with pytest.raises(UsageError, match="differently from the pool"):
            served(agreed, data)
    right = edge.search(bundle, table, labelled, budget="90%", max_subnets=2).pool
    served(right, labelled)
    with pytest.raises(UsageError, match="differently from the pool"):
        served(right, X)
    users = edge.search(bundle, table, X, budget="90%", max_subnets=2, score=own).pool
    served(users, X, score=own)
    with pytest.raises(UsageError, match="needs the function that scored the pool"):
        served(users, X)
    # Of a pool that names no score, nothing can be said.
    served(SubnetPool.of(bundle.digest, right.entries), X)
