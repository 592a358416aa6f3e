"""Cosines and rank correlations, against those of NumPy and SciPy."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fxelastic.edge.searching.scores import (
    METRICS,
    agreement,
    cosines,
    rank_correlations,
    top_classes,
)
from fxelastic.errors import UsageError

RNG = np.random.default_rng(0)
INF, NAN = np.inf, np.nan
RESULTS: dict[str, Any] = {
    "vectors": RNG.standard_normal((20, 7)),
    "features of several dimensions": RNG.standard_normal((6, 4, 3, 2)),
    "ties": RNG.integers(0, 3, (20, 9)).astype(float),
    "whole numbers": RNG.integers(-5, 5, (20, 9)),
    "large numbers": 1e30 * RNG.standard_normal((5, 4)),
    "small numbers": 1e-30 * RNG.standard_normal((5, 4)),
}


def other(results: Any) -> Any:
    moved = results + RNG.standard_normal(results.shape) * np.abs(results).mean()
    return moved.astype(results.dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", RESULTS)
def test_similarities_are_those_of_the_reference(name: str, dtype: str) -> None:
    ours = RESULTS[name] if name == "whole numbers" else RESULTS[name].astype(dtype)
    theirs = other(ours)
    flat = [array.reshape(len(array), -1).astype(np.float64) for array in (ours, theirs)]
    expected = [a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in zip(*flat, strict=True)]
    np.testing.assert_allclose(cosines(ours, theirs), expected, rtol=1e-9, atol=1e-12)
    ranked = [stats.spearmanr(a, b).statistic for a, b in zip(*flat, strict=True)]
    np.testing.assert_allclose(rank_correlations(ours, theirs), ranked, rtol=1e-9, atol=1e-12)
    total, count = METRICS["cosine"].score([ours], theirs)
    assert total / count == pytest.approx(np.mean(expected))
    total, count = METRICS["spearman"].score([ours], theirs)
    assert total / count == pytest.approx(np.mean(ranked))


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("similarity", [cosines, rank_correlations])
def test_equal_results_have_similarity_1_and_none_exceeds_it(similarity: Any, name: str) -> None:
    results = RESULTS[name]
    assert (similarity(results, results) == 1).all()
    opposite = similarity(-results, results)
    assert (np.abs(opposite) <= 1).all()
    assert opposite == pytest.approx(-np.ones(len(results)))


@pytest.mark.parametrize(
    ("ours", "theirs", "cosine", "spearman"),
    [
        ([0, 0, 0], [1, 2, 3], 0, 0),
        ([1, 2, 3], [0, 0, 0], 0, 0),
        ([0, 0, 0], [0, 0, 0], 1, 1),
        ([2, 2, 2], [2, 2, 2], 1, 1),
        ([2, 2, 2], [3, 3, 3], 1, 1),
        ([2, 2, 2], [1, 2, 3], 12 / np.sqrt(12 * 14), 0),
        ([NAN, 1, 2], [1, 2, 3], 0, 0),
        ([1, 2, 3], [NAN, 2, 3], 1, 0),
        ([1, 2, 3], [-INF, 2, 3], 1, 1),
        ([-INF, 2, 3], [-INF, 2, 3], 1, 1),
        ([INF, 0, 0], [1, 1, 1], 1 / np.sqrt(3), 0),
        ([1, 2, 3], [NAN, NAN, NAN], 1, 0),
    ],
)
def test_similarities_of_zero_constant_and_infinite_results(
    ours: Any, theirs: Any, cosine: float, spearman: float
) -> None:
    one, two = (np.array([values], np.float32) for values in (ours, theirs))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cosines(one, two) == pytest.approx(cosine, abs=1e-6)
        if not (INF in ours and spearman == 0):
            assert rank_correlations(one, two) == pytest.approx(spearman, abs=1e-6)


@pytest.mark.parametrize("name", ["cosine", "spearman"])
@pytest.mark.parametrize(
    ("results", "targets"),
    [
        (np.zeros((2, 3)), np.zeros((2, 4))),
        (np.zeros((2, 3)), np.zeros(2, int)),
        (np.zeros((2, 3), complex), np.zeros((2, 3))),
        (np.zeros(()), np.zeros(())),
    ],
)
def test_what_can_not_be_compared_is_refused(name: str, results: Any, targets: Any) -> None:
    with pytest.raises(UsageError, match=f"{name} can't compare"):
        METRICS[name].score([results], targets)


def test_a_single_number_has_no_rank() -> None:
    with pytest.raises(UsageError, match="spearman can't compare"):
        METRICS["spearman"].score([np.zeros((2, 1))], np.zeros((2, 1)))


@pytest.mark.parametrize(
    "shape", [(6, 5), (6, 5, 4), (6, 5, 5), (6, 5, 4, 3)], ids=lambda shape: f"{len(shape)}d"
)
def test_agreement_is_the_mean_over_samples_of_the_share_of_places(shape: tuple[int, ...]) -> None:
    logits, original = RNG.standard_normal(shape), RNG.standard_normal(shape)
    targets = top_classes([original])
    dim = 2 if len(shape) == 3 else 1
    assert np.array_equal(targets, original.argmax(dim))
    expected = (logits.argmax(dim) == targets).reshape(len(logits), -1).mean(1)
    total, count = agreement([logits], targets)
    assert (total, count) == (pytest.approx(expected.sum()), 6)
    assert agreement([original], targets) == (6, 6)


def test_agreement_of_ties_and_of_classes() -> None:
    assert agreement([np.zeros((3, 4))], top_classes([np.zeros((3, 4))])) == (3, 3)
    classes = np.array([1, 2, 3])
    assert agreement([classes], top_classes([np.array([1, 0, 3])])) == (2, 3)
    assert agreement([np.array([True, False])], np.array([True, True])) == (1, 2)
    with pytest.raises(UsageError, match="agreement can't compare"):
        agreement([np.zeros((3, 4))], np.zeros((3, 2), int))
    with pytest.raises(UsageError, match="agreement can't compare"):
        top_classes([np.zeros(3)])
