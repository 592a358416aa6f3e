"""Originals are the model's blocks over its own weights, and never change the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic import UsageError
from fxelastic.branches.original import Original
from fxelastic.ir.branch import Branch
from fxelastic.ir.graph_modules import FrozenGraphModule
from fxelastic.ir.liveness import Liveness
from tests.models import case
from tests.models.compare import assert_same_output


def make(partition: fxelastic.Partition) -> list[Branch]:
    made = list(Original().make(partition))
    assert all(isinstance(branch, Branch) for branch in made)
    return [branch for branch in made if isinstance(branch, Branch)]


def partition_case(name: str) -> fxelastic.Partition:
    item = case(name)
    return fxelastic.partition(item.build(), 0.1, item.inputs(2))


@pytest.mark.parametrize("name", ["resnet18", "t5", "llama"])
def test_one_branch_for_each_block(name: str) -> None:
    partition = partition_case(name)
    liveness = Liveness(partition)
    for i, (branch, block) in enumerate(zip(make(partition), partition.blocks, strict=True)):
        assert (branch.start, branch.stop) == (i, i + 1)
        assert (branch.inputs, branch.context) == (block.inputs, block.context)
        assert branch.outputs == liveness.outputs(i, i + 1)
        assert set(branch.inputs) <= set(liveness.live(i))
        assert (branch.n_params, branch.flops) == (block.n_params, block.flops)
        assert branch.frozen


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.layer = nn.Linear(8, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.layer(self.embedding(x))))


def test_tied_weight_stays_one_parameter() -> None:
    model = Tied().eval()
    partition = fxelastic.partition(model, 0.5, torch.arange(6).view(2, 3))
    held = {id(p): p for branch in make(partition) for p in branch.module.parameters()}
    assert len(held) == 3
    assert sum(parameter.numel() for parameter in held.values()) == partition.n_params
    assert not {id(p) for p in model.parameters()} & held.keys()


class Looping(nn.Module):
    """Control flow over data: no graph."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.layer(x))
        x = self.lstm(x[:, None])[0][:, 0]
        while x.abs().max() < 1:
            x = x * self.scale
        return x


class WithOpaque(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.loop = Looping()
        self.last = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.loop(torch.relu(self.first(x))))


def test_opaque_module_is_frozen_and_stays_in_eval_mode() -> None:
    torch.manual_seed(0)
    model = WithOpaque().eval()
    x = torch.randn(3, 8)
    supernet = fxelastic.expand(model, 1.0, example_inputs=x)
    assert supernet.partition.opaque
    supernet.train()
    for module in (supernet, supernet.subnet(), supernet.subnet().train()):
        assert_same_output(module(x), model(x))
        assert not any(parameter.requires_grad for parameter in module.parameters())
        parts = [part for part in module.modules() if isinstance(part, nn.Dropout)]
        assert parts
        assert not any(part.training for part in parts)
        assert not {id(p) for p in module.parameters()} & {id(p) for p in model.parameters()}
    supernet.double()
    assert model(x).dtype is x.dtype
    assert all(parameter.requires_grad for parameter in model.parameters())


class Refusing(Looping):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("no copies")


def test_opaque_module_that_cannot_be_copied_is_refused() -> None:
    model = WithOpaque().eval()
    model.loop = Refusing().eval()
    partition = fxelastic.partition(model, 1.0, torch.randn(3, 8))
    with pytest.raises(UsageError, match=r"the opaque module .* cannot be copied"):
        make(partition)


def test_gradients_pass_through_to_the_inputs_and_stay_nowhere() -> None:
    model = Tied().eval()
    partition = fxelastic.partition(model, 0.5, torch.arange(6).view(2, 3))
    supernet = fxelastic.Supernet(partition, make(partition))
    result = supernet(torch.arange(6).view(2, 3))
    assert result.requires_grad  # as the model's
    result.sum().backward()
    for module in (supernet, model):
        assert all(parameter.grad is None for parameter in module.parameters())
    branch = make(partition)[-1]
    assert isinstance(branch.module, FrozenGraphModule)
    for run in (branch.module, branch.module.as_model):
        x = torch.randn(2, 3, 8, requires_grad=True)
        run(x).sum().backward()
        assert x.grad is not None


def test_a_model_without_gradients_gives_results_without() -> None:
    model = Tied().eval().requires_grad_(False)
    x = torch.arange(6).view(2, 3)
    supernet = fxelastic.expand(model, 0.5, example_inputs=x)
    assert not supernet(x).requires_grad
    assert torch.equal(supernet(x), model(x))
