"""A folder with a model file, and a partitioner that takes no time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

import fxelastic
from fxelastic.ir import Partition
from tests.ir.hand_written import convolutional

MODEL = """
import torch
from torch import nn

print("printed on import")


class Net(nn.Module):
    def __init__(self, width=8, depth=3):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3)
        self.body = nn.Sequential(
            *[nn.Sequential(nn.Conv2d(width, width, 3), nn.ReLU()) for _ in range(depth)]
        )
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def build(width=8, depth=3):
    print("printed while building")
    return Net(width, depth)


def needs(size):
    return Net(size)


def fails():
    raise RuntimeError("no weights\\nto be found")


def leaves():
    raise SystemExit(0)


def several():
    return [Net()]


def inputs():
    return torch.randn(2, 3, 16, 16)


class Zoo:
    @staticmethod
    def small():
        return Net(4, 1)


instance = Net()
number = 3
"""


@dataclass
class Partitioner:
    """Stands in for ``fxelastic.partition``; keeps the calls, returns or raises what it is told."""

    result: Partition = field(default_factory=lambda: replace(convolutional(), model_name="Net"))
    error: BaseException | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, model: Any, **options: Any) -> Partition:
        self.calls.append({"model": model, **options})
        if self.error is not None:
            raise self.error
        return replace(self.result, gamma=options["gamma"])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with ``model.py`` in it."""
    (tmp_path / "model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def partitioner(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Partitioner:
    stand_in = Partitioner()
    monkeypatch.setattr(fxelastic, "partition", stand_in)
    return stand_in
