"""What optimisers would change is kept: zeros before a pooling, shapes, small terms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxelastic
from fxelastic import edge

Pool = Callable[[Tensor], Tensor]

POOLS: dict[str, tuple[int, Pool]] = {
    "maximum": (2, lambda x: F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2)),
    "maximum of one dimension": (1, lambda x: F.max_pool1d(F.pad(x, (0, 2)), 3)),
    "maximum of three": (3, lambda x: F.max_pool3d(F.pad(x, (1, 0, 1, 0, 1, 0)), 2)),
    "maximum of a cast": (2, lambda x: F.max_pool2d(F.pad(x.half(), (1, 1)).float(), 2)),
    "mean of what is there": (
        2,
        lambda x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2, count_include_pad=False),
    ),
    "mean": (2, lambda x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2)),
    "mean of fewer than the padding": (
        2,
        lambda x: F.avg_pool2d(F.pad(x[:, :, :-1, :-1], (1, 0, 1, 0)), 1, 2),
    ),
    "both": (
        2,
        lambda x: F.max_pool2d(p := F.pad(x, (1, 1, 1, 1)), 3) + F.avg_pool2d(p, 3),
    ),
}


class Pooled(nn.Module):
    """Pools numbers below zero, with zeros around them."""

    def __init__(self, n_dims: int, pool: Pool) -> None:
        super().__init__()
        self.first = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[n_dims - 1](3, 4, 1)
        self.last = nn.Linear(4, 5)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.pool(self.first(x).abs().neg() - 1).flatten(2).mean(2))


@pytest.mark.parametrize("name", POOLS)
def test_zeros_before_a_pooling_count(tmp_path: Path, name: str) -> None:
    """The export itself compares every file with torch."""
    n_dims, pool = POOLS[name]
    torch.manual_seed(0)
    model = Pooled(n_dims, pool).eval()
    x = torch.randn(2, 3, *[9] * n_dims)
    supernet = fxelastic.expand(model, 1.0, example_inputs=(x,))
    bundle = fxelastic.export(supernet, tmp_path / "bundle")
    with edge.Executor(bundle) as executor, torch.no_grad():
        (found,) = executor.run(bundle.space.original, {bundle.inputs[0].name: x.numpy()})
        np.testing.assert_allclose(found, model(x).numpy(), atol=1e-4)


def test_a_convolution_still_takes_its_padding(tmp_path: Path) -> None:
    model = nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    supernet = fxelastic.expand(model, 1.0, example_inputs=(torch.randn(2, 3, 8, 8),))
    bundle = fxelastic.export(supernet, tmp_path / "bundle")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(
        str(bundle.model_path(bundle.space.original.branches[0])),
        options,
        providers=["CPUExecutionProvider"],
    )
    nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
    assert "Pad" not in [node.op_type for node in nodes]


SMALL: dict[str, Callable[[Tensor], Tensor]] = {
    "norm": lambda x: x / (x.norm(dim=1, keepdim=True) + 1e-9),
    "logarithm": lambda x: (x.abs() + 1e-12).log(),
    "root mean square": lambda x: x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt(),
    "on the left": lambda x: x / (1e-10 + x.abs().sum(1, keepdim=True)),
}


class AfterLinear(nn.Module):
    """Applies a function to what a linear map gives."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 8, bias=False)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x))


@pytest.mark.parametrize("name", SMALL)
def test_small_terms_are_not_taken_for_zero(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model = AfterLinear(SMALL[name]).eval()
    supernet = fxelastic.expand(model, 1.0, example_inputs=torch.randn(2, 4), kinds=())
    bundle = fxelastic.export(supernet, tmp_path / "bundle")
    x = torch.stack([torch.zeros(4), 1e-4 * torch.ones(4), torch.ones(4)])
    with edge.Executor(bundle) as executor, torch.no_grad():
        (found,) = executor.run(bundle.space.original, {"x": x.numpy()})
        wanted = model(x).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    for path in (tmp_path / "bundle" / "branches").glob("*.onnx"):
        assert "Sum" not in {node.op_type for node in onnx.load(path).graph.node}
