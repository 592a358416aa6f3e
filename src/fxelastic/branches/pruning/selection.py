"""The choice of channels to remove: a share of each group of alike channels, by importance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fxelastic.branches.pruning.channels import FIXED, Analysis
from fxelastic.ir.operators import attribute


@dataclass(frozen=True)
class Group:
    """Channels that are alike: any of them may be removed, each once.

    Attributes:
        names: The weights' dimensions that they index: (target, dimension).
        labels: Their labels.
        width: How many neighbouring indices a channel takes in the first of these dimensions: more
            than one for heads and for groups of a convolution. A gate's channel, which is at two
            places, takes one.
    """

    names: tuple[tuple[str, int], ...]
    labels: tuple[int, ...]
    width: int


def groups(analysis: Analysis) -> list[Group]:
    """The groups of removable channels, in the order of the graph.

    Only channels that a product sums over count, unlike the rows of a table that nothing reads.
    """
    summed = {x for labels in analysis.summed for x in analysis.channels.roots(labels).tolist()}
    family: dict[int, int] = {}
    places: dict[int, list[tuple[str, int]]] = {}
    widths: dict[int, int] = {}
    members: dict[int, list[int]] = {}

    def find(label: int) -> int:
        while family[label] != label:
            label = family[label]
        return label

    for target, dim, labels in _weight_dims(analysis):
        runs = _first_runs(analysis.channels.roots(labels))
        free = [label for label in runs if label != FIXED and label in summed]
        for label in free:
            family.setdefault(label, label)
            widths.setdefault(label, runs[label])
        # A weight's outgoing channels are alike; its incoming channels may come from several.
        if free and (target, dim) not in analysis.contractions:
            for label in free[1:]:
                family[find(label)] = find(free[0])
        if free:
            places.setdefault(free[0], []).append((target, dim))
    for label in family:
        members.setdefault(find(label), []).append(label)
    found = []
    for labels_ in members.values():
        names = tuple(dict.fromkeys(p for label in labels_ for p in places.get(label, ())))
        found.append(Group(names, tuple(labels_), widths[labels_[0]]))
    return found


def _first_runs(roots: NDArray[np.int64]) -> dict[int, int]:
    """The length of the first run of each label, in order."""
    starts = np.flatnonzero(np.diff(roots, prepend=-1))
    lengths = np.diff(starts, append=len(roots))
    result: dict[int, int] = {}
    for label, length in zip(roots[starts].tolist(), lengths.tolist(), strict=True):
        result.setdefault(label, length)
    return result


def importance_by_weight(analysis: Analysis) -> dict[int, float]:
    """For each channel, the sum of the magnitudes of all its weights."""
    result: dict[int, float] = {}
    for target, dim, labels in _weight_dims(analysis):
        value = _weight(analysis, target)
        if not value.is_floating_point():
            continue
        rest = tuple(d for d in range(value.dim()) if d != dim)
        sums = value.detach().abs()
        sums = sums.sum(dim=rest, dtype=torch.float64) if rest else sums
        roots = analysis.channels.roots(labels)
        for label, amount in zip(roots.tolist(), sums.tolist(), strict=True):
            if label != FIXED:
                result[label] = result.get(label, 0.0) + float(amount)
    return result


def importance_by_scale(analysis: Analysis) -> dict[int, float]:
    """For each channel, the magnitude of its batch norm's scale; by weight if it has none.

    Source: network slimming, as in AdaptiveNet's related work.
    """
    result = importance_by_weight(analysis)
    scales: dict[int, float] = {}
    for target, labels in analysis.norms.items():
        norm = analysis.module.get_submodule(target)
        if isinstance(norm.weight, Tensor):
            roots = analysis.channels.roots(labels)
            for label, amount in zip(
                roots.tolist(), norm.weight.detach().abs().tolist(), strict=True
            ):
                scales[label] = scales.get(label, 0.0) + amount
    return {label: scales.get(label, amount) for label, amount in result.items()}


IMPORTANCE: Mapping[str, Callable[[Analysis], dict[int, float]]] = {
    "weight": importance_by_weight,
    "bn": importance_by_scale,
}


def kept(n: int, ratio: float, round_to: int, width: int) -> int:
    """The number of channels that stay.

    Args:
        n: Channels, or heads, or groups.
        ratio: The share to remove.
        round_to: Keep a multiple of this if that keeps some and removes some.
        width: Indices that a channel takes; only single channels are rounded.

    Returns:
        At least 1, at most n.
    """
    wanted = n * (1 - ratio)
    if width == 1 and n > round_to:
        rounded = max(1, int(wanted / round_to + 0.5)) * round_to
        return rounded if rounded < n else (n - 1) // round_to * round_to
    return min(n, max(1, int(wanted + 0.5)))


def removed(
    analysis: Analysis,
    found: list[Group],
    importance: Mapping[int, float],
    ratio: float,
    round_to: int,
) -> tuple[frozenset[int], list[str]]:
    """The labels to remove, and a line for each group that loses channels.

    If a group's channels are split into parts, the most important channel of each part stays.
    """
    labels: set[int] = set()
    lines: list[str] = []
    parts = _parts(analysis)
    for group in found:
        n = len(group.labels)
        order = sorted(group.labels, key=lambda label: (-importance.get(label, 0.0), label))
        own = set(group.labels)
        firsts = {next(x for x in order if x in part) for part in parts if part < own}
        order = [x for x in order if x in firsts] + [x for x in order if x not in firsts]
        stay = max(kept(n, ratio, round_to, group.width), len(firsts))
        if stay == n:
            continue
        labels.update(order[stay:])
        target, dim = group.names[0] if group.names else ("", 0)
        what = "channels" if group.width == 1 else f"groups of {group.width}"
        lines.append(f"{n} → {stay} {what} of {target}[{dim}]")
    return frozenset(labels), lines


def _parts(analysis: Analysis) -> set[frozenset[int]]:
    """The labels of each dimension of each tensor that has no fixed label."""
    parts: set[frozenset[int]] = set()
    several = (dims for results in analysis.parts.values() for dims in results)
    for dims in (*analysis.dims.values(), *several):
        for labels in dims:
            roots = frozenset(analysis.channels.roots(labels).tolist())
            if roots and FIXED not in roots:
                parts.add(roots)
    return parts


def _weight_dims(analysis: Analysis) -> list[tuple[str, int, NDArray[np.int64]]]:
    """Each dimension of each tensor that the block holds, with its labels, in graph order."""
    result: dict[tuple[str, int], NDArray[np.int64]] = {}
    for node in analysis.module.graph.nodes:
        if node.op == "get_attr" and node in analysis.dims:
            for dim, labels in enumerate(analysis.dims[node]):
                result.setdefault((str(node.target), dim), labels)
        elif node.op == "call_module" and str(node.target) in analysis.norms:
            norm = analysis.module.get_submodule(str(node.target))
            for name in ("weight", "bias"):
                if getattr(norm, name) is not None:
                    key = (f"{node.target}.{name}", 0)
                    result.setdefault(key, analysis.norms[str(node.target)])
    return [(target, dim, labels) for (target, dim), labels in result.items()]


def _weight(analysis: Analysis, target: str) -> Tensor:
    value = attribute(analysis.module, target)
    if not isinstance(value, (Tensor, nn.Parameter)):
        raise TypeError(f"{target} is a {type(value).__name__}")
    return value
