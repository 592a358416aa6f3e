"""Scores of a model's results: the score of a batch is a sum and a count to divide it by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fxelastic.errors import UsageError

Array: TypeAlias = NDArray[Any]

#: A function of the model's flat results and the targets of a batch, both with the samples in
#: dimension 0, that returns a sum and a count, scalars or arrays of equal shape. The score of a
#: data set is the mean of ``sum / count`` over all batches' totals. Higher is better.
Score: TypeAlias = Callable[[Sequence[Array], Array], tuple[Any, Any]]


_LARGE = 1e30  # logits are clipped to it; a float32 holds it, and its inverse


@dataclass(frozen=True)
class Metric:
    """A score with its name.

    Attributes:
        name: Its name.
        score: See `Score`.
        most: The most that a sample can add to ``sum`` if it adds 1 to ``count``; None if unknown.
            If known, candidates that can no longer win end early.
        margins: A function like `score` that returns a margin for each sample, above 0 if the
            sample is right; `score` must then be the share of margins above 0. If given, searches
            learn from each sample.
        least: The least that a sample can add to ``sum``, if ``most`` is known.
        answers: Converts the original's flat results to targets, for data without targets.
    """

    name: str
    score: Score
    most: float | None = None
    margins: Callable[[Sequence[Array], Array], Array] | None = None
    least: float = 0.0
    answers: Callable[[Sequence[Array]], Array] = lambda outputs: outputs[0]


def top1(outputs: Sequence[Array], targets: Array) -> tuple[float, float]:
    """Samples whose largest logit is the target's: logits ``(N, C)``, targets ``(N,)``."""
    logits = outputs[0]
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise _mismatch("top1", "logits (N, C) and targets (N,)", logits.shape, targets.shape)
    wanted = _classes(targets, logits.shape[1])
    return float((logits.argmax(1) == wanted).sum()), float(len(wanted))


def agreement(outputs: Sequence[Array], targets: Array) -> tuple[float, float]:
    """Samples whose top class is the target; for several positions in a sample, the share of them.

    Accepts logits ``(N, C)`` and targets ``(N,)``; logits ``(N, C, …)`` or ``(N, …, C)`` and
    targets ``(N, …)``; or results that are classes, with the shape of the targets. Ties go to the
    first class.
    """
    results = outputs[0]
    if results.dtype.kind in "biu":
        found, n_classes = results, None
    else:
        dim = _class_dim(results.shape, targets.shape)
        found, n_classes = results.argmax(dim), results.shape[dim]
    if found.ndim == 0 or found.shape != targets.shape:
        raise _can_not_agree(results.shape, targets.shape)
    wanted = targets if n_classes is None else _classes(targets, n_classes)
    if len(wanted) == 0:
        return 0.0, 0.0
    return float((found == wanted).reshape(len(wanted), -1).mean(1).sum()), float(len(wanted))


def top_classes(outputs: Sequence[Array]) -> Array:
    """The classes that `agreement` compares: over dimension 1, or over the last of three."""
    results = outputs[0]
    if results.dtype.kind in "biu":
        return results
    if results.ndim < 2:
        raise _can_not_agree(results.shape, ("N",))
    return np.asarray(results.argmax(_class_dims(results.ndim)[0]))


def first_classes(outputs: Sequence[Array]) -> Array:
    """The classes that losses over dimension 1 compare."""
    if outputs[0].ndim < 2:
        raise _can_not_agree(outputs[0].shape, ("N",))
    return np.asarray(outputs[0].argmax(1))


def cosine(outputs: Sequence[Array], targets: Array) -> tuple[float, float]:
    """The cosines of each sample's result with its target, both as flat vectors: see `cosines`.

    Raises:
        UsageError: A target is NaN throughout.
    """
    has_any = targets.dtype.kind == "f" and targets.ndim > 0 and targets.size > 0
    if has_any and np.isnan(targets.reshape(len(targets), -1)).all(axis=1).any():
        raise UsageError(
            "a target is NaN throughout",
            expected="a number to compare with in the target of each sample",
            got="only NaN",
            fix="leave this sample out",
        )
    return float(cosines(outputs[0], targets).sum()), float(len(targets))


def spearman(outputs: Sequence[Array], targets: Array) -> tuple[float, float]:
    """Rank correlations of each sample's result with its target: see `rank_correlations`."""
    return float(rank_correlations(outputs[0], targets).sum()), float(len(targets))


