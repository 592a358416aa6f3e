"""Thresholds keep their bound: the bound itself, and the loss over many splits."""

from __future__ import annotations

import math
from fractions import Fraction
from importlib.metadata import EntryPoint

import numpy as np
import pytest

from fxelastic.edge.cascades import confidence as confidences
from fxelastic.edge.cascades.confidence import CONFIDENCES, confidence
from fxelastic.edge.cascades.thresholds import (
    NEVER,
    Leaving,
    choose,
    samples_needed,
    upper_bound,
)
from fxelastic.errors import UsageError


def tail(k: int, n: int, p: float) -> float:
    """The probability of at most k of n, in exact arithmetic."""
    q = Fraction(p)
    return float(sum(math.comb(n, i) * q**i * (1 - q) ** (n - i) for i in range(k + 1)))


@pytest.mark.parametrize("n", [1, 7, 60])
@pytest.mark.parametrize("delta", [0.01, 0.05, 0.5])
def test_at_the_bound_so_few_are_found_with_the_given_probability(n: int, delta: float) -> None:
    for k in range(0, n, max(1, n // 5)):
        bound = upper_bound(k, n, delta)
        assert tail(k, n, bound) == pytest.approx(delta, rel=1e-4)
        assert bound > k / n
    assert upper_bound(n, n, delta) == 1.0


def test_large_counts_do_not_overflow() -> None:
    assert upper_bound(0, 300, 0.05) == pytest.approx(1 - 0.05 ** (1 / 300), rel=1e-6)
    found = upper_bound(5_000, 1_000_000, 0.05)
    assert 0.005 < found < 0.0052


def test_the_number_of_samples_is_the_least_that_can_show_it() -> None:
    for max_loss, delta in ((0.01, 0.05), (0.1, 0.01), (0.3, 0.5)):
        n = samples_needed(max_loss, delta)
        assert upper_bound(0, n, delta) <= max_loss + 1e-6
        assert upper_bound(0, n - 1, delta) > max_loss


def world(n: int, seed: int = 0) -> Leaving:
    """Exits whose confidence tells something about their answers."""
    rng = np.random.default_rng(seed)
    hardness = rng.random(n)
    confidences, harm = [], []
    for strength in (0.5, 0.75):
        wrong = rng.random(n) < np.clip(hardness - strength, 0, 1)
        confidences.append(1 - hardness + 0.2 * rng.standard_normal(n))
        harm.append(wrong)
    harm.append(np.zeros(n, bool))
    return Leaving(np.stack(confidences), np.stack(harm), np.array([1.0, 2.0, 4.0]))


def test_over_many_splits_the_loss_is_rarely_above_the_limit() -> None:
    """The risk is that of the whole pool, of which each split sees a part."""
    whole, max_loss, delta = world(20_000), 0.02, 0.05
    rng = np.random.default_rng(1)
    n_over, costs = 0, []
    for _ in range(200):
        order = rng.permutation(len(whole))
        chosen = choose(whole.take(order[:800]), whole.take(order[800:1600]), max_loss, delta)
        n_harmed, cost = whole.outcome(chosen.thresholds)
        n_over += n_harmed > max_loss * len(whole)
        costs.append(cost)
    # 10 are expected of a bound that is just kept; more than 19 come once in 300 times.
    assert n_over <= 19
    # The bound is not kept by leaving nobody out.
    assert np.mean(costs) < 0.75 * whole.costs[-1]


def test_more_harm_is_allowed_for_a_lower_cost() -> None:
    samples = world(8_000)
    first, second = samples.take(np.arange(4000)), samples.take(np.arange(4000, 8000))
    found = [choose(first, second, limit, 0.05) for limit in (0.005, 0.02, 0.1)]
    costs = [second.outcome(one.thresholds)[1] for one in found]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > costs[-1]
    for one, limit in zip(found, (0.005, 0.02, 0.1), strict=True):
        assert one.bound <= limit
        assert one.n_harmed == second.outcome(one.thresholds)[0]


def test_exits_that_save_nothing_are_not_used() -> None:
    rng = np.random.default_rng(0)
    harm = np.stack([rng.random(1000) < 0.001, np.zeros(1000, bool)])
    samples = Leaving(rng.random((1, 1000)), harm, np.array([2.0, 2.0]))
    assert choose(samples, samples, 0.05, 0.05).thresholds == (NEVER,)


def test_exits_are_used_only_if_their_heads_pay() -> None:
    whole = world(4_000)
    used = []
    for head in (0.0, 0.3, 3.0):
        dear = Leaving(whole.confidences, whole.harm, whole.costs, np.full(2, head))
        thresholds = choose(dear, dear, 0.02, 0.05).thresholds
        used.append(sum(threshold < NEVER for threshold in thresholds))
        # What is chosen costs less than no exit at all.
        assert dear.outcome(thresholds)[1] <= whole.costs[-1]
        assert dear.costs_with(thresholds)[-1] == pytest.approx(4.0 + head * used[-1])
    assert used[0] == 2
    assert used == sorted(used, reverse=True)
    assert used[-1] == 0


def test_too_few_samples_are_refused_with_the_number_needed() -> None:
    samples = world(298)
    with pytest.raises(UsageError, match="298 samples are too few") as caught:
        choose(samples, samples, 0.01, 0.05)
    assert "at least 299 held-out samples" in str(caught.value)


@pytest.mark.parametrize("name", CONFIDENCES)
def test_confidences_rise_with_the_certainty(name: str) -> None:
    logits = np.array([[0, 0, 0], [1, 0, 0], [5, 0, 0], [500, 0, -500]], np.float32)
    found = confidence(name)(logits)
    assert found.shape == (4,)
    assert list(found) == sorted(found)
    assert found[-1] == pytest.approx(1.0)
    assert 0 <= found[0] <= 0.34


def test_other_packages_add_confidences(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("learned", f"{__name__}:learned", confidences.ENTRY_POINT_GROUP)
    monkeypatch.setattr(confidences, "entry_points", lambda group: [entry])
    assert confidence("learned") is learned
    with pytest.raises(UsageError, match="max_softmax, margin, entropy, learned"):
        confidence("luck")


def learned(logits: np.ndarray) -> np.ndarray:
    return np.tanh(logits).max(1)


def test_results_without_classes_have_no_confidence() -> None:
    for logits in (
        np.zeros((2, 3, 4), np.float32),
        np.zeros((2, 1), np.float32),
        np.zeros((2, 3), int),
    ):
        with pytest.raises(UsageError, match="confidences need class scores"):
            confidence("margin")(logits)
    with pytest.raises(UsageError, match="there is no confidence 'luck'"):
        confidence("luck")
