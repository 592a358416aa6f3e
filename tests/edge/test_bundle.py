"""What a bundle says about a model, and how a device reads it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from fxelastic import edge
from fxelastic.errors import BundleError, UsageError
from fxelastic.spec.manifest import Manifest
from tests.edge.bundles import VALUES, contents, manifest, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "bundle")


def test_a_manifest_survives_its_json() -> None:
    data = manifest().to_json()
    again = Manifest.from_json(data)
    assert again == manifest()
    assert again.to_json() == data


def test_a_bundle_gives_its_space_values_and_segments(folder: Path) -> None:
    bundle = edge.load(folder)
    assert bundle.path == folder
    assert bundle.digest == hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert bundle.space.count() == 3
    assert [info.name for info in bundle.inputs] == ["x", "unused"]
    assert [info.name for info in bundle.outputs] == ["y", "h2", "ids"]
    assert list(bundle.values) == [info.name for info in VALUES]
    assert bundle.last_read == {"x": 1, "mask": 3, "h1": 2, "h2": 4, "y": 4, "ids": 4}
    merged = bundle.segment("merged@1-3")
    assert (merged.inputs, merged.outputs) == (("x", "mask"), ("h2",))
    assert merged.size_bytes == len(bundle.read("merged@1-3"))
    assert str(bundle) == "Bundle(Net: 4 blocks, 6 branches, 3 subnets)"


def test_a_value_knows_its_shape_for_a_batch_size() -> None:
    h2 = VALUES[4]
    assert h2.shape == (None, 8)
    assert h2.shape_at({"N": 3}) == (192, 8)
    assert str(h2) == "h2: float32[64*N, 8]"


def test_a_size_that_depends_on_data_is_not_guessed() -> None:
    with pytest.raises(UsageError, match="does not follow from the model's sizes"):
        type(VALUES[0])("v", "float32", ("2*N1",)).shape_at({"N": 2})


def test_read_gives_the_verified_bytes(folder: Path) -> None:
    bundle = edge.load(folder)
    for segment in bundle.manifest.segments:
        assert bundle.read(segment.id) == contents()[segment.file]
        assert bundle.model_path(segment.id).read_bytes() == contents()[segment.file]


def test_the_result_has_the_models_structure(folder: Path) -> None:
    bundle = edge.load(folder)
    y, h2 = np.ones((2, 2), np.float32), np.zeros((128, 8), np.float32)
    result = bundle.result({"y": y, "h2": h2})
    assert result["logits"] is y
    assert result["hidden"] == (h2, None)
    ids, text = result["ids"]
    assert ids.tolist() == [0, 0]
    assert text == "Kind.A"


def test_an_unknown_branch_is_a_usage_error(folder: Path) -> None:
    with pytest.raises(UsageError, match="no branch 'merged@7'"):
        edge.load(folder).read("merged@7")


def test_no_folder_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        edge.load(tmp_path / "nothing")


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"^manifest\.json can't be read"):
        edge.load(tmp_path)
