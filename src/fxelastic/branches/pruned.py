"""A block with fewer interior channels."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from numbers import Real

import numpy as np
import torch
from torch import nn

from fxelastic.branches.propagation import graph_flops, misfit
from fxelastic.branches.pruning.activations import Arguments, activations
from fxelastic.branches.pruning.analysis import Analysis, Policy, analysed
from fxelastic.branches.pruning.selection import IMPORTANCE, Group, groups, removed
from fxelastic.branches.pruning.surgery import Surgery
from fxelastic.branches.trainable import Trainable, trainable
from fxelastic.errors import UsageError
from fxelastic.ir.branch import Branch, Crossings, Skip
from fxelastic.ir.operators import operator_name
from fxelastic.ir.partition import Partition
from fxelastic.spec import BranchSpec, branch_id

KIND = "pruned"
_ACTIVATION = "activation"
#: Tried in this order; that by which most can be removed is taken.
_POLICIES = tuple(Policy(factor, whole) for whole in (True, False) for factor in (-2, 0, -1))


@dataclass(frozen=True)
class Pruned:
    """A trained copy of each block without some of its interior channels or heads.

    The block's input and output keep theirs. Each group of channels that are alike loses its share
    once, however many layers it runs through. What the analysis does not know stays whole, and a
    block where nothing is left to remove has a reason instead of a branch.

    Removal is exact: the branch computes what the block does when the contributions of the
    removed channels are zero. Only where nothing can be removed so, channels go that a layer norm
    takes its statistics over; the branch is then marked as approximate.

    Attributes:
        ratios: Shares to remove, each of which makes one branch.
        importance: What ranks the channels: ``weight`` (sum of magnitudes of all weights that go
            with a channel), ``bn`` (magnitude of its batch norm's scale, where it has one) or
            ``activation`` (mean magnitude of its values on the calibration batches).
        round_to: The number of channels kept is a multiple of this where that is possible.
        calibration: Positional and keyword arguments of some calls of the model.

    Source: AdaptiveNet, section 4.1, the blocks ``B_i^(-k)``.
    """

    ratios: tuple[float, ...] = (0.25, 0.5)
    importance: str = "weight"
    round_to: int = 8
    calibration: tuple[Arguments, ...] = ()

    def __post_init__(self) -> None:
        """Refuse options that are none.

        Raises:
            UsageError: A ratio is no number in (0, 1), or the importance is not known.
        """
        for ratio in self.ratios:
            if isinstance(ratio, bool) or not isinstance(ratio, Real) or not 0 < ratio < 1:
                raise UsageError(
                    "prune has a ratio that is no share",
                    expected="numbers above 0 and below 1, like prune=(0.25, 0.5)",
                    got=repr(self.ratios),
                )
        if self.importance not in (*IMPORTANCE, _ACTIVATION):
            raise UsageError(
                "unknown importance",
                expected="one of " + ", ".join((*IMPORTANCE, _ACTIVATION)),
                got=repr(self.importance),
            )
        if self.importance == _ACTIVATION and not self.calibration:
            raise UsageError(
                "importance='activation' needs data to measure activations on",
                expected="a few batches as calibration=",
                got="none",
            )

    def make(self, partition: Partition, seed: int = 0) -> Iterator[Branch | Skip]:
        """Make the branches.

        Args:
            partition: What to make them for.
            seed: Not used: nothing here is random.

        Yields:
            For each block and ratio a branch, or the reason why there is none.
        """
        crossings = Crossings(partition)
        blocks = (i for i, b in enumerate(partition.blocks) if b.kind in ("basic", "oversize"))
        if self.importance == _ACTIVATION:
            # One run of the model for all blocks.
            found = {i: prunable(partition, crossings, i) for i in blocks}
            readable = {i: b for i, b in found.items() if isinstance(b, Prunable)}
            measured = activations(
                partition,
                {i: (b.copied, b.analysis) for i, b in readable.items()},
                self.calibration,
            )
            for i, block in found.items():
                yield from self._branches(partition, i, block, measured.get(i, {}))
        else:
            for i in blocks:
                block = prunable(partition, crossings, i)
                by = {} if isinstance(block, str) else IMPORTANCE[self.importance](block.analysis)
                yield from self._branches(partition, i, block, by)

    def _branches(
        self, partition: Partition, i: int, block: Prunable | str, by: Mapping[int, float]
    ) -> Iterator[Branch | Skip]:
        for ratio in dict.fromkeys(self.ratios):
            if isinstance(block, str):
                yield Skip(block, KIND, i, i + 1)
            else:
                yield self._branch(partition, i, ratio, block, by)

    def _branch(
        self,
        partition: Partition,
        i: int,
        ratio: float,
        block: Prunable,
        by: Mapping[int, float],
    ) -> Branch | Skip:
        found = prune(partition, block, ratio, by, self.round_to)
        if isinstance(found, str):
            return Skip(f"{found} (ratio {ratio:g})", KIND, i, i + 1)
        copied, analysis, labels, lines = found
        module = copied.module
        spec = BranchSpec(
            branch_id(f"{KIND}{_percent(ratio)}", i, i + 1),
            KIND,
            i,
            i + 1,
            sum(p.numel() for p in module.parameters()),
            graph_flops(module),
        )
        return Branch(
            spec,
            module,
            copied.inputs,
            copied.outputs,
            copied.context,
            approximate=changes_statistics(analysis, labels),
            note="; ".join(lines),
        )


@dataclass(frozen=True)
class Prunable:
    """A block of which channels can be removed.

    Attributes:
        copied: A copy of the block, over the model's own weights.
        analysis: What is known of its channels.
        groups: Those that can be removed.
    """

    copied: Trainable
    analysis: Analysis
    groups: list[Group]


def prune(
    partition: Partition,
    block: Prunable,
    ratio: float,
    importance: Mapping[int, float],
    round_to: int = 8,
) -> tuple[Trainable, Analysis, frozenset[int], list[str]] | str:
    """Remove a share of a block's channels.

    Args:
        partition: The blocks.
        block: The block; it is left as it is.
        ratio: The share.
        importance: The importance of each label.
        round_to: Channels are kept in multiples of this where possible.

    Returns:
        The pruned copy, the analysis of its graph, the labels removed, and a line for each group
        that lost some; or a sentence why nothing was removed.
    """
    labels, lines = removed(block.analysis, block.groups, importance, ratio, round_to)
    if not labels:
        return "rounding leaves every channel"
    # Weights that surgery does not slice are copied afterwards: slices are copies already.
    module = block.copied.module
    held = {id(t): t for t in (*module.parameters(), *module.buffers())}
    copied = replace(block.copied, module=copy.deepcopy(module, dict(held)))
    analysis = block.analysis.of_copy(copied.module)
    Surgery(analysis, labels).apply()
    _own_the_rest(copied.module, held)
    problem = misfit(copied.module, *_ends(partition, copied))
    if problem:
        return f"the pruned block would not fit: {problem}"
    return copied, analysis, labels, lines


def _own_the_rest(module: nn.Module, held: Mapping[int, torch.Tensor]) -> None:
    """Copy the weights that are still the other module's."""
    for owner in module.modules():
        for name, value in list(owner._parameters.items()):
            if value is not None and id(value) in held:
                copied = nn.Parameter(value.detach().clone(), value.requires_grad)
                owner.register_parameter(name, copied)
        for name, buffer in list(owner._buffers.items()):
            if buffer is not None and id(buffer) in held:
                owner.register_buffer(name, buffer.clone())


def changes_statistics(analysis: Analysis, labels: frozenset[int]) -> bool:
    """Whether a norm takes its statistics over channels that are removed.

    Args:
        analysis: The block's.
        labels: The labels removed.
    """
    return any(
        int(label) in labels
        for normalised in analysis.normalised
        for label in analysis.channels.roots(normalised)
    )


def prunable(partition: Partition, crossings: Crossings, i: int) -> Prunable | str:
    """What can be removed of a block, by the policy that can remove most; or why nothing can.

    A policy that changes no norm's statistics is preferred.
    """
    copied = trainable(partition, i, i + 1, crossings, share=True)
    if len(copied.inputs) != 1 or len(copied.outputs) != 1:
        return "the block has not one input and one output"
    # At batch size 3, which few other sizes equal; at 1, batch and broadcast look alike.
    problem = misfit(copied.module, *_ends(partition, copied), batch_sizes=(3,))
    if problem:
        return f"its shapes cannot be derived: {problem}"
    reason = ""
    for approximate in (False, True):
        best: Prunable | None = None
        share = -1
        for policy in _policies(partition, i):
            read = _read(copied, replace(policy, approximate=approximate))
            if isinstance(read, str):
                reason = reason or read
                continue
            elements = _elements(read.analysis, read.groups)
            if elements > share:
                best, share = read, elements
        if best is not None:
            return best
        if not _has_norm(partition, i):
            break
    return reason


def _has_norm(partition: Partition, i: int) -> bool:
    nodes = {node.name: node for node in partition.graph.nodes}
    norms = ("aten.layer_norm", "aten.rms_norm")
    return any(operator_name(nodes[name]) in norms for name in partition.blocks[i].nodes)


def _policies(partition: Partition, i: int) -> tuple[Policy, ...]:
    """The policies that differ on this block."""
    nodes = {node.name: node for node in partition.graph.nodes}
    names = [operator_name(nodes[name]) for name in partition.blocks[i].nodes]
    splits = any("view" in n or "reshape" in n or "flatten" in n for n in names)
    grouped = any(
        "conv" in operator_name(nodes[name])
        and len(nodes[name].args) > 6
        and nodes[name].args[6] != 1
        for name in partition.blocks[i].nodes
    )
    return tuple(
        policy
        for policy in _POLICIES
        if (splits or policy.factor == _POLICIES[0].factor) and (grouped or policy.whole_groups)
    )


def _read(copied: Trainable, policy: Policy) -> Prunable | str:
    analysis = analysed(copied.module, frozenset(copied.inputs), policy)
    found = [group for group in groups(analysis) if len(group.labels) > 1]
    if not found:
        reasons = "; ".join(analysis.channels.reasons)
        return f"no channels to remove: {reasons or 'all are tied to its input or output'}"
    return Prunable(copied, analysis, found)


def _ends(partition: Partition, copied: Trainable) -> tuple[list[torch.Tensor], torch.Tensor]:
    values = {node.name: node.meta.get("val") for node in partition.graph.nodes}
    operands = [values[name] for name in (*copied.inputs, *copied.context)]
    return operands, values[copied.outputs[0]]


def _elements(analysis: Analysis, found: list[Group]) -> int:
    """How many weights the removable channels have."""
    free = [label for group in found for label in group.labels]
    total = 0
    for node, dims in analysis.dims.items():
        if node.op == "get_attr":
            sizes = [len(labels) for labels in dims]
            stay = [int((~np.isin(analysis.channels.roots(labels), free)).sum()) for labels in dims]
            whole = rest = 1
            for size, left in zip(sizes, stay, strict=True):
                whole, rest = whole * size, rest * left
            total += whole - rest
    return total


def _percent(ratio: float) -> str:
    return f"{100 * ratio:g}".replace(".", "_")