def top1_margins(outputs: Sequence[Array], targets: Array) -> Array:
    """The target's logit minus the largest other logit, ``(N,)``.

    Margins are finite, and above 0 for the samples that `top1` counts, even if logits are equal or
    infinite.
    """
    others = np.clip(outputs[0].astype(np.float64), -_LARGE, _LARGE)
    rows, wanted = np.arange(len(targets)), _classes(targets, others.shape[1])
    own = others[rows, wanted]
    others[rows, wanted] = -_LARGE
    margins = (own - others.max(1)).astype(np.float32)
    right = outputs[0].argmax(1) == wanted
    return np.asarray(np.where(right, np.maximum(margins, 1 / _LARGE), margins), np.float32)


def negative_loss(outputs: Sequence[Array], targets: Array) -> tuple[float, float]:
    """The negative cross-entropy, in nats: logits ``(N, C, …)``, targets ``(N, …)``."""
    expected = "logits (N, C, …) and targets (N, …)"
    if outputs[0].ndim < 2:
        raise _mismatch("negative_loss", expected, outputs[0].shape, targets.shape)
    logits = np.moveaxis(outputs[0].astype(np.float64), 1, -1).reshape(-1, outputs[0].shape[1])
    flat = targets.reshape(-1)
    if len(flat) != len(logits):
        raise _mismatch("negative_loss", expected, outputs[0].shape, targets.shape)
    flat = _classes(flat, logits.shape[1])
    shifted = logits - logits.max(1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(1))
    return float((shifted[np.arange(len(flat)), flat] - log_sum).sum()), float(len(flat))


def miou(outputs: Sequence[Array], targets: Array) -> tuple[Array, Array]:
    """Intersections and unions of each class: logits ``(N, C, H, W)``, targets ``(N, H, W)``.

    Targets below 0 are ignored. The mean is over the classes that occur in the data set.
    """
    logits = outputs[0]
    if logits.ndim != 4 or targets.shape != (logits.shape[0], *logits.shape[2:]):
        expected = "logits (N, C, H, W) and targets (N, H, W)"
        raise _mismatch("miou", expected, logits.shape, targets.shape)
    n_classes = logits.shape[1]
    counted = targets >= 0
    predicted, wanted = logits.argmax(1)[counted], _classes(targets[counted], n_classes)
    both = np.bincount(wanted[predicted == wanted], minlength=n_classes).astype(np.float64)
    either = np.bincount(wanted, minlength=n_classes) + np.bincount(predicted, minlength=n_classes)
    return both, either - both


METRICS = {
    "top1": Metric("top1", top1, 1.0, top1_margins, answers=top_classes),
    "negative_loss": Metric("negative_loss", negative_loss, answers=first_classes),
    "miou": Metric("miou", miou, answers=first_classes),
    "agreement": Metric("agreement", agreement, 1.0, top1_margins, answers=top_classes),
    "cosine": Metric("cosine", cosine, 1.0, least=-1.0),
    "spearman": Metric("spearman", spearman, 1.0, least=-1.0),
}


def metric(score: str | Score) -> Metric:
    """Look up a metric by name, or create one from a user's function.

    Raises:
        UsageError: No score has this name.
    """
    if callable(score):
        return Metric(getattr(score, "__name__", "score"), score)
    if score not in METRICS:
        raise UsageError(
            f"unknown score {score!r}",
            expected="one of " + ", ".join(METRICS) + ", or a function (outputs, targets)",
            got=repr(score),
        )
    return METRICS[score]


def mean(total: Any, count: Any) -> float:
    """The score of a data set from its sums and counts: the mean over classes that occur."""
    totals, counts = (
        np.atleast_1d(np.asarray(total, float)),
        np.atleast_1d(np.asarray(count, float)),
    )
    occurs = counts > 0
    return float((totals[occurs] / counts[occurs]).mean()) if occurs.any() else 0.0


def _class_dims(n_dims: int) -> tuple[int, ...]:
    """The dimensions of logits that may hold classes, likeliest first, as in training."""
    return (2, 1) if n_dims == 3 else tuple(dict.fromkeys((1, n_dims - 1)))


def _class_dim(shape: tuple[int, ...], targets: tuple[int, ...]) -> int:
    for dim in _class_dims(len(shape)) if len(shape) > 1 else ():
        if targets == (*shape[:dim], *shape[dim + 1 :]):
            return dim
    raise _can_not_agree(shape, targets)


def _can_not_agree(results: tuple[Any, ...], targets: tuple[Any, ...]) -> UsageError:
    expected = "logits (N, C, …) and classes (N, …), or classes of one shape"
    return _mismatch("agreement", expected, results, targets)


