"""Cascades as one model compute what Python computes, whatever the batch and the thresholds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

import fxelastic
from fxelastic import edge, kinds
from fxelastic.cli.app import main
from fxelastic.edge.cascades.confidence import CONFIDENCES
from fxelastic.edge.cascades.joined import LEFT_AT, THRESHOLDS, CascadeForm, separate_names
from fxelastic.edge.cascades.loaded import JoinedCascade
from fxelastic.edge.cascades.running import run_cascade
from fxelastic.edge.prepared import optimise
from fxelastic.edge.preparing import items_of
from fxelastic.edge.serving.serve import loader_of
from fxelastic.errors import UsageError
from fxelastic.spec import Arch
from fxelastic.spec.cascade import Cascade
from tests.edge.serving.tiny_bundle import write_bundle

OPSETS = (18, 20)


class Pair(nn.Module):
    """Classes of each sample, and a value for each class beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)))
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, 8, 8, 8) to scores (N, 5)."""
        return self.head(torch.relu(self.blocks(x)).mean((2, 3)))


@pytest.fixture(scope="module", params=OPSETS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> edge.Bundle:
    torch.manual_seed(0)
    supernet = fxelastic.expand(
        Pair().eval(),
        0.4,
        example_inputs=torch.randn(2, 8, 8, 8),
        kinds=(kinds.Exit(every=1),),
        calibration=[torch.randn(64, 8, 8, 8)],
    )
    folder = tmp_path_factory.mktemp("joined") / "bundle"
    return fxelastic.export(supernet, folder, opset=request.param, n_subnets=1)


def cascade(bundle: edge.Bundle, confidence: str, thresholds: tuple[float, ...]) -> Cascade:
    original = bundle.space.original
    exits = [spec for spec in bundle.space.branches if spec.kind == "exit"][: len(thresholds)]
    archs = [Arch((*original.branches[: spec.start], spec.id)) for spec in exits]
    return Cascade((*archs, original), thresholds, confidence)


def images(n: int = 40) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, 8, 8, 8)).astype(np.float32)


@pytest.fixture
def loader(bundle: edge.Bundle, tmp_path: Path) -> Iterator[Any]:
    found = loader_of(bundle, "assembled")
    yield found
    found.close()


@pytest.mark.parametrize("confidence", CONFIDENCES)
@pytest.mark.parametrize("n_exits", [1, 2])
def test_samples_leave_where_they_do_in_python(
    bundle: edge.Bundle, loader: Any, confidence: str, n_exits: int
) -> None:
    (name,) = (value.name for value in bundle.inputs)
    x = images()
    with edge.Executor(bundle, 1) as executor:
        logits = run_cascade(executor, cascade(bundle, confidence, ()), {name: x}).outputs[0]
        middle = float(np.median(CONFIDENCES[confidence](logits)))
        found = cascade(bundle, confidence, (middle, middle)[:n_exits])
        wanted = run_cascade(executor, found, {name: x})
    assert len(set(wanted.left_at.tolist())) > 1
    loaded = loader.load(found, urgent=True)
    assert isinstance(loaded, JoinedCascade)
    for size in (1, 7, 40):
        parts = [loaded.run({name: x[i : i + size]}) for i in range(0, len(x), size)]
        assert np.array_equal(np.concatenate([p.left_at for p in parts]), wanted.left_at)
        results = np.concatenate([p.outputs[0] for p in parts])
        np.testing.assert_allclose(results, wanted.outputs[0], rtol=1e-4, atol=1e-5)
    assert [len(part) for part in loaded.run({name: x[:0]}).outputs] == [0]
    loaded.close()


def test_what_is_not_a_number_goes_on(bundle: edge.Bundle, loader: Any) -> None:
    loaded = loader.load(cascade(bundle, "max_softmax", (0.0, 0.0)), urgent=True)
    (name,) = (value.name for value in bundle.inputs)
    x = images(3)
    x[1] = np.nan
    found = loaded.run({name: x})
    assert found.left_at.tolist() == [0, 2, 0]
    assert np.isnan(found.outputs[0][1]).all()
    assert np.isfinite(found.outputs[0][[0, 2]]).all()
    loaded.close()


def test_other_cascades_keep_their_segments(tmp_path: Path, bundle: edge.Bundle) -> None:
    found = cascade(bundle, "max_softmax", (0.5, 0.5))
    assert [item.kind for item in items_of(bundle, found, "assembled")] == ["cascade"]
    learned = cascade(bundle, "learned", (0.5, 0.5))
    assert {item.kind for item in items_of(bundle, learned, "assembled")} == {"segment"}
    fixed = write_bundle(tmp_path / "fixed", exits=(1,), batch_size=4)
    alone = cascade(fixed, "max_softmax", (0.5,))
    assert {item.kind for item in items_of(fixed, alone, "assembled")} == {"segment"}
    (whole,) = items_of(bundle, cascade(bundle, "max_softmax", ()), "assembled")
    assert whole.kind == "segment"


def test_the_text_of_a_form_is_read_again(bundle: edge.Bundle) -> None:
    form = CascadeForm.of(cascade(bundle, "margin", (0.5, 0.25)))
    assert CascadeForm.parse(str(form)) == form
    assert form == CascadeForm.of(cascade(bundle, "margin", (0.1, 0.9)))
    (item,) = items_of(bundle, cascade(bundle, "margin", (0.5, 0.25)), "assembled")
    assert item.branches == tuple(cascade(bundle, "margin", (0.5, 0.25)))


def test_optimised_files_are_read_again(tmp_path: Path) -> None:
    """onnxruntime numbers the values that it adds in each graph anew, and refuses the file."""
    tiny = write_bundle(tmp_path / "bundle", exits=(1, 3))
    model = CascadeForm.of(cascade(tiny, "max_softmax", (0.5, 0.5))).join(tiny)
    onnx.checker.check_model(model, full_check=True)
    path = tmp_path / "model.onnx"
    optimise(model.SerializeToString(), path)
    made = onnx.load(path, load_external_data=False)
    separate_names(made.graph)
    path.write_bytes(made.SerializeToString())
    session = ort.InferenceSession(path)
    feeds = {"x": images(3), THRESHOLDS: np.array([2.0, 2.0])}
    assert session.run(None, feeds)[-1].tolist() == [2, 2, 2]


def test_an_assembled_cascade_needs_nothing_but_onnxruntime(
    bundle: edge.Bundle, tmp_path: Path
) -> None:
    (name,) = (value.name for value in bundle.inputs)
    x = images()
    found = cascade(bundle, "max_softmax", (0.3, 0.25))
    with edge.Executor(bundle, 1) as executor:
        wanted = run_cascade(executor, found, {name: x})
    session = ort.InferenceSession(edge.assemble(bundle, found, tmp_path / "cascade.onnx"))
    result, left_at = session.get_outputs()
    assert (result.name, left_at.name) == (bundle.manifest.results[0].name, LEFT_AT)
    for size in (1, 40):
        parts = [session.run(None, {name: x[i : i + size]}) for i in range(0, len(x), size)]
        assert np.array_equal(np.concatenate([part[1] for part in parts]), wanted.left_at)
        results = np.concatenate([part[0] for part in parts])
        np.testing.assert_allclose(results, wanted.outputs[0], rtol=1e-4, atol=1e-5)
    never = {THRESHOLDS: np.array([2.0, 2.0])}
    assert set(session.run(None, {name: x, **never})[1].tolist()) == {2}


def test_a_cascade_that_is_no_model_is_refused(tmp_path: Path) -> None:
    fixed = write_bundle(tmp_path / "fixed", exits=(1,), batch_size=4)
    with pytest.raises(UsageError, match="one model can't compute this cascade"):
        edge.assemble(fixed, cascade(fixed, "max_softmax", (0.5,)), tmp_path / "cascade.onnx")
    assert not (tmp_path / "cascade.onnx").exists()


def test_the_command_assembles_cascades(
    bundle: edge.Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exit_arch = cascade(bundle, "margin", (0.5,)).archs[0]
    out = tmp_path / "cascade.onnx"
    text = f"margin>=0.5: {exit_arch}; original"
    assert main(["assemble", str(bundle.path), text, str(out)]) == 0
    assert LEFT_AT in capsys.readouterr().out
    assert ort.InferenceSession(out).get_outputs()[-1].name == LEFT_AT
    assert main(["assemble", str(bundle.path), "margin>=0.5: original@9; original", "x.onnx"]) == 2
