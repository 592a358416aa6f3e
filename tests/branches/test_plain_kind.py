"""Branches whose modules are no graphs go through everything that graphs go through."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxelastic
from fxelastic import Supernet, edge
from fxelastic.branches import registry
from fxelastic.branches.trainable import trainable
from fxelastic.ir.branch import Branch
from fxelastic.spec import Arch, BranchSpec

X = torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(1))


class Unit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.a(x).relu())


class Attention(nn.Module):
    """Attention over three dimensions, which the exporter can't convert as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1))


class Nearest(nn.Module):
    """Nearest neighbours of 14 elements, which onnxruntime rounds otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 14)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.layer(x), size=16, mode="nearest")


class Tied(nn.Module):
    """One weight in two places, a buffer that is not saved, and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(16, 16))
        self.layer = nn.Linear(16, 16)
        self.layer.weight = self.weight
        self.register_buffer("scale", torch.full((16,), 2.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x) @ self.weight * self.scale
        return y if y.dim() == 3 else y.unsqueeze(1)


class Wrapped(nn.Module):
    """A graph in a module of Python code, beside a recurrent layer and a parametrisation."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.graph, self.recurrent = graph, nn.GRU(16, 16, batch_first=True)
        self.parts = nn.ModuleDict({"drop": nn.Dropout(0.1)})
        self.parts["normed"] = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts.values():
            x = part(x)
        return self.graph(x) + self.recurrent(x)[0]


MODULES: dict[str, Callable[[], nn.Module]] = {
    "three-dimensional attention": Attention,
    "nearest neighbours": Nearest,
    "tied weights": Tied,
    "a graph inside": lambda: Wrapped(trainable(originals().partition, 0, 1).module),
    "a sequence": lambda: nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.ReLU()),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Unit(), Unit(), nn.Linear(16, 4)).eval()


@cache
def originals() -> Supernet:
    return fxelastic.expand(network(), 0.5, example_inputs=X, kinds=())


def with_branch(name: str) -> tuple[Supernet, Arch]:
    """A supernet with one new branch, and a subnet that has it."""
    torch.manual_seed(2)
    module, first = MODULES[name](), originals().branches["original@0"]
    spec = BranchSpec("plain@0", "plain", 0, 1, sum(p.numel() for p in module.parameters()), 1)
    branch = Branch(spec, module, first.inputs, first.outputs)
    supernet = Supernet(originals().partition, [*originals().branches.values(), branch])
    return supernet, next(a for a in supernet.space.sample(20, seed=0) if "plain@0" in str(a))


@pytest.mark.parametrize("name", MODULES)
def test_branches_without_graphs_are_trained_saved_and_exported(name: str, tmp_path: Path) -> None:
    supernet, arch = with_branch(name)
    before = {k: v.clone() for k, v in supernet.branches["plain@0"].module.state_dict().items()}
    fxelastic.distill(supernet, [X], steps=2)
    fxelastic.recalibrate(supernet, arch, [X])
    state = supernet.branches["plain@0"].module.state_dict()
    assert any(not torch.equal(value, before[key]) for key, value in state.items())
    supernet.save(tmp_path / "weights.safetensors")
    again, _ = with_branch(name)
    again.load(tmp_path / "weights.safetensors")
    with torch.no_grad():
        assert torch.equal(again(X, arch=arch), supernet(X, arch=arch))
        assert torch.equal(supernet.subnet(arch)(X), supernet(X, arch=arch))
    fxelastic.export(supernet, tmp_path / "bundle", n_subnets=2)
    moved = again.subnet(arch).to("meta")
    assert moved(X.to("meta")).is_meta


@pytest.mark.filterwarnings("ignore")
def test_a_kind_of_another_package_from_a_model_to_a_search(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    entry = EntryPoint("plain", "tests.branches.plain_kind:Plain", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])
    kinds = ("plain", "pruned", "skip")
    supernet = fxelastic.expand(network(), 0.5, example_inputs=X, kinds=kinds, calibration=X)
    assert [b.id for b in supernet.branches.values() if b.kind == "plain"] == ["plain@0", "plain@1"]
    fxelastic.distill(supernet, [X], steps=2)
    fxelastic.tune(supernet, [X], steps=2)
    bundle = fxelastic.export(supernet, tmp_path / "bundle", n_subnets=2)
    table = edge.profile(bundle, n_samples=3, n_subnets=0, n_held_out=0)
    rows = np.tile(X.numpy(), (3, 1, 1))
    limits = {"latency_ms": 1000, "flops": 1e12}  # whichever branches are fast here
    found = edge.search(bundle, table, rows, score="cosine", limits=limits)
    assert any("plain" in str(entry.arch) for entry in found.pool)
