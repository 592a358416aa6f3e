"""Exports whose sizes vary: files, assembled subnets and checks on the device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxelastic import Supernet, edge, expand, export
from fxelastic.cli.inspect import sections
from fxelastic.edge.executor import Executor
from fxelastic.edge.signature import BundleSignature
from fxelastic.edge.synthetic_inputs import random_inputs
from fxelastic.errors import BundleError, ExportError, UsageError
from fxelastic.spec.manifest import Manifest
from tests.backends.test_schema import SCHEMA, problems
from tests.edge.bundles import manifest
from tests.sized_models import Encoder, Pyramid


class Windows(nn.Module):
    """Pads a sequence to whole windows of four, as local attention does; in two usual ways."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 16)
        self.last = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        y = F.pad(self.first(x), (0, 0, 0, (-n) % 4)).view(x.shape[0], -1, 4, 16)
        y = torch.relu(self.second(y)) + y.mean(2, keepdim=True)
        y = y.reshape(x.shape[0], -1, 16)[:, :n]
        padded = F.pad(y, (0, 0, 0, -(-n // 4) * 4 - n)).reshape(x.shape[0], -1, 4, 16)
        return self.last(torch.relu(padded.mean(2)))


MODELS: dict[str, tuple[type[nn.Module], dict[str, Any], dict[str, Any], list[dict[str, int]]]] = {
    "text": (
        Encoder,
        {"ids": torch.arange(32).reshape(2, 16), "mask": torch.ones(2, 16)},
        {"ids": {0: "batch", 1: "seq"}, "mask": {1: "seq"}},
        [{"seq": 1}, {"seq": 2}, {"seq": 37}, {"seq": 64}],
    ),
    "image": (
        Pyramid,
        {"x": torch.randn(2, 3, 32, 32)},
        {"x": {2: "H", 3: "W"}},
        [{"H": 4, "W": 4}, {"H": 40, "W": 8}, {"H": 64, "W": 100}],
    ),
}
Exported = tuple[str, Supernet, edge.Bundle]


@pytest.fixture(scope="module", params=MODELS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    model, inputs, shapes, _ = MODELS[request.param]
    torch.manual_seed(0)
    supernet = expand(model().eval(), 0.3, example_inputs=inputs, dynamic_shapes=shapes)
    return request.param, supernet, export(supernet, tmp_path_factory.mktemp("sizes") / "bundle")


def tensors(inputs: dict[str, np.ndarray[Any, Any]]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in inputs.items()}


def test_subnets_compute_what_torch_does_at_every_size(exported: Exported, tmp_path: Path) -> None:
    name, supernet, bundle = exported
    archs = [bundle.space.original, *bundle.space.sample(4, 0)]
    sessions = {
        arch: onnxruntime.InferenceSession(edge.assemble(bundle, arch, tmp_path / f"{i}.onnx"))
        for i, arch in enumerate(archs)
    }
    with Executor(bundle) as executor:
        for sizes in MODELS[name][3]:
            inputs = random_inputs(bundle, 3, sizes=sizes)
            for arch in archs:
                with torch.no_grad():
                    expected = supernet(**tensors(inputs), arch=arch).numpy()
                for found in (executor.run(arch, inputs)[0], sessions[arch].run(None, inputs)[0]):
                    assert found.shape == expected.shape
                    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_sizes_are_rounded_as_python_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    example = {"x": torch.randn(2, 6, 8)}
    model = Windows().eval()
    supernet = expand(model, 0.3, example_inputs=example, dynamic_shapes={"x": {1: "n"}})
    bundle = export(supernet, tmp_path / "bundle")
    path = edge.assemble(bundle, bundle.space.original, tmp_path / "original.onnx")
    session = onnxruntime.InferenceSession(path)
    for n in (1, 3, 4, 5, 9):
        x = torch.randn(3, n, 8)
        with torch.no_grad():
            expected = model(x).numpy()
        found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_branch_that_fails_at_a_size_of_the_model_is_named(tmp_path: Path) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 16)
            self.last = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            y = self.second(y.topk(max(1, y.shape[1] // 2), 1).values)
            return self.last(torch.relu(y))

    supernet = expand(
        Half().eval(),
        0.3,
        example_inputs=torch.randn(2, 6, 8),
        dynamic_shapes={"x": {1: "n"}},
        kinds=("merged",),
    )
    with pytest.raises(ExportError, match=r"merged@.* can't be computed at sizes that the model"):
        export(supernet, tmp_path / "bundle")


def test_axes_have_the_users_names(exported: Exported, tmp_path: Path) -> None:
    name, _, bundle = exported
    model = onnx.load(edge.assemble(bundle, bundle.space.original, tmp_path / "x.onnx"))
    axes = [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert axes == {"text": ["batch", "seq"], "image": ["N", 3, "H", "W"]}[name]


def test_the_manifest_keeps_the_sizes(exported: Exported) -> None:
    name, _, bundle = exported
    written = (bundle.path / "manifest.json").read_bytes()
    assert problems(json.loads(written), SCHEMA) == []
    found = Manifest.from_json(written).model
    assert [str(symbol) for symbol in found.symbols.values()] == {
        "text": ["batch[1..]", "seq[1..64]"],
        "image": ["N[1..]", "H[4.. by 4]", "W[4.. by 4]"],
    }[name]
    record = bundle.manifest.verification
    assert record is not None
    assert [dict(sizes) for sizes in record.sizes] == {
        "text": [{"seq": 1}, {"seq": 64}],
        "image": [{"H": 4, "W": 4}, {"H": 128, "W": 128}],
    }[name]


@pytest.mark.parametrize(
    ("model", "shapes", "said"),
    [
        ("text", ((2, 65), (2, 65)), "seq = 65 is outside"),
        ("text", ((2, 8), (2, 9)), "different sizes for seq"),
        ("text", ((2, 8), (3, 8)), "for batch"),
        ("image", ((2, 3, 33, 32),), "H = 33 is outside"),
        ("image", ((2, 4, 32, 32),), "not what the model takes"),
    ],
)
def test_the_device_refuses_other_sizes_with_the_rule(
    exported: Exported, model: str, shapes: tuple[tuple[int, ...], ...], said: str
) -> None:
    name, _, bundle = exported
    if name != model:
        return
    dtypes = [info.dtype for info in bundle.inputs]
    arrays = [np.ones(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    with pytest.raises(UsageError, match=said):
        BundleSignature(bundle).bind(arrays, {})


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("sizes", [{"name": "N", "example": 1, "min": 1, "max": None, "step": 1}], "name twice"),
        ("sizes", [{"name": "s", "example": 9, "min": 1, "max": 8, "step": 1}], "out of range"),
        ("sizes", [{"name": "s", "example": 9, "min": 1, "max": None, "step": 0}], "out of range"),
        ("sizes", [{"name": "s t", "example": 9, "min": 1, "max": None, "step": 1}], "a name"),
        ("sizes", [{"name": "s", "example": 9, "min": 1, "max": None}], "missing"),
        ("batch", "", "a name"),
    ],
)
def test_damaged_sizes_are_refused(field: str, value: object, said: str) -> None:
    written = json.loads(manifest().to_json())
    written["model"][field] = value
    with pytest.raises(BundleError, match=said):
        Manifest.from_json(json.dumps(written).encode())


def test_a_size_out_of_range_is_not_made_up(exported: Exported) -> None:
    _, _, bundle = exported
    with pytest.raises(UsageError, match="no size 'depth' that may vary"):
        random_inputs(bundle, 1, sizes={"depth": 3})
    symbol = bundle.manifest.model.sizes[0]
    with pytest.raises(UsageError, match="out of range"):
        random_inputs(bundle, 1, sizes={symbol.name: symbol.min - 1})


def test_flops_of_branches_are_expressions_of_the_sizes(exported: Exported) -> None:
    name, supernet, bundle = exported
    assert bundle.space == supernet.space
    last = bundle.space.by_id[f"original@{bundle.space.n_blocks - 1}"]
    assert last.flops_by_size == {"text": "512*seq", "image": "288*H*W"}[name]
    double = {s.name: 2 * s.example for s in bundle.manifest.model.sizes}
    assert last.flops_at(double) == {"text": 2, "image": 4}[name] * last.flops
    assert last.flops_by_size in "\n".join(sections(bundle))


@pytest.mark.parametrize("text", ["512*n", "513*seq", "seq.x", "512*", "9**64**64", 7])
def test_other_flops_than_those_of_the_example_are_refused(text: object) -> None:
    written = json.loads(manifest().to_json())
    seq = {"name": "seq", "example": 16, "min": 1, "max": None, "step": 1}
    written["model"]["sizes"] = [seq]
    written["branches"][0] |= {"flops": 8192, "flops_by_size": "512*seq"}
    assert Manifest.from_json(json.dumps(written).encode()).segments[0].spec.flops == 8192
    written["branches"][0]["flops_by_size"] = text
    with pytest.raises(BundleError, match="flops_by_size"):
        Manifest.from_json(json.dumps(written).encode())


class Shrinking(nn.Module):
    """Images that pooling makes a quarter as high and wide, with convolutions after it."""

    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        units = [
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), norm(8), nn.ReLU(), nn.AvgPool2d(2))
            for _ in range(2)
        ]
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *units)
        self.rest = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.rest(self.body(images)).mean((2, 3)))


@pytest.mark.parametrize(
    ("norm", "size"), [(nn.BatchNorm2d, 4), (nn.BatchNorm2d, 6), (nn.InstanceNorm2d, 8)]
)
def test_a_single_row_inside_of_the_model_fixes_no_size(
    norm: type[nn.Module], size: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    supernet = expand(
        Shrinking(norm).eval(),
        0.3,
        example_inputs=torch.randn(2, 3, size, size),
        dynamic_shapes={"images": {0: "batch", 2: "H", 3: "W"}},
        kinds=["pruned", "skip"],
    )
    text = str(supernet.partition)
    assert "[batch, 8, (H//4), (W//4)]" in text
    assert "1, 1]" not in text
    bundle = export(supernet, tmp_path / "bundle", n_subnets=1)
    path = edge.assemble(bundle, bundle.space.original, tmp_path / "x.onnx")
    session = onnxruntime.InferenceSession(path)
    for height, width in ((4, 8), (8, 8), (30, 12)):
        images = torch.randn(3, 3, height, width)
        with torch.no_grad():
            expected = supernet(images).numpy()
        found = session.run(None, {"images": images.numpy()})[0]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


class Pooled(nn.Module):
    """A convolution, and windows of which the number is fixed and the size is not."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.pool = pool

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.pool(self.second(torch.relu(self.first(images)))).flatten(1)


POOLS = [nn.AdaptiveAvgPool2d(2), nn.AdaptiveAvgPool2d((7, 1)), nn.AdaptiveMaxPool2d((2, 3))]


@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_pooling_to_a_fixed_size_takes_any_size(pool: nn.Module, tmp_path: Path) -> None:
    torch.manual_seed(0)
    supernet = expand(
        Pooled(pool).eval(),
        0.6,
        example_inputs=torch.randn(2, 3, 10, 12),
        dynamic_shapes={"images": {0: "batch", 2: "H", 3: "W"}},
        kinds=["pruned"],
    )
    bundle = export(supernet, tmp_path / "bundle", n_subnets=1)
    session = onnxruntime.InferenceSession(
        edge.assemble(bundle, bundle.space.original, tmp_path / "x.onnx")
    )
    for height, width in ((1, 1), (5, 7), (10, 12), (33, 20)):
        images = torch.randn(3, 3, height, width)
        with torch.no_grad():
            expected = supernet(images).numpy()
        found = session.run(None, {"images": images.numpy()})[0]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
