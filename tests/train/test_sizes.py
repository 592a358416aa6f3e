"""Training and evaluation on batches of different sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxelastic
from fxelastic import Supernet
from fxelastic.errors import UsageError
from fxelastic.train.metrics import cosine


class Tagger(nn.Module):
    """A class for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.layers = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3)])
        self.head = nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.embed(ids)))


GENERATOR = torch.Generator().manual_seed(0)


def texts(n: int, length: int) -> Any:
    ids = torch.randint(0, 20, (n, length), generator=GENERATOR)
    return ids, ids % 3


BATCHES = [texts(4, 5), texts(2, 12), texts(3, 1), texts(4, 9)]


@pytest.fixture(scope="module")
def supernet() -> Supernet:
    torch.manual_seed(0)
    return fxelastic.expand(
        Tagger().eval(), 0.4, example_inputs=BATCHES[0][0], dynamic_shapes={"ids": {1: "seq"}}
    )


def test_a_score_is_the_mean_over_samples_of_all_sizes(supernet: Supernet) -> None:
    archs = [supernet.space.original, *supernet.space.sample(2, 0)]
    single = [
        (ids[i : i + 1], target[i : i + 1]) for ids, target in BATCHES for i in range(len(ids))
    ]
    assert fxelastic.evaluate(supernet, archs, BATCHES) == pytest.approx(
        fxelastic.evaluate(supernet, archs, single)
    )
    inputs = [ids for ids, _ in BATCHES], [ids for ids, _ in single]
    found, wanted = (fxelastic.evaluate(supernet, archs, data, metric=cosine) for data in inputs)
    assert found == pytest.approx(wanted, abs=1e-6)
    assert found[archs[0]] == pytest.approx(1.0)


def test_stages_train_on_batches_of_different_sizes(supernet: Supernet) -> None:
    run = fxelastic.distill(
        supernet, BATCHES, epochs=2, validate=BATCHES[:2], seed=0, progress=False
    )
    assert run.steps == 2 * len(BATCHES)
    assert fxelastic.tune(supernet, BATCHES, epochs=1, progress=False).steps == len(BATCHES)


def test_a_batch_of_a_size_that_the_model_does_not_take_is_refused(supernet: Supernet) -> None:
    empty = torch.zeros(2, 0, dtype=torch.int64)
    with pytest.raises(UsageError, match=r"batch 1 of the loader.*seq = 0 is outside"):
        fxelastic.distill(supernet, [BATCHES[0][0], empty], epochs=1, progress=False)