def _mismatch(name: str, expected: str, results: object, targets: object) -> UsageError:
    return UsageError(
        f"{name} can't compare these results and targets",
        expected=expected,
        got=f"{results} and {targets}",
        fix="pass another score, such as score='cosine' for results that are not classes",
    )


def _classes(targets: Array, n_classes: int) -> Array:
    """Targets as integers; whole numbers of another dtype are converted."""
    if targets.dtype.kind not in "biuf" or (
        targets.dtype.kind == "f" and (targets != np.floor(targets)).any()
    ):
        raise UsageError(
            "targets must be classes",
            expected=f"integers from 0 to {n_classes - 1}",
            got=f"values of type {targets.dtype}",
        )
    if targets.size and not (targets.min() >= 0 and targets.max() < n_classes):
        raise UsageError(
            "a target is not a class of the model",
            expected=f"integers from 0 to {n_classes - 1}",
            got=f"{targets.min()} to {targets.max()}",
        )
    return targets.astype(np.int64)


_LARGEST = np.finfo(np.float64).max  # replaces infinities


def cosines(results: Array, targets: Array) -> Array:
    """The cosine similarity of each sample and its target.

    It is 1 if both are zero, and 0 if only one is zero or a result is NaN. Elements that are not
    finite in the target are ignored.

    Args:
        results: ``(N, …)``.
        targets: An array of the same shape.

    Returns:
        ``(N,)``, from -1 to 1; exactly 1 if both are equal.

    Raises:
        UsageError: The shapes differ, or the elements are not numbers.
    """
    ours, theirs = _rows(results, targets, "cosine")
    counted = np.isfinite(theirs)
    theirs = np.where(counted, theirs, 0.0)
    ours = np.clip(np.where(counted, ours, 0.0), -_LARGEST, _LARGEST)
    return _correlations(_scaled(ours), _scaled(theirs))


def rank_correlations(results: Array, targets: Array) -> Array:
    """Spearman's rank correlation of each sample and its target.

    Equal elements get the mean of their ranks. The correlation is 1 if both are constant, and 0 if
    only one is constant or either contains NaN.

    Args:
        results: ``(N, …)``, with at least two elements for each sample.
        targets: An array of the same shape.

    Returns:
        ``(N,)``, from -1 to 1; exactly 1 if both have the same order.

    Raises:
        UsageError: The shapes differ, a sample has fewer than two elements, or the elements are not
            numbers.
    """
    ours, theirs = _rows(results, targets, "spearman")
    if ours.shape[1] < 2:
        expected = "results of two numbers or more for each sample"
        raise _mismatch("spearman", expected, results.shape, targets.shape)
    nan = np.isnan(ours).any(1) | np.isnan(theirs).any(1)
    found = _correlations(*(np.stack([_ranks(row) for row in rows]) for rows in (ours, theirs)))
    return np.where(nan, 0.0, found)


def _rows(results: Array, targets: Array, name: str) -> tuple[Array, Array]:
    if results.ndim == 0 or results.shape != targets.shape:
        expected = "results and targets of one shape (N, …)"
        raise _mismatch(name, expected, results.shape, targets.shape)
    if results.dtype.kind not in "biuf" or targets.dtype.kind not in "biuf":
        raise _mismatch(name, "real numbers", results.dtype, targets.dtype)
    rows = (array.astype(np.float64).reshape(len(array), -1) for array in (results, targets))
    return next(rows), next(rows)


def _scaled(rows: Array) -> Array:
    """Rows whose largest magnitude is 1, so that no square overflows or vanishes; zeros stay."""
    size = np.abs(rows).max(1, initial=0.0, keepdims=True)
    return np.asarray(rows / np.where(size > 0, size, 1.0))


def _ranks(row: Array) -> Array:
    """Ranks minus their mean; equal elements share the mean of their ranks."""
    _, place, n = np.unique(row, return_inverse=True, return_counts=True)
    ranks = np.cumsum(n) - (n - 1) / 2
    return np.asarray(ranks[place.reshape(-1)] - (len(row) + 1) / 2)


def _correlations(ours: Array, theirs: Array) -> Array:
    squares = (ours * ours).sum(1), (theirs * theirs).sum(1)
    # The root of the product, not the product of the roots: equal rows have exactly 1.
    size = np.sqrt(squares[0] * squares[1])
    found = (ours * theirs).sum(1) / np.where(size > 0, size, 1.0)
    neither = (squares[0] == 0) & (squares[1] == 0)
    found = np.where(neither, 1.0, np.where(size > 0, found, 0.0))
    return np.asarray(np.where(np.isnan(found), 0.0, np.clip(found, -1.0, 1.0)))
