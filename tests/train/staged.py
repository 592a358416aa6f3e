"""A small network and data for multi-stage training; the network is captured once."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fxelastic
from fxelastic import Supernet, multi_stage

#: The blocks before the exits of `network`: three stages.
EXITS = (1, 2)
_MADE: dict[Any, Any] = {}


class Net(nn.Module):
    """Three convolutions with batch norm, dropout, and a classifier."""

    def __init__(self, width: int = 6, n_classes: int = 4) -> None:
        super().__init__()
        sizes = (1, width, width)
        self.layers = nn.Sequential(*[_layer(n, width) for n in sizes])
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.layers(x).mean((2, 3))))


def _layer(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()
    )


@functools.cache
def network() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()


@functools.cache
def images(n: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images with a bright quarter, which is their class."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, 4, (n,), generator=generator)
    found = torch.randn(n, 1, 8, 8, generator=generator)
    for image, kind in zip(found, classes.tolist(), strict=True):
        top, left = 4 * (kind // 2), 4 * (kind % 2)
        image[:, top : top + 4, left : left + 4] += kind + 1
    return found, classes


def loader(batch: int = 8, *, shuffle: bool = True, n: int = 40, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*images(n)), batch, shuffle=shuffle, **options)


def validation() -> list[tuple[Tensor, Tensor]]:
    return [images(24, 1)]


def train(data: Any = None, model: nn.Module | None = None, **options: Any) -> Supernet:
    """`fxelastic.train_stages` of `network`, or another model, with a capture that is kept."""
    given = {"exits": EXITS, "epochs": 2, "gamma": 0.4, "lr": 0.01, "threads": 1, **options}
    given.setdefault("example_inputs", torch.zeros(2, 1, 8, 8))
    with mock.patch.object(multi_stage, "expand", _expanded):
        data = loader() if data is None else data
        return fxelastic.train_stages(model or network(), data, **given)


def _expanded(model: nn.Module, gamma: float, **options: Any) -> Supernet:
    key = (id(model), gamma, options["kinds"], options["seed"])
    if key not in _MADE:
        _MADE[key] = model, fxelastic.expand(model, gamma, **options)
    found: Supernet = _MADE[key][1]
    return found


def state(supernet: Supernet) -> dict[str, Tensor]:
    """Copies of the weights and statistics of the network and its exits."""
    found = dict(supernet.partition.graph_module.state_dict())
    for branch in supernet.branches.values():
        if not branch.frozen:
            found |= {f"{branch.id}/{k}": v for k, v in branch.module.state_dict().items()}
    return {name: value.detach().clone() for name, value in found.items()}


def parts(found: dict[str, Tensor], stage: int) -> Iterator[str]:
    """The names of the weights and statistics of a stage, from 1."""
    exits = [f"exit@{position}" for position in EXITS]
    for name in found:
        if name.startswith(f"layers.{stage - 1}.") or (
            stage <= len(exits) and name.startswith(exits[stage - 1])
        ):
            yield name
