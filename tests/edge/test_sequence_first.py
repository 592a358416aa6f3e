"""A model with its samples in dimension 1: from the export to requests."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch

from fxelastic import Supernet, edge, expand, export
from fxelastic.edge.searching.choice import chosen_metric
from fxelastic.edge.searching.data import read_data
from fxelastic.edge.searching.evaluation import Evaluator
from fxelastic.edge.searching.scores import METRICS
from fxelastic.errors import BundleError, UsageError
from fxelastic.spec.manifest import Manifest, ModelInfo
from fxelastic.spec.symbols import Symbol
from fxelastic.spec.value_info import ValueInfo
from fxelastic.train import cosine, evaluate, spearman
from tests.sequence_first import STEPS, Tagger, samples

Exported = tuple[Supernet, edge.Bundle]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    torch.manual_seed(0)
    supernet = expand(Tagger().eval(), 0.5, example_inputs=samples(3), kinds=["skip"])
    return supernet, export(supernet, tmp_path_factory.mktemp("tagger") / "bundle", n_subnets=1)


def arrays(n: int) -> dict[str, Any]:
    return {name: value.numpy() for name, value in samples(n, seed=1).items()}


def test_the_bundle_says_where_samples_are(exported: Exported) -> None:
    manifest = exported[1].manifest
    assert [manifest.batch_dims[name] for name in manifest.inputs] == [1, 1]
    assert [manifest.batch_dims[result.value] for result in manifest.results] == [1, 1]
    assert manifest.verification is not None
    assert manifest.verification.batch_sizes == (3, 4)
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_subnets_compute_what_torch_does_at_every_batch_size(
    exported: Exported, tmp_path: Path
) -> None:
    supernet, bundle = exported
    runner = edge.Executor(bundle)
    for arch in [bundle.space.original, *bundle.space.sample(2, 0)]:
        for n in (1, 5):
            found = runner.run(arch, arrays(n))
            expected = supernet(**samples(n, seed=1), arch=arch)
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-4, atol=1e-5)
    path = edge.assemble(bundle, bundle.space.original, tmp_path / "model.onnx")
    axes = [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in onnx.load(path).graph.input
    ]
    assert axes == [[STEPS, "N", 8], [1, "N", 8]]


@pytest.mark.parametrize("score", ["agreement", "cosine", "cosine:1"])
def test_a_search_scores_sample_by_sample(exported: Exported, score: str) -> None:
    """Scores don't depend on the batches, and are those of the results in the usual order."""
    _, bundle = exported
    data = read_data(bundle, arrays(7))
    assert len(data) == 7
    metric = chosen_metric(bundle, score, labelled=False)
    (arch,) = bundle.space.sample(1, 3)
    runner = edge.Executor(bundle)
    found = {
        size: Evaluator(runner, data, metric, batch_size=size).scores([arch])[arch]
        for size in (2, 7)
    }
    usual = METRICS[score.partition(":")[0]]
    results, originals = (
        [np.moveaxis(array, 1, 0) for array in runner.run(subnet, arrays(7))][":" in score :]
        for subnet in (arch, bundle.space.original)
    )
    total, count = usual.score(results, usual.answers(originals))
    assert found[2] == pytest.approx(found[7]) == pytest.approx(float(total / count))


def test_targets_hold_samples_where_the_result_does(exported: Exported) -> None:
    _, bundle = exported
    inputs = arrays(7)
    classes = edge.Executor(bundle).run(bundle.space.original, inputs)[0].argmax(2)
    data = read_data(bundle, {**inputs, "targets": classes})
    metric = chosen_metric(bundle, "agreement", labelled=True)
    original = bundle.space.original
    assert Evaluator(edge.Executor(bundle), data, metric, batch_size=3).scores([original]) == {
        original: 1.0
    }
    for i, (batch, targets) in enumerate(data.head(2).batches(1)):
        np.testing.assert_array_equal(targets, classes[:, i : i + 1].T)
        np.testing.assert_array_equal(batch["x"], inputs["x"][:, i : i + 1])
    with pytest.raises(UsageError, match="same number"):
        read_data(bundle, {**inputs, "targets": classes.T})


def test_training_scores_sample_by_sample(exported: Exported) -> None:
    """A mean over batches of one sample each is the mean over one batch of all."""
    supernet, _ = exported
    given = samples(7, seed=1)
    each = [({name: x[:, i : i + 1] for name, x in given.items()}, None) for i in range(7)]
    archs = supernet.space.sample(2, 0)
    for metric in (None, cosine, spearman):
        whole = evaluate(supernet, archs, [(given, None)], metric=metric)
        assert evaluate(supernet, archs, each, metric=metric) == pytest.approx(whole)


def test_a_profile_and_requests_take_samples_in_dimension_1(exported: Exported) -> None:
    _, bundle = exported
    table = edge.profile(bundle, batch_size=2, n_samples=3, n_subnets=2, n_held_out=1)
    assert table.batch_size == 2
    result = edge.search(bundle, table, arrays(7), budget="100%", max_subnets=2, force=True)
    with edge.serve(bundle, table, result.pool, budget_ms=1e3) as runtime:
        reply = runtime(**arrays(1))
        assert [a.shape for a in reply] == [(STEPS, 1, 5), (1, 1, 8)]
        with pytest.raises(UsageError, match="different numbers of samples"):
            runtime(arrays(1)["x"], arrays(2)["state"])


def test_a_fixed_batch_keeps_its_dimension(exported: Exported) -> None:
    value = json.loads(exported[1].manifest.to_json())
    value["model"]["dynamic_batch"] = False
    for info in value["values"]:
        info["shape"] = [3 if size == "N" else size for size in info["shape"]]
    value["fixed_batch_dims"] = {"x": 1, "state": 1}
    manifest = Manifest.from_json(json.dumps(value).encode())
    assert [manifest.batch_dims[name] for name in manifest.inputs] == [1, 1]
    assert Manifest.from_json(manifest.to_json()) == manifest
    for wrong in ({"x": 3}, {"nowhere": 1}, {"x": -1}, []):
        value["fixed_batch_dims"] = wrong
        with pytest.raises(BundleError, match="batch"):
            Manifest.from_json(json.dumps(value).encode())
    with pytest.raises(BundleError, match="fixed_batch_dims"):
        replace(exported[1].manifest, fixed_batch_dims={"x": 1})


def test_samples_of_different_lengths_are_stacked_in_dimension_1() -> None:
    model = ModelInfo("Net", "0" * 64, 1, True, 2, sizes=(Symbol("seq", 4),))
    bundle = SimpleNamespace(
        inputs=(ValueInfo("x", "float32", ("seq", "N", 8)),),
        outputs=(ValueInfo("y", "float32", ("seq", "N", 5)),),
        manifest=SimpleNamespace(model=model, sample_inputs=("x",), batch_dims={"x": 1, "y": 1}),
    )
    each = [np.full((n, 8), n, np.float32) for n in (3, 5, 5)]
    padded = np.zeros((5, 3, 8), np.float32)
    for i, sample in enumerate(each):
        padded[: len(sample), i] = sample
    for data in ({"x": each}, {"x": padded, "x.lengths": np.array([3, 5, 5])}):
        found = read_data(cast(edge.Bundle, bundle), data)
        assert found.sizes() == [{"seq": 3}, {"seq": 5}, {"seq": 5}]
        shapes = [batch["x"].shape for batch, _ in found.batches(3)]
        assert shapes == [(3, 1, 8), (5, 2, 8)]
