"""The built-in scores: what they count, and the margins that searches learn from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fxelastic.edge.searching.scores import METRICS, negative_loss, top1, top1_margins
from fxelastic.errors import UsageError

RNG = np.random.default_rng(0)
INF = np.inf
LOGITS = {
    "plain": RNG.standard_normal((40, 5)),
    "equal": np.ones((4, 3)),
    "close": np.array([[1.0, 1.0 + 1e-9], [1.0 + 1e-9, 1.0]]),
    "two infinite": np.array([[INF, INF, 0.0], [0.0, INF, INF], [-INF, -INF, -INF]]),
    "all others minus infinity": np.array([[0.0, -INF, -INF], [-INF, 0.0, -INF]]),
    "one class": np.ones((3, 1)),
    "huge": np.array([[3e38, -3e38], [-3e38, 3e38]]),
}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", LOGITS)
def test_margins_are_finite_and_agree_with_the_score(name: str, dtype: str) -> None:
    with np.errstate(over="ignore"):
        logits = LOGITS[name].astype(dtype)
    for target in range(logits.shape[1]):
        targets = np.full(len(logits), target)
        margins = top1_margins([logits], targets)
        assert margins.dtype == np.float32
        assert np.isfinite(margins).all()
        assert (margins > 0).sum() == top1([logits], targets)[0]


CLASS_METRICS = ("top1", "negative_loss", "miou", "agreement")


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32", "float64"])
@pytest.mark.parametrize("name", CLASS_METRICS)
def test_classes_may_have_any_type_of_whole_numbers(name: str, dtype: str) -> None:
    shape = (6, 3, 2, 2) if name == "miou" else (6, 3)
    logits = RNG.standard_normal(shape)
    targets = RNG.integers(0, 3, (6, *shape[2:]))
    metric = METRICS[name]
    for found, wanted in zip(
        metric.score([logits], targets.astype(dtype)), metric.score([logits], targets), strict=True
    ):
        assert np.array_equal(found, wanted)


def test_true_and_false_are_classes() -> None:
    logits, targets = np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([True, True])
    assert top1([logits], targets) == (1.0, 2.0)
    assert top1_margins([logits], targets).tolist() == [1.0, -1.0]


@pytest.mark.parametrize("name", CLASS_METRICS)
@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ([0.5, 1.0], "must be classes"),
        ([0, 3], "not a class of the model"),
    ],
)
def test_what_is_no_class_is_refused(name: str, targets: Any, said: str) -> None:
    logits, wanted = np.zeros((2, 3)), np.asarray(targets)
    if name == "miou":
        logits, wanted = logits[:, :, None, None], wanted[:, None, None]
    with pytest.raises(UsageError, match=said):
        METRICS[name].score([logits], wanted)


@pytest.mark.parametrize("name", ["top1", "negative_loss"])
@pytest.mark.parametrize("targets", [np.array(["a", "b"], object), np.array([np.nan, 1.0])])
def test_neither_names_nor_nan_are_classes(name: str, targets: np.ndarray[Any, Any]) -> None:
    with pytest.raises(UsageError, match="must be classes"):
        METRICS[name].score([np.zeros((2, 3))], targets)


def test_a_loss_of_results_without_classes_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="negative_loss"):
        negative_loss((np.zeros(4, np.float32),), np.zeros(4, np.int64))
