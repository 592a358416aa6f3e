"""Training of a decoder: branches with fewer heads learn from data with the model's own cache."""

from __future__ import annotations

import copy

import pytest
import torch

from fxelastic import Supernet, distill, evaluate, tune
from tests.decoders import inputs_of, supernet_of


@pytest.fixture
def supernet() -> Supernet:
    return copy.deepcopy(supernet_of("llama"))


@pytest.mark.parametrize("n_past", [0, 4])
def test_subnets_learn_and_are_scored_without_their_caches(supernet: Supernet, n_past: int) -> None:
    inputs = inputs_of("llama", 4, 6, n_past)
    distill(supernet, [inputs], epochs=1)
    tune(supernet, [{**inputs, "targets": inputs["ids"]}], epochs=1)
    tune(supernet, [inputs], epochs=1, soft=1.0)
    archs = [supernet.space.original, *supernet.space.sample(3, 0)]
    scores = evaluate(supernet, archs, [inputs])
    assert scores[supernet.space.original] == 1.0
    assert min(scores.values()) < 1.0


def test_a_result_without_caches_keeps_its_structure(supernet: Supernet) -> None:
    values = supernet.bind((), inputs_of("llama"))
    with torch.no_grad():
        for branch in supernet.path():
            supernet.run_branch(branch, values)
    logits, present = supernet.result(values)
    assert len(present) == 2
    (alone,) = supernet.result(values, caches=False)
    assert torch.equal(alone, logits)
