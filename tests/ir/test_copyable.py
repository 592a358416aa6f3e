"""Copies of a captured model and of its supernet; pickles are refused."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic.errors import UsageError
from fxelastic.ir import trees
from fxelastic.ir.graph_modules import FrozenGraphModule
from fxelastic.ir.supernet import Supernet
from fxelastic.passes.capture import capture
from tests.models import CASES


class Chain(nn.Module):
    """So many operators after one another that a copy of node after node recurses too deeply."""

    def __init__(self) -> None:
        super().__init__()
        layers = (nn.Linear(4, 4) if i % 100 == 0 else nn.Tanh() for i in range(400))
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Opaque(nn.Module):
    """Reads its values in Python, so that it is called as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if float(x.sum()) > 0 else -self.linear(x)


def _memory(supernet: Supernet) -> set[int]:
    modules = (supernet, supernet.partition.graph_module)
    tensors = (t for m in modules for t in (*m.parameters(), *m.buffers()))
    return {t.untyped_storage().data_ptr() for t in tensors if t.numel()}


def _supernets() -> Iterator[Any]:
    opaque = nn.Sequential(nn.Linear(8, 8), Opaque(), nn.Linear(8, 8), nn.ReLU())
    tied = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8))
    tied[2].weight = tied[0].weight
    for name, model in (("opaque", opaque), ("tied", tied)):
        yield pytest.param(model, (torch.randn(4, 8),), {}, id=name)
    yield pytest.param(Chain(), (torch.randn(2, 4),), {}, id="chain")
    for name in ("bert", "dataclass_nested"):
        args, kwargs = CASES[name].inputs(2)
        yield pytest.param(CASES[name].build(), args, kwargs, id=name)


@pytest.mark.parametrize(("model", "args", "kwargs"), list(_supernets()))
def test_a_copy_computes_the_same_bits_and_shares_nothing(
    model: nn.Module, args: Any, kwargs: Any
) -> None:
    kinds = () if isinstance(model, Chain) else ("pruned", "skip")
    supernet = fxelastic.expand(model.eval(), 0.3, example_inputs=(args, kwargs), kinds=kinds)
    supernet(*args, **kwargs)  # what a call leaves behind is not copied
    arch = supernet.space.sample(1, seed=3)[0]
    other = copy.deepcopy(supernet)
    with torch.no_grad():
        for chosen in (None, arch):
            expected = _flat(supernet(*args, arch=chosen, **kwargs))
            assert all(map(torch.equal, _flat(other(*args, arch=chosen, **kwargs)), expected))
    assert not _memory(other) & _memory(supernet)
    assert len(_memory(other)) == len(_memory(supernet))
    for one, branch in zip(supernet.branches.values(), other.branches.values(), strict=True):
        assert branch.frozen == one.frozen
        own = dict(branch.module.named_parameters())
        assert {k: p.requires_grad for k, p in own.items()} == {
            k: p.requires_grad for k, p in one.module.named_parameters()
        }
    assert str(other) == str(supernet)
    assert other.partition.to_text() == supernet.partition.to_text()


def _flat(value: Any) -> list[Tensor]:
    return trees.flatten(value)[0]


def test_training_a_copy_leaves_the_other_as_it_is() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(m for _ in range(4) for m in (nn.Linear(8, 8), nn.ReLU()))).eval()
    x = torch.randn(8, 8)
    supernet = fxelastic.expand(model, 0.4, example_inputs=x)
    before = {k: v.clone() for k, v in supernet.state_dict().items()}
    other = copy.deepcopy(supernet)
    fxelastic.distill(other, [x], steps=2)
    assert all(torch.equal(v, before[k]) for k, v in supernet.state_dict().items())
    assert any(not torch.equal(v, before[k]) for k, v in other.state_dict().items())
    original = next(branch for branch in other.branches.values() if branch.frozen)
    assert isinstance(original.module, FrozenGraphModule)
    assert not original.module.train().training


def test_a_copy_keeps_what_was_set_on_it() -> None:
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU()), torch.randn(4, 8)
    supernet = fxelastic.expand(model, 1.0, example_inputs=x)
    supernet.note = "mine"  # type: ignore[assignment]
    supernet.train()
    other = copy.deepcopy(supernet)
    assert other.note == "mine"
    assert other.training
    assert copy.copy(supernet).branches is supernet.branches


def test_the_other_stages_and_subnets_are_copied() -> None:
    model, x = Chain().eval(), torch.randn(2, 4)
    expected = model(x)
    traced = capture(model, x)
    assert torch.equal(copy.deepcopy(traced)(x), expected)
    supernet = fxelastic.expand(model, 0.5, example_inputs=x, kinds=())
    supernet.partition(x)
    other = copy.deepcopy(supernet.partition)
    with torch.no_grad():
        for parameter in other.graph_module.parameters():
            parameter.add_(1)
    assert torch.equal(supernet.partition(x), expected)
    assert not torch.equal(other(x), expected)
    assert torch.equal(copy.deepcopy(supernet.subnet())(x), expected)


def test_a_copy_takes_an_argument_that_is_compared_as_an_object() -> None:
    class Config:
        scale = 2.0

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor, config: Config) -> Tensor:
            return torch.relu(self.linear(x)) * config.scale

    model, x, config = Net().eval(), torch.randn(4, 8), Config()
    supernet = fxelastic.expand(model, 1.0, example_inputs=(x, config), kinds=())
    assert torch.equal(copy.deepcopy(supernet)(x, config), model(x, config))


@pytest.mark.parametrize("save", [pickle.dumps, lambda value: torch.save(value, io.BytesIO())])
def test_pickling_is_refused_and_names_what_to_do(save: Any) -> None:
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU()), torch.randn(4, 8)
    supernet = fxelastic.expand(model, 1.0, example_inputs=x)
    values = (supernet, supernet.partition, supernet.subnet(), capture(model, x))
    for value in values:
        with pytest.raises(UsageError, match=r"can't be pickled(.|\n)*supernet\.save"):
            save(value)
