"""Scores without targets: how like the original's results are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import fxelastic
from fxelastic import UsageError
from fxelastic.train import accuracy, agreement, cosine, spearman

NAN = float("nan")


def vectors(*shape: int, seed: int = 0, values: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if values:
        return torch.randint(values, shape, generator=generator).float()
    return torch.randn(*shape, generator=generator)


@pytest.mark.parametrize("shape", [(9, 7), (4, 3, 5), (3, 2, 2, 3)])
@pytest.mark.parametrize("values", [0, 3], ids=["plain", "ties"])
def test_similarities_are_those_of_the_reference(shape: tuple[int, ...], values: int) -> None:
    ours, theirs = (vectors(*shape, seed=seed, values=values) for seed in (0, 1))
    pairs = [(a.flatten().numpy(), b.flatten().numpy()) for a, b in zip(ours, theirs, strict=True)]
    expected = [a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in pairs]
    assert cosine(ours, theirs) == pytest.approx(np.mean(expected), abs=1e-6)
    ranked = [stats.spearmanr(a, b).statistic for a, b in pairs]
    assert spearman(ours, theirs) == pytest.approx(np.mean(ranked), abs=1e-9)
    for metric in (cosine, spearman):
        assert metric(ours, ours) == 1
        assert metric({"hidden": (ours,)}, {"hidden": (ours,)}) == 1


@pytest.mark.parametrize(
    ("ours", "theirs", "cosines", "ranks"),
    [
        ([0.0, 0, 0], [1.0, 2, 3], 0, 0),
        ([0.0, 0, 0], [0.0, 0, 0], 1, 1),
        ([2.0, 2, 2], [3.0, 3, 3], 1, 1),
        ([NAN, 1, 2], [1.0, 2, 3], 0, 0),
    ],
)
def test_similarities_of_zero_constant_and_infinite_results(
    ours: Any, theirs: Any, cosines: float, ranks: float
) -> None:
    one, two = torch.tensor([ours]), torch.tensor([theirs])
    assert cosine(one, two) == pytest.approx(cosines)
    assert spearman(one, two) == pytest.approx(ranks)
    assert cosine(one[:0], two[:0]) == 0


def test_what_can_not_be_compared_is_refused() -> None:
    with pytest.raises(UsageError, match="the result has the shape"):
        cosine(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(UsageError, match="no floating-point vectors"):
        cosine({"classes": torch.zeros(2, dtype=torch.long)}, {})
    with pytest.raises(UsageError, match="needs at least two numbers"):
        spearman(torch.zeros(2, 1), torch.zeros(2, 1))


class Encoder(nn.Module):
    """Gives features, and no logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Samples (N, 8) to features, twice."""
        h = self.layers(x)
        return h, 2 * h


def test_results_without_logits_are_compared_with_the_original() -> None:
    """It used to end with: no logits were found in the model's result."""
    torch.manual_seed(0)
    x = vectors(10, 8)
    supernet = fxelastic.expand(Encoder().eval(), 0.6, example_inputs=x, kinds=("skip",))
    archs = [supernet.space.original, *supernet.space.sample(4, seed=0)]
    scores = fxelastic.evaluate(supernet, archs, [(x[:4],), (x[4:],)])
    ranked = fxelastic.evaluate(supernet, archs, [(x[:4],), (x[4:],)], metric=spearman)
    assert scores[archs[0]] == pytest.approx(1)
    assert ranked[archs[0]] == pytest.approx(1)
    assert len(set(scores.values())) > 1
    with torch.no_grad():
        original = supernet(x)
        for arch in archs:
            assert scores[arch] == pytest.approx(cosine(supernet(x, arch=arch), original))
            assert ranked[arch] == pytest.approx(spearman(supernet(x, arch=arch), original))


def test_results_of_one_number_are_compared_by_the_variance_they_explain() -> None:
    """Their top class is always the same: every subnet scored 1."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    x = vectors(12, 8)
    supernet = fxelastic.expand(model.eval(), 0.4, example_inputs=x, kinds=("skip",))
    archs = [supernet.space.original, *supernet.space.sample(3, seed=0)]
    scores = fxelastic.evaluate(supernet, archs, [(x,)])
    assert scores[archs[0]] == 1
    with torch.no_grad():
        original = supernet(x)
        for arch in archs:
            lost = (supernet(x, arch=arch) - original).square().mean() / original.var(correction=0)
            assert scores[arch] == pytest.approx(1 - float(lost), rel=1e-4)
    with pytest.raises(UsageError, match="one number where class scores are needed"):
        fxelastic.evaluate(supernet, archs, [(x, torch.zeros(12, dtype=torch.int64))])


@pytest.mark.parametrize("wrong", [-1, 3])
def test_classes_that_the_model_does_not_have_are_refused(wrong: int) -> None:
    with pytest.raises(UsageError, match="classes that the model does not have"):
        accuracy(torch.zeros(2, 3), torch.tensor([0, wrong]))
    assert accuracy(torch.zeros(2, 3), torch.tensor([0, -100])) == 1


def test_logits_are_compared_by_their_top_class() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    x = vectors(12, 8)
    supernet = fxelastic.expand(model.eval(), 0.4, example_inputs=x, kinds=("skip",))
    archs = supernet.space.sample(3, seed=0)
    scores = fxelastic.evaluate(supernet, archs, [(x,)])
    with torch.no_grad():
        original = supernet(x)
        for arch in archs:
            assert scores[arch] == pytest.approx(agreement(supernet(x, arch=arch), original))
