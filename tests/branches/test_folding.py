"""Blocks with computed weights have the branches of the same blocks with plain weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.parametrizations as new_style
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import fxelastic
from fxelastic import Supernet
from fxelastic.ir.branch import Branch

Wrap = Callable[[nn.Module], nn.Module]


class ResidualUnit(nn.Module):
    """A unit of a vocoder's generator."""

    def __init__(self, wrap: Wrap) -> None:
        super().__init__()
        self.a = wrap(nn.Conv1d(16, 32, 3, padding=1))
        self.b = wrap(nn.Conv1d(32, 16, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(F.leaky_relu(self.a(F.leaky_relu(x, 0.1)), 0.1))


class GatedUnit(nn.Module):
    """A unit of a WaveNet: a gate, then a projection."""

    def __init__(self, wrap: Wrap) -> None:
        super().__init__()
        self.filter = wrap(nn.Conv1d(16, 32, 3, padding=1))
        self.gate = wrap(nn.Conv1d(16, 32, 3, padding=1))
        self.out = wrap(nn.Conv1d(32, 16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(self.filter(x).tanh() * self.gate(x).sigmoid())


class NormedUnit(nn.Module):
    """A unit whose norm is trained, too."""

    def __init__(self, wrap: Wrap) -> None:
        super().__init__()
        self.a = wrap(nn.Conv1d(16, 32, 3, padding=1))
        self.norm = nn.BatchNorm1d(32)
        self.b = wrap(nn.Conv1d(32, 16, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.norm(self.a(x)).relu())


class MlpUnit(nn.Module):
    """The second half of a transformer's layer."""

    def __init__(self, wrap: Wrap) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.a, self.b = wrap(nn.Linear(32, 48)), wrap(nn.Linear(48, 32))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(F.gelu(self.a(self.norm(x))))


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter, merged in every call; DoRA scales each row."""

    def __init__(self, base: nn.Linear, rescaled: bool) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(0.1 * torch.randn(4, base.in_features))
        self.up = nn.Parameter(0.1 * torch.randn(base.out_features, 4))
        self.rescaled = rescaled
        self.magnitude = nn.Parameter(1 + torch.rand(base.out_features))

    @property
    def weight(self) -> Tensor:
        weight = self.base.weight + 0.5 * (self.up @ self.down)
        if not self.rescaled:
            return weight
        return self.magnitude[:, None] * weight / weight.norm(dim=1, keepdim=True)

    @property
    def bias(self) -> Tensor:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Standardised(nn.Module):
    """A layer whose weight is standardised in every call, beside a mask and a dropout of it."""

    def __init__(self, layer: nn.Conv1d) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("mask", (torch.rand_like(layer.weight) > 0.3).float())

    @property
    def weight(self) -> Tensor:
        weight = F.dropout(self.layer.weight * self.mask, 0.5, self.training)
        return (weight - weight.mean((1, 2), keepdim=True)) / (weight.std((1, 2), keepdim=True) + 1)

    @property
    def bias(self) -> Tensor | None:
        return self.layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.weight, self.bias, padding=self.layer.padding)


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        square = x[..., :32, :32]
        rest = x[..., 32:, :] if x.shape[-2] > 32 else x[..., :, 32:]
        square = square.triu() + square.triu(1).transpose(-1, -2)
        return torch.cat((square, rest), -2 if x.shape[-2] > 32 else -1)


class Positive(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(x)


def parametrized(parametrization: type[nn.Module]) -> Wrap:
    def wrap(layer: nn.Module) -> nn.Module:
        parametrize.register_parametrization(layer, "weight", parametrization())
        return layer

    return wrap


def masked(layer: nn.Module) -> nn.Module:
    prune.l1_unstructured(layer, "weight", 0.3)
    return layer


@dataclass(frozen=True)
class Computed:
    """A way to compute a weight, and the kind of unit that has it."""

    unit: Callable[[Wrap], nn.Module]
    wrap: Wrap

    @property
    def inputs(self) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(3, *((6, 32) if self.unit is MlpUnit else (16, 8)), generator=generator)

    def build(self, wrap: Wrap) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(*(self.unit(wrap) for _ in range(2)))
        head: nn.Module = nn.Linear(32, 4) if self.unit is MlpUnit else nn.Conv1d(16, 2, 1)
        model.append(head)
        return model.eval()


def plain(layer: nn.Module) -> nn.Module:
    return layer


WAYS = {
    "weight_norm, old": Computed(ResidualUnit, nn.utils.weight_norm),
    "weight_norm": Computed(GatedUnit, new_style.weight_norm),
    "spectral_norm, old": Computed(ResidualUnit, nn.utils.spectral_norm),
    "spectral_norm": Computed(NormedUnit, new_style.spectral_norm),
    "orthogonal": Computed(MlpUnit, new_style.orthogonal),
    "symmetric": Computed(MlpUnit, parametrized(Symmetric)),
    "positive": Computed(ResidualUnit, parametrized(Positive)),
    "pruning mask": Computed(NormedUnit, masked),
    "standardised": Computed(GatedUnit, Standardised),
    "LoRA": Computed(MlpUnit, lambda layer: Adapted(layer, rescaled=False)),
    "DoRA": Computed(MlpUnit, lambda layer: Adapted(layer, rescaled=True)),
}


@dataclass(frozen=True)
class Pair:
    """A model with computed weights, and the same with the weights themselves."""

    model: nn.Module
    supernet: Supernet
    plain: Supernet
    inputs: Tensor


@cache
def pair(name: str) -> Pair:
    way = WAYS[name]
    model, twin, x = way.build(way.wrap), way.build(plain), way.inputs
    with torch.no_grad():
        model(x)  # weights of hooks are those of the last call
        for path, layer in twin.named_modules():
            if isinstance(layer, (nn.Conv1d, nn.Linear)):
                layer.weight.copy_(model.get_submodule(path).weight)
                layer.bias.copy_(model.get_submodule(path).bias)
    supernets = [fxelastic.expand(m, 0.55, example_inputs=x) for m in (model, twin)]
    return Pair(model, *supernets, x)


def new(supernet: Supernet, kind: str) -> list[Branch]:
    return [branch for branch in supernet.branches.values() if branch.kind == kind]


@pytest.mark.parametrize("name", WAYS)
def test_blocks_with_computed_weights_are_pruned_as_plain_ones(name: str) -> None:
    case = pair(name)
    assert torch.equal(case.supernet(case.inputs), case.model(case.inputs))
    for kind in ("pruned", "merged"):
        branches, wanted = new(case.supernet, kind), new(case.plain, kind)
        assert branches
        assert [branch.id for branch in branches] == [branch.id for branch in wanted]
        for branch, other in zip(branches, wanted, strict=True):
            assert (branch.n_params, branch.flops) == (other.n_params, other.flops)
            x = torch.randn(2, *case.inputs.shape[1:], generator=torch.Generator().manual_seed(2))
            with torch.no_grad():
                torch.testing.assert_close(branch.module(x), other.module(x))


@pytest.mark.parametrize("name", WAYS)
def test_branches_with_folded_weights_learn(name: str) -> None:
    case = pair(name)
    for branch in (*new(case.supernet, "pruned"), *new(case.supernet, "merged")):
        branch.module.zero_grad()
        branch.module(case.inputs).sum().backward()
        assert all(p.grad is not None for p in branch.module.parameters()), branch.id
    assert all(parameter.grad is None for parameter in case.model.parameters())


@pytest.mark.parametrize("name", ["weight_norm, old", "spectral_norm", "DoRA"])
def test_folded_weights_are_calibrated_trained_saved_and_exported(
    name: str, tmp_path: Path
) -> None:
    case = pair(name)
    x = case.inputs
    before = {k: v.clone() for k, v in case.model.state_dict().items()}
    supernet = fxelastic.expand(
        case.model, 0.55, example_inputs=x, calibration=x, kinds=("pruned",), prune=(0.5,)
    )
    fxelastic.distill(supernet, [x], steps=1)
    supernet.save(tmp_path / "weights.safetensors")
    again = fxelastic.expand(case.model, 0.55, example_inputs=x, kinds=("pruned",), prune=(0.5,))
    again.load(tmp_path / "weights.safetensors")
    arch = supernet.space.sample(1, seed=3)[0]
    with torch.no_grad():
        assert torch.equal(again(x, arch=arch), supernet(x, arch=arch))
    fxelastic.export(supernet, tmp_path / "bundle", n_subnets=2)
    for key, value in case.model.state_dict().items():
        assert torch.equal(value, before[key]), key


class Tables(nn.Module):
    """Weights that are larger than what they are computed from, or computed by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Parameter(torch.rand(48, 2)), nn.Parameter(torch.rand(2, 32))
        self.back = nn.Linear(48, 32)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(F.linear(x, self.left @ self.right).relu())


def test_weights_larger_than_their_parameters_stay_computed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Tables(), Tables(), nn.Linear(32, 2)).eval()
    supernet = fxelastic.expand(model, 0.5, example_inputs=torch.rand(2, 32), kinds=("merged",))
    (branch,) = (b for b in new(supernet, "merged") if b.stop == 2)
    assert {name for name, _ in branch.module.named_parameters()} == {
        f"{i}.{name}" for i in (0,) for name in ("left", "right", "back.weight", "back.bias")
    }


def test_views_of_weights_stay_shared() -> None:
    """A packed weight in three parts is one parameter, and a tied one trains as one."""

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.packed = nn.Parameter(torch.rand(96, 32) / 32)

        def forward(self, x: Tensor) -> Tensor:
            a, b, c = self.packed.chunk(3)
            return x + F.linear(F.linear(x, a).relu(), b.t()) @ c

    torch.manual_seed(0)
    model = nn.Sequential(Packed(), Packed(), nn.Linear(32, 2)).eval()
    supernet = fxelastic.expand(model, 0.5, example_inputs=torch.rand(2, 32), kinds=("merged",))
    (branch,) = (b for b in new(supernet, "merged") if b.stop == 2)
    assert [name for name, _ in branch.module.named_parameters()] == ["0.packed"]
