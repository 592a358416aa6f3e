"""Bundles of models that do not take every batch size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic import edge
from fxelastic.errors import UsageError


class Clips(nn.Module):
    """Takes frames by fours, and gives the mean of each four."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Frames (4n, 6) to clips (n, 3)."""
        return self.layers(x).reshape(-1, 4, 3).mean(1)


class Fixed(nn.Module):
    """Takes four samples, no more and no fewer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
        self.register_buffer("offsets", torch.arange(4.0)[:, None])

    def forward(self, x: Tensor) -> Tensor:
        """Samples (4, 6) to (4, 3)."""
        return self.layers(x + self.offsets)


def exported(model: nn.Module, n_samples: int, path: Path) -> edge.Bundle:
    x = torch.randn(n_samples, 6)
    supernet = fxelastic.expand(model.eval(), 0.6, example_inputs=x, kinds=("skip",))
    return fxelastic.export(supernet, path, n_subnets=1)


def test_a_model_that_groups_its_batch_is_compared_at_sizes_that_it_takes(tmp_path: Path) -> None:
    bundle = exported(Clips(), 8, tmp_path / "bundle")
    assert bundle.manifest.model.dynamic_batch
    assert bundle.manifest.verification is not None
    assert bundle.manifest.verification.batch_sizes == (8, 16)


def test_a_fixed_batch_size_is_kept_to_everywhere(tmp_path: Path) -> None:
    bundle = exported(Fixed(), 4, tmp_path / "bundle")
    model, verification = bundle.manifest.model, bundle.manifest.verification
    assert (model.dynamic_batch, model.batch_size) == (False, 4)
    assert verification is not None
    assert verification.batch_sizes == (4,)
    table = edge.profile(bundle, n_samples=3, n_subnets=0, n_held_out=0)
    assert table.batch_size == 4
    inputs = {bundle.inputs[0].name: np.ones((4, 6), np.float32)}
    again = edge.profile(bundle, 4, inputs=inputs, n_samples=3, n_subnets=0, n_held_out=0)
    assert again.batch_size == 4
    with pytest.raises(UsageError, match="fixed batch size"):
        edge.profile(bundle, 8)
    x = np.random.default_rng(0).normal(size=(12, 6)).astype(np.float32)
    data = x, np.zeros(12, np.int64)
    found = edge.search(bundle, table, data, budget_ms=1e3, max_subnets=3)
    assert found.pool.entries


class Timed(nn.Module):
    """Takes a number besides a batch, and gives it back."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Linear(4, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        waves = (step[None].expand(x.shape[0])[:, None] * torch.arange(4.0)).sin()
        for layer in self.layers:
            x = x + torch.tanh(layer(x) + self.time(waves))
        return x, step * 2


def test_a_number_stays_a_number_on_the_device(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, step = Timed().eval(), torch.tensor(7.0)
    supernet = fxelastic.expand(model, 0.3, example_inputs=(torch.randn(2, 8), step))
    bundle = fxelastic.export(supernet, tmp_path / "bundle")
    x = torch.randn(3, 8)
    with edge.Executor(bundle) as executor, torch.no_grad():
        found = executor.run(bundle.space.original, {"x": x.numpy(), "step": step.numpy()})
        for array, tensor in zip(found, model(x, step), strict=True):
            assert array.shape == tensor.shape
            np.testing.assert_allclose(array, tensor.numpy(), rtol=1e-4, atol=1e-5)
