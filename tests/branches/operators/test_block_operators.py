"""Operators that replace whole blocks, and all kinds together: any subnet, saved and exported."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic import Supernet, edge, kinds
from fxelastic.branches import all_kinds
from fxelastic.branches.operators import moments
from fxelastic.ir.branch import Branch
from fxelastic.spec import Arch

OPERATORS = [kind for kind in all_kinds() if kind not in ("merged", "pruned", "skip")]
X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    def __init__(self, n: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(n, out, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(out)
        self.second = nn.Conv2d(out, out, 3, padding=1)
        self.short = nn.Conv2d(n, out, 1, stride) if n != out or stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return (self.short(x) + self.second(self.norm(self.first(x)).relu())).relu()


class Tokens(nn.Module):
    """Pixels as tokens, through a residual pair of linear maps."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(n), nn.Linear(n, 4 * n), nn.Linear(4 * n, n)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU())
        self.stage = nn.Sequential(Residual(16, 16), Residual(16, 32, 2))
        self.tokens = Tokens(32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.stage(self.stem(x))
        return self.head(self.tokens(features.flatten(2).mT).mean(1))


@cache
def supernet() -> Supernet:
    torch.manual_seed(0)
    data = torch.randn(8, 3, 16, 16)
    return fxelastic.expand(Net(), 0.5, example_inputs=X, kinds="all", calibration=data)


def with_branch(branch: Branch) -> Arch:
    """The original with one branch in it."""
    path = [b.id for b in supernet().path() if not branch.start <= b.start < branch.stop]
    ids = sorted((*path, branch.id), key=lambda name: supernet().branches[name].start)
    return Arch(tuple(ids))


def test_all_kinds_find_a_place_and_free_what_they_measured() -> None:
    found = {branch.kind for branch in supernet().branches.values()}
    assert found == {"original", *all_kinds()}
    assert supernet().partition not in moments._KNOWN


@pytest.mark.parametrize("kind", OPERATORS)
def test_the_branches_of_an_operator_are_cheaper_and_run(kind: str) -> None:
    for branch in (b for b in supernet().branches.values() if b.kind == kind):
        replaced = [b for b in supernet().path() if branch.start <= b.start < branch.stop]
        assert branch.flops < sum(b.flops for b in replaced)
        with torch.no_grad():
            result = supernet()(X, arch=with_branch(branch))
        assert result.shape == (2, 5)
        assert result.isfinite().all()


def test_the_same_seed_gives_the_same_weights() -> None:
    again = supernet.__wrapped__()
    expected = supernet().state_dict()
    assert again.space == supernet().space
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())


def test_all_kinds_are_saved_loaded_and_exported(tmp_path: Path) -> None:
    supernet().save(tmp_path / "weights.safetensors")
    other = supernet.__wrapped__().load(tmp_path / "weights.safetensors")
    bundle = fxelastic.export(other, tmp_path / "bundle")
    for arch in supernet().space.sample(4, seed=1):
        with edge.Executor(bundle) as executor:
            (found,) = executor.run(arch, {"x": X.numpy()})
        with torch.no_grad():
            expected = supernet()(X, arch=arch).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_a_dense_block_begins_as_an_identity() -> None:
    torch.manual_seed(0)
    made = fxelastic.expand(
        nn.Sequential(nn.Conv2d(16, 16, 3, padding=1)),
        1.0,
        example_inputs=torch.randn(2, 16, 8, 8),
        kinds=(kinds.Dense(ratios=(0.1,)),),
    )
    (branch,) = [b for b in made.branches.values() if b.kind == "dense"]
    x = torch.randn(3, 16, 8, 8)
    torch.testing.assert_close(branch.module(x), x)


@pytest.mark.parametrize("size", [8, 9])
def test_a_block_of_low_resolution_gives_its_own_size(size: int) -> None:
    made = fxelastic.expand(
        nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()),
        1.0,
        example_inputs=torch.randn(2, 16, size, size),
        kinds=("lowres",),
    )
    (branch,) = [b for b in made.branches.values() if b.kind == "lowres"]
    found = branch.module(torch.randn(3, 16, size, size))
    assert found.shape == (3, 16, size, size)
    if size % 2 == 0:
        assert torch.equal(found[..., ::2], found[..., 1::2])


class Places(nn.Module):
    """The places of a picture in a row, as detectors have them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 1)
        self.last = nn.Conv1d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).flatten(2))


def test_a_block_whose_size_is_a_product_is_not_halved_if_it_may_be_odd() -> None:
    made = fxelastic.expand(
        Places().eval(),
        0.9,
        example_inputs=torch.randn(2, 3, 8, 8),
        dynamic_shapes={"x": {2: "H", 3: "W"}},
        kinds=("lowres", "merged"),
    )
    assert not [b for b in made.branches.values() if b.kind == "lowres"]
    refused = [r.reason for r in made.skips if r.kind == "lowres"]
    assert any("would not fit" in reason for reason in refused), refused
