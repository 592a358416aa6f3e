"""Operators that are replaced before a conversion compute the same, in torch and onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxelastic
from fxelastic import edge
from fxelastic.backends.onnxruntime.lowering import (
    _of_onnxruntime,
    _of_torch,
    attention,
    lowered,
    nearest,
)

SDPA = torch.ops.aten.scaled_dot_product_attention.default
SIZES = [(n, m) for n in range(1, 41) for m in range(1, 41)]


SHAPES = [(7, 4), (3, 7, 4), (2, 3, 7, 4), (2, 5, 3, 7, 4)]
MASKS = ["", "L S", "H L S", "N 1 L S", "B N H L S", "causal", "scale"]


def axes(shape: tuple[int, ...]) -> dict[str, int]:
    """The sizes by name: batches, heads, queries, keys, elements."""
    return dict(zip("ELHNB", reversed(shape), strict=False)) | {"S": shape[-2], "1": 1}


@pytest.mark.parametrize(
    ("shape", "mask"),
    [
        (shape, mask)
        for shape in SHAPES
        for mask in MASKS
        if mask in ("causal", "scale") or set(mask.split()) <= axes(shape).keys()
    ],
)
def test_attention_over_any_dimensions(shape: tuple[int, ...], mask: str) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, *shape, generator=generator)
    options = {"causal": {"is_causal": True}, "scale": {"scale": 0.3}}.get(mask)
    if options is None:
        drawn = torch.randn([axes(shape)[name] for name in mask.split()], generator=generator)
        options = {"attn_mask": drawn if mask else None}
    expected = SDPA(q, k, v, **options)
    assert torch.allclose(attention(q, k, v, **options), expected, atol=1e-6)


def test_attention_over_a_batch_that_is_broadcast() -> None:
    q, kv = torch.randn(2, 5, 3, 7, 4), torch.randn(1, 5, 3, 7, 4)
    expected = SDPA(q, kv.expand(2, -1, -1, -1, -1), kv.expand(2, -1, -1, -1, -1))
    assert torch.allclose(attention(q, kv, kv), expected, atol=1e-6)


def test_what_torch_takes() -> None:
    for n, m in SIZES:
        x = torch.arange(n, dtype=torch.float32).reshape(1, 1, n)
        taken = torch.ops.aten.upsample_nearest1d.vec(x, [m], None).flatten().int().tolist()
        assert _of_torch(n, m) == taken, (n, m)


def test_what_onnxruntime_takes() -> None:
    """Of all sizes those where the two differ, and some where they do not."""
    differ = [sizes for sizes in SIZES if _of_torch(*sizes) != _of_onnxruntime(*sizes)]
    assert (14, 8) in differ
    for n, m in differ + SIZES[::40]:
        assert _of_onnxruntime(n, m) == resized(n, m), (n, m)


def resized(n: int, m: int) -> list[int]:
    """The elements that a node as the exporter writes it takes."""
    node = helper.make_node(
        *("Resize", ["x", "", "", "sizes"], ["y"]),
        **{"mode": "nearest", "nearest_mode": "floor"},
        coordinate_transformation_mode="asymmetric",
    )
    graph = helper.make_graph(
        *([node], "graph"),
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, n])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array([1, 1, m]), "sizes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.arange(n, dtype=np.float32).reshape(1, 1, n)
    (y,) = session.run(None, {"x": x})
    return [int(i) for i in y.flatten()]


@pytest.mark.parametrize("sizes", [(8,), (8, 28), (14, 8, 2), (14, 14)])
def test_nearest_neighbours(sizes: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *[14] * len(sizes))
    assert torch.equal(nearest(x, sizes, None), F.interpolate(x, sizes))
    assert torch.equal(nearest(x, None, [2.0] * len(sizes)), F.interpolate(x, scale_factor=2.0))


def test_a_module_without_such_operators_is_left_as_it_is() -> None:
    module = fx.symbolic_trace(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    assert lowered(module) is module
    assert lowered(nn.ReLU().eval()).__class__ is nn.ReLU


class Windows(nn.Module):
    """Attention within windows, of five dimensions; sizes that are rounded in between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.qkv = nn.ModuleList(nn.Linear(8, 24) for _ in range(2))
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for qkv in self.qkv:
            n, width, side, _ = x.shape
            windows = x.reshape(n, width, 2, side // 2, 2, side // 2).permute(0, 2, 4, 3, 5, 1)
            parts = qkv(windows.reshape(n, 4, -1, width)).reshape(n, 4, -1, 3, 2, width // 2)
            q, k, v = parts.permute(3, 0, 1, 4, 2, 5)
            y = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(windows.shape)
            x = x + y.permute(0, 5, 1, 3, 2, 4).reshape(x.shape)
            x = F.interpolate(x, size=(8, 8) if side == 14 else (14, 14))
        return self.head(x).relu()


def test_windows_and_rounded_sizes_are_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Windows().eval(), torch.randn(2, 3, 14, 14)
    supernet = fxelastic.expand(model, 0.4, example_inputs=x)
    # Verifies each file against torch.
    fxelastic.export(supernet, tmp_path / "bundle")
    bundle = edge.load(tmp_path / "bundle")
    edge.assemble(bundle, bundle.space.original, tmp_path / "model.onnx")
    onnx.checker.check_model(tmp_path / "model.onnx")
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    other = torch.randn(3, 3, 14, 14)
    (found,) = session.run(None, {bundle.inputs[0].name: other.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, model(other).numpy(), rtol=1e-4, atol=1e-5)


class Pairs(nn.Module):
    """Two inputs as one batch, which is parted again."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1))
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        first, second = self.encoder(torch.cat([a, b])).chunk(2)
        return self.head(first * second)


def test_a_batch_that_is_parted_is_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, pair = Pairs().eval(), (torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8))
    supernet = fxelastic.expand(model, 0.5, example_inputs=pair)
    fxelastic.export(supernet, tmp_path / "bundle")
    bundle = edge.load(tmp_path / "bundle")
    edge.assemble(bundle, bundle.space.original, tmp_path / "model.onnx")
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    a, b = torch.randn(3, 3, 8, 8), torch.randn(3, 3, 8, 8)
    names = [value.name for value in bundle.inputs]
    (found,) = session.run(None, dict(zip(names, (a.numpy(), b.numpy()), strict=True)))
    with torch.no_grad():
        np.testing.assert_allclose(found, model(a, b).numpy(), rtol=1e-4, atol=1e-5)


class Masked(nn.Module):
    """Makes a mask of integers by taking them from a fraction, as attention masks often are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        return self.last(hidden * (1.0 - mask)[:, None] - torch.rsub(mask, 0.5, alpha=2)[:, None])


def test_integers_are_taken_from_a_fraction(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, mask = Masked().eval(), torch.tensor([0, 1, 1])
    supernet = fxelastic.expand(model, 0.6, example_inputs=(torch.randn(3, 4), mask))
    # Verifies each file against torch.
    fxelastic.export(supernet, tmp_path / "bundle")
