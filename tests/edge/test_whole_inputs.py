"""Inputs that hold no samples are passed whole, in profiles, searches, training and serving."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic import edge
from fxelastic.edge.executor import check_inputs
from fxelastic.edge.searching.data import Dataset, read_data
from fxelastic.edge.signature import BundleSignature
from fxelastic.errors import BundleError, UsageError
from fxelastic.spec.manifest import Manifest
from fxelastic.train.batches import BatchReader
from tests.cli.commands import fxelastic as command

FEATURES = np.random.default_rng(0).standard_normal((40, 8)).astype("f4")
CLASSES = np.arange(40) % 3


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
        self.head = nn.Linear(8, 3)


class TimeStep(Body):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.head(self.body(x * torch.sin(t)))


class Classes(Body):
    def forward(self, x: Tensor, texts: Tensor) -> Tensor:
        return self.body(x) @ texts.T


class SharedMask(Body):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.body(x) * mask)


class Prompt(Body):
    """One row for all samples, before them in the signature."""

    def forward(self, prompt: Tensor, x: Tensor) -> Tensor:
        return self.head(self.body(x + prompt[:, 0]))


# The model, its input of samples, the other input, and its name.
CASES: dict[str, tuple[type[nn.Module], str, Any]] = {
    "time step": (TimeStep, "t", np.float32(3)),
    "classes": (Classes, "texts", FEATURES[:4][:, :8] + 1),
    "shared mask": (SharedMask, "mask", np.linspace(0, 1, 8).astype("f4")),
    "prompt": (Prompt, "prompt", np.ones((1, 2, 8), "f4")),
}


@pytest.fixture(scope="module", params=list(CASES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    make, name, whole = CASES[request.param]
    torch.manual_seed(0)
    model = make().eval()
    example = {"x": torch.from_numpy(FEATURES[:4]), name: torch.as_tensor(whole)}
    supernet = fxelastic.expand(model, 0.4, example_inputs=example)
    bundle = fxelastic.export(supernet, tmp_path_factory.mktemp("whole") / "bundle", n_subnets=1)
    return model, supernet, bundle, name, np.asarray(whole)


def test_what_holds_no_samples_is_passed_whole_on_the_device(case: Any, tmp_path: Path) -> None:
    model, _, bundle, name, whole = case
    assert bundle.manifest.sample_inputs == ("x",)
    n = 5 if bundle.manifest.model.dynamic_batch else 4
    table = edge.profile(bundle, n_samples=3, n_subnets=0, n_held_out=0)
    # One file with everything: the arrays of samples, and the other input once.
    np.savez(tmp_path / "data.npz", **{"x": FEATURES, name: whole, "targets": CLASSES})
    result = edge.search(bundle, table, tmp_path / "data.npz", budget=1e9, max_subnets=8)
    with edge.serve(bundle, table, result.pool, budget_ms=1e6) as runtime:
        served = runtime(**{"x": FEATURES[:n], name: whole})
    expected = model(**{"x": torch.from_numpy(FEATURES[:n]), name: torch.as_tensor(whole)})
    assert served.shape == expected.shape
    original = edge.Executor(bundle).run(bundle.space.original, {"x": FEATURES[:n], name: whole})[0]
    np.testing.assert_allclose(original, expected.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_what_holds_no_samples_is_passed_whole_in_training(case: Any) -> None:
    _, supernet, _, name, whole = case
    x = torch.from_numpy(FEATURES[:4])
    batch = {"x": x, name: torch.as_tensor(whole), "targets": torch.from_numpy(CLASSES[:4])}
    assert BatchReader(supernet).read(batch, 0).size == 4
    fxelastic.distill(supernet, [batch], epochs=1, progress=False)


def test_an_array_with_a_row_for_each_sample_is_refused_with_the_reason(case: Any) -> None:
    _, _, bundle, name, whole = case
    data = {"x": FEATURES, name: np.stack([whole] * 40), "targets": CLASSES}
    with pytest.raises(UsageError, match=f"input '{name}' does not fit the model") as caught:
        read_data(bundle, data)
    assert "has no batch dimension" in str(caught.value)


def test_batches_of_a_data_set_share_what_holds_no_samples() -> None:
    data = Dataset({"x": FEATURES}, CLASSES, {"t": np.float32(3)})
    parts = [data, *data.split(0.5, 0), data.whole(16)]
    for part in parts:
        for inputs, targets in part.batches(16):
            assert len(inputs["x"]) == len(targets)
            assert inputs["t"] == 3
    other = dataclasses.replace(data, shared={"t": np.float32(4)})
    assert other.digest() != data.digest()


class Pair(Body):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(self.body(left) - right)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> edge.Bundle:
    x = torch.from_numpy(FEATURES[:4])
    supernet = fxelastic.expand(Pair().eval(), 1.0, example_inputs=(x, x), kinds=())
    return fxelastic.export(supernet, tmp_path_factory.mktemp("pair") / "bundle", n_subnets=0)


@pytest.mark.parametrize("where", ["executor", "request", "data"])
def test_batch_sizes_that_disagree_on_the_device_are_refused_naming_both(
    pair: edge.Bundle, where: str
) -> None:
    inputs = {"left": FEATURES[:7], "right": FEATURES[:4]}
    call: Callable[[], object] = {
        "executor": lambda: check_inputs(pair, inputs),
        "request": lambda: BundleSignature(pair).bind((), inputs),
        "data": lambda: read_data(pair, {**inputs, "targets": CLASSES[:7]}),
    }[where]
    with pytest.raises(UsageError) as caught:
        call()
    assert "left" in str(caught.value)
    assert "right" in str(caught.value)
    assert "7" in str(caught.value)
    assert "4" in str(caught.value)


def test_a_file_is_right_at_another_batch_size_where_rows_are_as_many_by_coincidence(
    tmp_path: Path,
) -> None:
    class Scorer(Body):
        def forward(self, x: Tensor, texts: Tensor) -> Tensor:
            return self.body(x) @ texts.T / texts.shape[0]

    torch.manual_seed(0)
    model, texts = Scorer().eval(), torch.randn(4, 8)
    example = (torch.from_numpy(FEATURES[:4]), texts)
    supernet = fxelastic.expand(model, 1.0, example_inputs=example, kinds=())
    bundle = fxelastic.export(supernet, tmp_path / "bundle", n_subnets=0)
    assert bundle.manifest.verification is not None
    assert len(bundle.manifest.verification.batch_sizes) == 2
    inputs = {"x": FEATURES[:7], "texts": texts.numpy()}
    (result,) = edge.Executor(bundle).run(bundle.space.original, inputs)
    expected = model(torch.from_numpy(FEATURES[:7]), texts)
    np.testing.assert_allclose(result, expected.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_manifest_that_does_not_say_what_holds_samples_is_read(pair: edge.Bundle) -> None:
    value = json.loads(pair.manifest.to_json())
    assert value.pop("batched") == ["left", "right"]
    manifest = Manifest.from_json(json.dumps(value).encode())
    assert manifest.batched is None
    assert manifest.sample_inputs == ("left", "right")


@pytest.mark.parametrize("names", [["nowhere"], ["left", "left"], "left", [3]])
def test_a_manifest_that_names_no_inputs_as_batched_is_refused(
    pair: edge.Bundle, names: Any
) -> None:
    value = json.loads(pair.manifest.to_json())
    value["batched"] = names
    with pytest.raises(BundleError, match="batched"):
        Manifest.from_json(json.dumps(value).encode())


_MODEL = """
import torch
from torch import nn

class Scorer(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x, texts):
        return self.body(x) * texts.mean()

def build():
    torch.manual_seed(0)
    return Scorer()
"""


def test_commands_take_and_print_the_batched_inputs(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(_MODEL)
    model = [
        f"{tmp_path / 'net.py'}:build",
        *("--example-input", "4x8", "--example-input", "4x5", "--gamma", "1"),
    ]
    found = command("explain", *model, "--json", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["batched"] == ["x"]
    assert "input 'texts' has as many rows" in found.stderr
    both = command("explain", *model, "--batched", "x,texts", "--json", cwd=tmp_path)
    assert json.loads(both.stdout)["batched"] == ["x", "texts"]
    np.savez(tmp_path / "data.npz", x=FEATURES, texts=np.ones((4, 5), "f4"), val_x=FEATURES[:8])
    out = str(tmp_path / "trained")
    options = ["--distill-epochs", "1", "--tune-epochs", "0", "--out", out, "--quiet"]
    trained = command("train", *model, "--data", "data.npz", *options, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
