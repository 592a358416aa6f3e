"""Weights of new branches stored in 16 bits: what files hold, and that results stay."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import fxelastic
from fxelastic import BundleError, Supernet, UsageError, edge
from fxelastic.backends.onnxruntime.half_storage import rounded
from fxelastic.backends.onnxruntime.kernels import optimised_kernels
from fxelastic.spec.manifest import Manifest
from fxelastic.spec.storage import Storage

X = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))


@cache
def supernet() -> Supernet:
    torch.manual_seed(0)
    unit = [nn.Sequential(nn.Linear(32, 96), nn.ReLU(), nn.Linear(96, 32)) for _ in range(3)]
    made = fxelastic.expand(nn.Sequential(*unit), 0.4, example_inputs=X)
    with torch.no_grad():
        for branch in made.branches.values():
            for parameter in () if branch.frozen else branch.module.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
    return made


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, edge.Bundle]:
    folder = tmp_path_factory.mktemp("storage")
    return {
        name: fxelastic.export(supernet(), folder / name, storage=name) for name in ("fp32", "fp16")
    }


def stored(bundle: edge.Bundle) -> dict[str, int]:
    """The bytes of each branch's file."""
    return {name: bundle.model_path(name).stat().st_size for name in supernet().branches}


def test_new_branches_take_half_the_bytes_and_originals_as_many(
    bundles: dict[str, edge.Bundle],
) -> None:
    whole, half = stored(bundles["fp32"]), stored(bundles["fp16"])
    assert whole.keys() == half.keys()
    for name, size in whole.items():
        if name.startswith("original"):
            assert half[name] == size
        elif name.startswith(("merged", "pruned")):
            assert half[name] < 0.65 * size
    weights = [{s.id: s.weight_bytes for s in b.manifest.segments} for b in bundles.values()]
    assert weights[0] == weights[1]


def test_subnets_compute_with_the_rounded_weights(bundles: dict[str, edge.Bundle]) -> None:
    half = rounded(supernet())
    with edge.Executor(bundles["fp16"]) as executor:
        for arch in supernet().space.sample(5, seed=1):
            (found,) = executor.run(arch, {"input": X.numpy()})
            with torch.no_grad():
                expected, exact = half(X, arch=arch).numpy(), supernet()(X, arch=arch).numpy()
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(found, exact, rtol=0.02, atol=0.02)


def test_opened_files_run_the_same_kernels(bundles: dict[str, edge.Bundle]) -> None:
    for name in supernet().branches:
        kernels = [optimised_kernels(bundle.model_path(name)) for bundle in bundles.values()]
        assert kernels[0] == kernels[1]


def test_the_manifest_has_the_error_of_rounding(bundles: dict[str, edge.Bundle]) -> None:
    assert bundles["fp32"].manifest.storage is None
    record = bundles["fp16"].manifest.storage
    assert record is not None
    assert record.branch in supernet().branches
    assert 1e-9 < record.max_error < 1e-5
    text = (bundles["fp16"].path / "manifest.json").read_bytes()
    assert Manifest.from_json(text).storage == record
    wrong = json.loads(text)
    wrong["storage"]["max_error"] = -1
    with pytest.raises(BundleError, match=r"storage.max_error is out of range"):
        Manifest.from_json(json.dumps(wrong).encode())
    assert Storage("fp16", 0.5, "a@0").to_json() == dataclasses.asdict(Storage("fp16", 0.5, "a@0"))


def test_the_supernet_does_not_change(tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in supernet().state_dict().items()}
    rounded(supernet())
    after = supernet().state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_numbers_that_16_bits_lack_stay(bundles: dict[str, edge.Bundle], tmp_path: Path) -> None:
    other = rounded(supernet())
    name = next(k for k, b in other.branches.items() if b.kind == "pruned")
    weight = max(other.branches[name].module.parameters(), key=torch.numel)
    with torch.no_grad():
        weight[0, 0] = 1e6
    found = rounded(other).branches[name].module
    assert torch.equal(max(found.parameters(), key=torch.numel), weight)
    bundle = fxelastic.export(other, tmp_path / "large", storage="fp16", verify=False)
    tensors = onnx.load(bundle.model_path(name)).graph.initializer
    arrays = [numpy_helper.to_array(tensor) for tensor in tensors]
    assert [a.dtype for a in arrays if (a == np.float32(1e6)).any()] == [np.float32]
    assert any(a.dtype == np.float16 for a in arrays)


def test_another_storage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="storage must be one of 'fp32', 'fp16', got 'int4'"):
        fxelastic.export(supernet(), tmp_path / "bundle", storage="int4")
