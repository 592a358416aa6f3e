"""The capture of a test model, made once for all tests that only read it.

Most of what a test of a model takes is its capture. Tests that share one are in one group of
pytest-xdist, named after the model, so that one worker runs them one after another.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytest
from torch import nn

from fxelastic.backends import fusion_rules
from fxelastic.ir import Partition, Traced
from fxelastic.passes import capture, partition_graph
from tests.models import CASES
from tests.models.compare import snapshot

RULES = fusion_rules("onnxruntime")


@dataclass(frozen=True)
class Captured:
    """A model and its capture.

    Attributes:
        model: What was captured; its tests leave it as it was.
        before: A `snapshot` of it from before the capture.
        traced: The capture.
    """

    model: nn.Module
    before: Any
    traced: Traced


@lru_cache(maxsize=2)
def captured(name: str) -> Captured:
    """The capture of a case at a batch of 2."""
    model = CASES[name].build()
    before = snapshot(model)
    return Captured(model, before, capture(model, CASES[name].inputs(2)))


@lru_cache(maxsize=4)
def partitioned(name: str, gamma: float) -> Partition:
    """A partition of that capture."""
    return partition_graph(captured(name).traced, gamma, RULES)


def grouped(name: str, *more: Any) -> Any:
    """Values of a parametrised test of one model, in the group of that model."""
    return pytest.param(name, *more, marks=pytest.mark.xdist_group(name))
