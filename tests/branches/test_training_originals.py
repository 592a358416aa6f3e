"""Blocks that train compute what the model's own layers compute in training mode."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic import Supernet
from fxelastic.branches.training_originals import training_originals
from tests.models.compare import assert_same_output, snapshot


class Layers(nn.Module):
    """Layers that compute something else in training."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.mean_of_all = nn.BatchNorm2d(4, momentum=None)
        self.plain = nn.BatchNorm2d(4, affine=False)
        self.of_batch = nn.BatchNorm2d(4, track_running_stats=False)
        self.instance = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
        self.dropout = nn.Dropout(0.3)
        self.channels = nn.Dropout2d(0.3)
        self.alpha = nn.AlphaDropout(0.1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.plain(self.mean_of_all(self.norm(self.conv(x)))).relu()
        y = self.channels(self.dropout(self.instance(self.of_batch(y))))
        return self.head(self.alpha(y.mean((2, 3))))


class Recurrent(nn.Module):
    """Two layers with dropout between them."""

    def __init__(self, cell: str) -> None:
        super().__init__()
        self.cell = getattr(nn, cell)(4, 5, num_layers=2, dropout=0.4, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


def steps(run: nn.Module, parameters: list[nn.Parameter], x: Tensor) -> list[Tensor]:
    """The results of three steps of training, each with the same random numbers."""
    optimizer = torch.optim.SGD(parameters, 0.1)
    results = []
    for i in range(3):
        torch.manual_seed(i)
        optimizer.zero_grad()
        results.append(run(x))
        results[-1].square().mean().backward()
        optimizer.step()
    return [result.detach() for result in results]


@pytest.mark.parametrize("name", ["layers", "LSTM", "GRU"])
def test_training_them_is_training_the_model(name: str) -> None:
    torch.manual_seed(0)
    model = Layers() if name == "layers" else Recurrent(name)
    x = torch.randn(6, 2, 5, 5) if name == "layers" else torch.randn(6, 3, 4)
    before = snapshot(model)
    partition = copy.deepcopy(fxelastic.partition(model, 0.5, x[:2]))
    supernet = Supernet(partition, training_originals(partition))
    for branch in supernet.branches.values():
        branch.module.train()
    found = steps(supernet, list(partition.graph_module.parameters()), x)
    assert_same_output(snapshot(model), before)
    expected = steps(model.train(), list(model.parameters()), x)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    state = model.state_dict()
    trained = partition.graph_module.state_dict()
    assert len(trained) >= 6
    for key, value in trained.items():
        torch.testing.assert_close(value, state[key], msg=key)
    # In eval mode, they are the model's blocks again.
    supernet.eval()
    torch.testing.assert_close(supernet(x), model.eval()(x))


def test_a_norm_without_values_to_average_uses_its_statistics() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    partition = copy.deepcopy(fxelastic.partition(model, 1.0, torch.zeros(2, 3)))
    supernet = Supernet(partition, training_originals(partition))
    for branch in supernet.branches.values():
        branch.module.train()
    x = torch.randn(1, 3)
    torch.testing.assert_close(supernet(x), model.eval()(x))
