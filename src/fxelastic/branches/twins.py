"""Twins: branches that equal another branch, whose training, export and timing is wasted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import torch
from torch import fx, nn

from fxelastic.ir.branch import Branch, Refusal
from fxelastic.ir.description import Description, describe
from fxelastic.ir.operators import COPIES, attribute, operator_name


def without_twins(branches: Sequence[Branch]) -> tuple[list[Branch], list[Refusal]]:
    """Drop the branches that compute the same as an earlier branch, with the same weights.

    Two branches are twins if they stand in for the same interval, read and compute the same values,
    and have the same graph (or the same class and attributes) with equal weights, of which the
    same ones are trainable. Branches that can't be compared stay. A frozen original and a trainable
    copy of it are not twins.

    Args:
        branches: In order of preference, the originals first.

    Returns:
        The remaining branches in order, and a refusal for each dropped branch.
    """
    kept: list[Branch] = []
    refusals: list[Refusal] = []
    alike: dict[Hashable, list[tuple[Branch, nn.Module, tuple[str, ...]]]] = defaultdict(list)
    several = _intervals_with_several(branches)
    for branch in branches:
        ends = (branch.start, branch.stop, branch.outputs)
        found = _described(branch) if (branch.start, branch.stop) in several else None
        if found is None:
            kept.append(branch)
            continue
        others = alike[ends, found.key]
        twin = next(
            (
                other
                for other, module, names in others
                if _same_weights(branch.module, found.weights, module, names)
            ),
            None,
        )
        if twin is None:
            kept.append(branch)
            others.append((branch, branch.module, found.weights))
        else:
            reason = f"{branch.id} is the same as {twin.id}, bit for bit"
            refusals.append(Refusal(reason, branch.kind, branch.start, branch.stop))
    return kept, refusals


def _intervals_with_several(branches: Sequence[Branch]) -> set[tuple[int, int]]:
    seen: set[tuple[int, int]] = set()
    again: set[tuple[int, int]] = set()
    for branch in branches:
        interval = (branch.start, branch.stop)
        (again if interval in seen else seen).add(interval)
    return again


def _described(branch: Branch) -> Description | None:
    """A description of the branch's module and operands; None if it can't be compared."""
    operands = (*branch.inputs, *branch.context)
    returned = _returned(branch.module, operands)
    if returned is not None:
        return Description(("returns", returned), ())
    found = describe(branch.module)
    return None if found is None else Description((operands, found.key), found.weights)


def _returned(module: nn.Module, operands: Sequence[str]) -> str | None:
    """The operand that a module returns unchanged, or None."""
    if isinstance(module, nn.Identity):
        return operands[0]
    if not isinstance(module, fx.GraphModule):
        return None
    value = module.graph.output_node().args[0]
    while isinstance(value, fx.Node) and operator_name(value) in COPIES:
        value = value.args[0]
    if not isinstance(value, fx.Node) or value.op != "placeholder":
        return None
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    return operands[placeholders.index(value)]


def _same_weights(
    module: nn.Module, names: Sequence[str], other: nn.Module, others: Sequence[str]
) -> bool:
    return all(
        torch.equal(_weight(module, name), _weight(other, again))
        for name, again in zip(names, others, strict=True)
    )


def _weight(module: nn.Module, name: str) -> torch.Tensor:
    value = attribute(module, name)
    assert isinstance(value, torch.Tensor)
    return value
