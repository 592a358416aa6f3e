"""What holds for any model: its partition is the model, and passes the verifier.

``FXELASTIC_EXAMPLES=2000`` hunts longer than the 25 examples of each kind in a usual run.
"""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from fxelastic.backends import fusion_rules
from fxelastic.errors import PartitionError, UsageError
from fxelastic.passes import capture, partition_graph
from tests.models.compare import assert_same_output
from tests.random_models import CHANNELS, SIZE, Recipe, dags, series_parallel

EXAMPLES = int(os.environ.get("FXELASTIC_EXAMPLES", "25"))
RANDOM = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="FXELASTIC_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
GAMMAS = (0.03, 0.2, 0.5, 1.0)


def check(recipe: Recipe) -> None:
    model = recipe.build()
    traced = capture(recipe.build(), torch.randn(2, CHANNELS, SIZE, SIZE))
    reads = {str(node.target) for node in traced.graph.nodes if node.op == "get_attr"}
    if reads.isdisjoint(name for name, _ in model.named_parameters()):
        with pytest.raises(UsageError, match="no parameters"):
            partition_graph(traced, 1.0, fusion_rules("none"))
        return
    inputs = [torch.randn(n, CHANNELS, SIZE, SIZE) for n in (2, 3)]
    for gamma in GAMMAS:
        for rules in ("onnxruntime", "none"):
            found = partition_graph(traced, gamma, fusion_rules(rules))
            found.verify()
            assert sum(block.n_params for block in found.blocks) == found.n_params
            for block in found.blocks:
                assert block.kind != "basic" or block.n_params <= found.max_block_params
            for x in inputs:
                assert_same_output(found(x.clone()), model(x.clone()))


@RANDOM
@given(series_parallel())
def test_series_parallel_models(recipe: Recipe) -> None:
    check(recipe)


@RANDOM
@given(dags())
def test_models_of_any_dag(recipe: Recipe) -> None:
    check(recipe)


def test_the_check_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    from fxelastic.ir.partition import Partition

    recipe = Recipe(lambda: torch.nn.Conv2d(CHANNELS, CHANNELS, 1), "conv")
    check(recipe)
    monkeypatch.setattr(Partition, "verify", lambda self: _refuse())
    with pytest.raises(PartitionError):
        check(recipe)
    monkeypatch.undo()
    monkeypatch.setattr(Partition, "__call__", lambda self, x: x)
    with pytest.raises(AssertionError):
        check(recipe)


def _refuse() -> None:
    raise PartitionError("refused")
