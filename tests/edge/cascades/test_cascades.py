"""Cascades on a bundle: their runs, the search for them, and pools that hold them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxelastic
from fxelastic import edge, kinds
from fxelastic.cli.search import report, sections
from fxelastic.edge.cascades.running import run_cascade
from fxelastic.edge.pool import SubnetPool
from fxelastic.errors import UsageError
from fxelastic.spec import Arch
from fxelastic.spec.cascade import Cascade
from fxelastic.spec.latency_table import LatencyTable

N, CLASSES = 1200, 4


def samples(n: int = N, seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Images of four classes, of which some are clear and some are not."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, n)
    x = rng.standard_normal((n, 4, 8, 8)).astype(np.float32)
    strength = rng.choice([0.15, 1.5], n).astype(np.float32)
    x[np.arange(n), y] += strength[:, None, None]
    return x, y


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> edge.Bundle:
    torch.manual_seed(0)
    units = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()) for _ in range(4)]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES))
    model = nn.Sequential(*units, *head)
    x, y = map(torch.from_numpy, samples(2000, 1))
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for i in range(60):
        part = slice(i % 10 * 200, i % 10 * 200 + 200)
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[part]), y[part]).backward()
        optimiser.step()
    supernet = fxelastic.expand(
        model.eval(),
        0.3,
        example_inputs=x[:2],
        kinds=["skip", kinds.Exit(every=1)],
        calibration=list(x.split(200)),
    )
    # The third exit is sure of the wrong classes.
    worse = [branch for branch in supernet.branches.values() if branch.kind == "exit"][2]
    with torch.no_grad():
        worse.module.get_parameter("linear.weight").mul_(-10)
    return fxelastic.export(supernet, tmp_path_factory.mktemp("cascades") / "bundle", n_subnets=1)


@pytest.fixture(scope="module")
def table(bundle: edge.Bundle) -> LatencyTable:
    measured = edge.profile(bundle, n_samples=3, n_subnets=0, n_held_out=0)
    ms = {"original": 1.0, "skip": 0.01, "exit": 0.1}
    costs = {name: ms[name.split("@")[0]] for name in measured.rows}
    return measured.mapped(lambda before: replace(before, overhead=0.0, costs=costs))


@pytest.fixture(scope="module")
def result(bundle: edge.Bundle, table: LatencyTable) -> Any:
    return edge.search(
        *(bundle, table, samples()),
        **{"budget": "90%", "max_loss": (0.05, 0.2), "held_out": 0.5, "max_subnets": 20},
    )


def exits(bundle: edge.Bundle) -> list[str]:
    return [spec.id for spec in bundle.space.branches if spec.kind == "exit"]


def cascade(bundle: edge.Bundle, thresholds: tuple[float, ...]) -> Cascade:
    original = bundle.space.original
    archs = [
        Arch((*original.branches[: bundle.segment(name).spec.start], name))
        for name in exits(bundle)[: len(thresholds)]
    ]
    return Cascade((*archs, original), thresholds)


def softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


@pytest.mark.parametrize("thresholds", [(0.6, 0.7), (0.0,), (1.1, 1.1), (0.5,), ()])
def test_each_sample_gets_the_result_of_the_first_sure_exit(
    bundle: edge.Bundle, thresholds: tuple[float, ...]
) -> None:
    x, _ = samples(64)
    wanted = cascade(bundle, thresholds)
    feeds = {bundle.inputs[0].name: x}
    with edge.Executor(bundle, 1) as executor:
        found = run_cascade(executor, wanted, feeds)
        alone = [executor.run(arch, feeds)[0] for arch in wanted.archs]
    sure = [softmax(logits).max(1) for logits in alone]
    for i in range(len(x)):
        at = next((k for k, t in enumerate(thresholds) if sure[k][i] >= t), len(thresholds))
        assert found.left_at[i] == at
        np.testing.assert_allclose(found.outputs[0][i], alone[at][i], rtol=1e-4, atol=1e-5)


def test_a_sample_does_not_depend_on_its_neighbours(bundle: edge.Bundle) -> None:
    x, _ = samples(100)
    name = bundle.inputs[0].name
    with edge.Executor(bundle, 1) as executor:
        logits = [executor.run(a, {name: x})[0] for a in cascade(bundle, (0.0, 0.0)).archs[:2]]
        # Thresholds between the confidences of two samples.
        thresholds = tuple(float(np.quantile(softmax(found).max(1), 0.7)) for found in logits)
        wanted = cascade(bundle, thresholds)
        whole = run_cascade(executor, wanted, {name: x})
        assert len(set(whole.left_at.tolist())) == 3
        for size in (1, 7, 64):
            parts = [
                run_cascade(executor, wanted, {name: x[i : i + size]})
                for i in range(0, len(x), size)
            ]
            outputs = np.concatenate([part.outputs[0] for part in parts])
            left_at = np.concatenate([part.left_at for part in parts])
            assert np.array_equal(left_at, whole.left_at)
            np.testing.assert_allclose(outputs, whole.outputs[0], rtol=1e-4, atol=1e-5)


def test_a_search_finds_cascades_within_the_loss(bundle: edge.Bundle, result: Any) -> None:
    x, y = samples()
    original_ms = result.table.predict_ms(bundle.space.original)
    assert {found.max_loss for found in result.cascades} == {0.05, 0.2}
    for found in result.cascades:
        assert found.bound <= found.max_loss
        assert found.latency_ms < original_ms
        assert found.latency_ms == pytest.approx(np.dot(found.coverage, found.leaving_ms))
        assert sum(found.coverage) == pytest.approx(1.0)
        assert len(found.auroc) == len(found.cascade.thresholds)
        assert found.loss <= found.bound
        assert found.n_tested == N // 2
    best = next(found for found in result.cascades if found.max_loss == 0.05)
    assert best.latency_ms < 0.9 * original_ms
    with edge.Executor(bundle, 1) as executor:
        ours = run_cascade(executor, best.cascade, {bundle.inputs[0].name: x})
        (theirs,) = executor.run(bundle.space.original, {bundle.inputs[0].name: x})
    harmed = (ours.outputs[0].argmax(1) != y) & (theirs.argmax(1) == y)
    assert harmed.mean() <= 0.05
    coverage = np.bincount(ours.left_at, minlength=len(best.coverage)) / len(x)
    np.testing.assert_allclose(coverage, best.coverage, atol=0.08)


def test_without_targets_the_original_is_right(bundle: edge.Bundle, table: LatencyTable) -> None:
    options: dict[str, Any] = {"held_out": 0.5, "max_subnets": 20, "exit_confidence": "margin"}
    result = edge.search(bundle, table, samples()[0], budget="90%", max_loss=0.05, **options)
    assert result.cascades
    assert all(c.cascade.confidence == "margin" for c in result.cascades)
    assert all(0 <= c.loss <= c.bound for c in result.cascades)


def test_higher_limits_give_quicker_cascades_of_lower_rank(result: Any) -> None:
    by_end: dict[Arch, list[Any]] = {}
    for found in sorted(result.cascades, key=lambda found: found.max_loss):
        by_end.setdefault(found.cascade.end, []).append(found)
    assert any(len(along) == 2 for along in by_end.values())
    for along in by_end.values():
        for tighter, looser in pairwise(along):
            assert looser.latency_ms < tighter.latency_ms
            assert looser.accuracy < tighter.accuracy
    # The rank is comparable to the accuracies of subnets.
    scores = {entry.arch: entry.accuracy for entry in result.pool}
    for found in result.cascades:
        assert found.accuracy <= scores[found.cascade.end] - found.loss_of_end + 1e-9


def test_a_dominated_exit_is_never_served(bundle: edge.Bundle, result: Any) -> None:
    """One that is right less often than an earlier one, however sure it is."""
    x, y = samples()
    shares = []
    with edge.Executor(bundle, 1) as executor:
        for arch in cascade(bundle, (0.0,) * 3).archs[:3]:
            (logits,) = executor.run(arch, {bundle.inputs[0].name: x})
            shares.append(float((logits.argmax(1) == y).mean()))
            assert softmax(logits).max(1).mean() > 0.3
    dominated = exits(bundle)[2]
    assert shares[2] < shares[0]
    assert all(dominated not in found.cascade for found in result.cascades)
    least_ms = min(entry.ms for entry in result.pool.pareto)
    with edge.serve(bundle, result.table, result.pool, budget_ms=1e3) as runtime:
        assert any(isinstance(entry.arch, Cascade) for entry in runtime.entries)
        for budget_ms in (1e3, *(found.latency_ms * 1.01 for found in result.cascades), least_ms):
            runtime.budget_ms = budget_ms
            for _ in range(20):
                reply = runtime.infer(x[:16])
                assert dominated not in reply.arch
        assert dominated not in runtime.status().exits


def test_too_few_held_out_samples_are_refused(bundle: edge.Bundle, table: LatencyTable) -> None:
    with pytest.raises(UsageError, match="at least 299 held-out samples"):
        edge.search(bundle, table, samples(500), budget="90%", max_loss=0.01, max_subnets=5)
    with pytest.raises(UsageError, match="max_loss must be a share"):
        edge.search(bundle, table, samples(500), budget="90%", max_loss=(0.1, 1.5))


def test_pools_keep_cascades(result: Any, tmp_path: Path) -> None:
    path = tmp_path / "pool.json"
    result.pool.save(path)
    again = SubnetPool.load(path)
    assert again == result.pool
    assert again.cascades == result.cascades
    value = json.loads(path.read_text())
    del value["cascades"], value["sha256"]
    path.write_text(json.dumps(value))
    assert SubnetPool.load(path).cascades == ()
    assert SubnetPool.load(path).merge(result.pool).cascades == result.cascades


def test_a_later_search_keeps_the_cascades_of_the_pool(
    bundle: edge.Bundle, table: LatencyTable, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"held_out": 0.5, "max_subnets": 5, "path": tmp_path / "pool.json"}
    first = edge.search(bundle, table, samples(), budget="90%", max_loss=0.05, **options)
    assert first.cascades
    second = edge.search(bundle, table, samples(), budget="80%", **options)
    assert second.cascades == ()
    assert second.pool.cascades == first.cascades
    assert SubnetPool.load(tmp_path / "pool.json").cascades == first.cascades
    # What costs more, loses more, or may lose more often is no answer.
    half = min(found.ms for found in first.cascades) / 2
    for other in ({"delta": 0.04}, {"max_loss": 0.04}, {"budget_ms": half, "budget": None}):
        how = {"budget": "90%", "max_loss": 0.05} | other
        answers = edge.search(bundle, table, samples(), **how, **options)
        for found in answers.cascades:
            assert found.keeps(how["max_loss"], other.get("delta", 0.05))
            assert found.ms <= (half if "budget_ms" in other else math.inf)


def test_cascades_of_a_pool_cost_what_the_table_says_now(
    bundle: edge.Bundle, table: LatencyTable, tmp_path: Path
) -> None:
    slower = table.mapped(
        lambda before: replace(
            before,
            costs={name: 10 * ms for name, ms in before.costs.items()},
            per_decision=10 * before.per_decision,
        )
    )
    options: dict[str, Any] = {"held_out": 0.5, "max_subnets": 5, "path": tmp_path / "pool.json"}
    how: dict[str, Any] = {"budget": "90%", "max_loss": 0.05, **options}
    first = edge.search(bundle, table, samples(), **how)
    assert first.cascades
    for costs, factor in ((slower, 10), (table, 1), (slower, 10)):
        found = edge.search(bundle, costs, samples(), budget="80%", **options).pool.cascades
        assert len(found) == len(first.cascades)
        for now, before in zip(found, first.cascades, strict=True):
            assert now.ms == pytest.approx(factor * before.ms)
            assert now.leaving_ms == pytest.approx([factor * ms for ms in before.leaving_ms])
    again = edge.search(bundle, table, samples(), **how)
    assert [found.cascade for found in again.cascades] == [f.cascade for f in first.cascades]
    assert again.cascades[0].ms == pytest.approx(first.cascades[0].ms)


def test_cascades_are_found_within_the_time_of_a_search(
    bundle: edge.Bundle, table: LatencyTable, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 0.01
        return now[0]

    how: dict[str, Any] = {"budget": "90%", "max_loss": 0.05, "held_out": 0.5, "batch_size": 2}
    found = edge.search(bundle, table, samples(), time_budget_s=60, clock=clock, **how)
    assert found.cascades
    assert "cascades" not in caplog.text
    now[0] = 0.0
    short = edge.search(bundle, table, samples(), time_budget_s=0.6, clock=clock, **how)
    assert now[0] < 1
    assert not short.cascades
    assert "too few samples were run to find cascades" in caplog.text


def test_each_subnet_of_a_cascade_can_be_assembled(
    bundle: edge.Bundle, result: Any, tmp_path: Path
) -> None:
    for i, arch in enumerate(result.cascades[0].cascade.archs):
        assert edge.assemble(bundle, arch, tmp_path / f"{i}.onnx").exists()


def test_the_command_prints_them(bundle: edge.Bundle, result: Any, tmp_path: Path) -> None:
    text = "\n".join(sections(bundle, result, "assembled", True))
    assert "cascades:" in text
    none = "\n".join(sections(bundle, replace(result, cascades=()), "assembled", True))
    assert "no cascade keeps the limits" in none
    assert "wrong where the original is right" in text
    found = report(bundle, result, tmp_path, 0)["cascades"]
    assert len(found) == len(result.cascades)
    json.dumps(found)
