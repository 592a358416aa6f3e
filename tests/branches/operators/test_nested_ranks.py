"""Branches of several ranks are prefixes of the same weights: trained, saved and exported once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic import Supernet, edge, kinds
from fxelastic.ir.branch import Branch

X = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))


class Unit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 128)
        self.back = nn.Linear(128, 64)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(self.layer(x).relu())


def expanded(*ranks: float) -> Supernet:
    torch.manual_seed(0)
    model = nn.Sequential(Unit(), Unit(), nn.Linear(64, 8))
    return fxelastic.expand(model, 0.5, example_inputs=X, kinds=(kinds.LowRank(ranks=ranks),))


def branches(supernet: Supernet, start: int) -> list[Branch]:
    found = [b for b in supernet.branches.values() if b.kind == "lowrank" and b.start == start]
    return sorted(found, key=lambda b: -b.n_params)


def by_hand(branch: Branch, rank: int) -> Tensor:
    """A unit whose layers have the first ``rank`` directions of the branch's weights."""
    weights = dict(branch.module.named_parameters())

    def layer(x: Tensor, name: str) -> Tensor:
        own = [value for key, value in weights.items() if f".{name}." in f".{key}"]
        right, left = (v for v in own if v.dim() == 2)
        (bias,) = (v for v in own if v.dim() == 1)
        return nn.functional.linear(x @ right[:rank].mT, left[:rank].mT.contiguous(), bias)

    return X + layer(layer(X, "layer").relu(), "back")


def test_lower_ranks_are_prefixes_before_and_after_training() -> None:
    supernet = expanded(0.25, 0.5)
    half, quarter = branches(supernet, 0)
    shared = {p for p in half.module.parameters() if p.dim() == 2}
    assert shared == {p for p in quarter.module.parameters() if p.dim() == 2}
    assert len(shared) == 4
    before = {id(p): p.detach().clone() for p in shared}
    for trained in (False, True):
        if trained:
            fxelastic.distill(supernet, [X, X + 1], steps=4, lr=1e-2, threads=1)
            assert any(not torch.equal(before[id(p)], p) for p in shared)
        with torch.no_grad():
            for branch, rank in ((half, 32), (quarter, 16)):
                torch.testing.assert_close(branch.module(X), by_hand(branch, rank))


def test_ranks_add_up_to_the_largest() -> None:
    several, alone = expanded(0.5, 0.25, 0.125), expanded(0.5)
    biases = 2 * 2 * (128 + 64) + 2 * 2 * 8
    assert several.n_params - alone.n_params <= biases
    assert [b.n_params for b in branches(several, 0)] == [
        2 * rank * (64 + 128) + 64 + 128 for rank in (32, 16, 8)
    ]


def test_files_hold_the_weights_once(tmp_path: Path) -> None:
    several, alone = expanded(0.5, 0.25, 0.125), expanded(0.5)
    sizes = {}
    for name, supernet in (("several", several), ("alone", alone)):
        supernet.save(tmp_path / f"{name}.safetensors")
        fxelastic.export(supernet, tmp_path / name)
        weights = (tmp_path / f"{name}.safetensors").stat().st_size
        data = sum(f.stat().st_size for f in (tmp_path / name / "data").glob("*"))
        sizes[name] = weights, data
    assert sizes["several"][0] <= 1.25 * sizes["alone"][0]
    assert sizes["several"][1] == pytest.approx(sizes["alone"][1], rel=0.05)
    other = expanded(0.5, 0.25, 0.125).load(tmp_path / "several.safetensors")
    bundle = edge.load(tmp_path / "several")
    with edge.Executor(bundle) as executor:
        for arch in other.space.sample(6, seed=2):
            (found,) = executor.run(arch, {"input": X.numpy()})
            with torch.no_grad():
                expected = other(X, arch=arch).numpy()
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
