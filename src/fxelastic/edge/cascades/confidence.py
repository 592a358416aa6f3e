"""How sure a model is of each sample, from its results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points

import numpy as np

from fxelastic.edge.executor import Array
from fxelastic.errors import UsageError


def max_softmax(logits: Array) -> Array:
    """The probability of the likeliest class: logits ``(N, C)`` to ``(N,)``, at most 1."""
    return np.asarray(_probabilities(logits).max(1))


def margin(logits: Array) -> Array:
    """The difference of the two highest probabilities, from 0 to 1."""
    ordered = np.sort(_probabilities(logits), axis=1)
    return np.asarray(ordered[:, -1] - ordered[:, -2])


def entropy(logits: Array) -> Array:
    """1 minus the entropy of the probabilities as a share of the largest possible one."""
    found = _probabilities(logits)
    logs = np.log(np.maximum(found, 1e-300))
    return np.asarray(1 + (found * logs).sum(1) / np.log(found.shape[1]))


#: The confidences by name. Only their order counts: they need not be calibrated.
CONFIDENCES: Mapping[str, Callable[[Array], Array]] = {
    found.__name__: found for found in (max_softmax, margin, entropy)
}


#: Other packages add confidences, such as learned ones, as entry points in this group: functions
#: of logits ``(N, C)`` that return ``(N,)``, each from its own row alone.
ENTRY_POINT_GROUP = "fxelastic.confidences"


def confidence(name: str) -> Callable[[Array], Array]:
    """A confidence by its name.

    Raises:
        UsageError: There is none of this name.
    """
    if name in CONFIDENCES:
        return CONFIDENCES[name]
    others = {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in others:
        raise UsageError(
            f"there is no confidence {name!r}",
            expected="one of " + ", ".join((*CONFIDENCES, *others)),
            got=repr(name),
            fix=f"other packages add confidences by entry points in the group {ENTRY_POINT_GROUP}",
        )
    loaded: Callable[[Array], Array] = others[name].load()
    return loaded


def _probabilities(logits: Array) -> Array:
    if logits.ndim != 2 or logits.shape[1] < 2 or logits.dtype.kind != "f":
        raise UsageError(
            "confidences need class scores",
            expected="a result of shape (N, C), with at least two classes",
            got=f"{logits.dtype}{list(logits.shape)}",
            fix="exits of such a model are subnets like all others: search without max_loss",
        )
    wide = logits.astype(np.float64)
    shifted = np.exp(wide - wide.max(1, keepdims=True))
    return np.asarray(shifted / shifted.sum(1, keepdims=True))
