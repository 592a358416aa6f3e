"""A block with fewer interior channels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from numbers import Real

import torch

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
        policies = {
            i: prunable(partition, crossings, i)
            for i, block in enumerate(partition.blocks)
            if block.kind in ("basic", "oversize")
        }
        measured = self._measured(partition, crossings, policies)
        for i, policy in policies.items():
            for ratio in dict.fromkeys(self.ratios):
                if isinstance(policy, str):
                    yield Skip(policy, KIND, i, i + 1)
                else:
                    yield self._branch(partition, crossings, i, ratio, policy, measured.get(i))

    def _measured(
        self, partition: Partition, crossings: Crossings, policies: Mapping[int, Policy | str]
    ) -> dict[int, dict[int, float]]:
        """For each block the importance of its labels by activations, where that is asked for."""
        if self.importance != _ACTIVATION:
            return {}
        blocks = {}
        for i, policy in policies.items():
            read = policy if isinstance(policy, str) else _read(partition, crossings, i, policy)
            if not isinstance(read, str):
                blocks[i] = read[:2]
        return activations(partition, blocks, self.calibration)

    def _branch(
        self,
        partition: Partition,
        crossings: Crossings,
        i: int,
        ratio: float,
        policy: Policy,
        measured: Mapping[int, float] | None,
    ) -> Branch | Skip:
        importance = measured if measured is not None else self.importance
        found = prune(partition, crossings, i, ratio, policy, importance, self.round_to)
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


def prune(
    partition: Partition,
    crossings: Crossings,
    i: int,
    ratio: float,
    policy: Policy,
    importance: str | Mapping[int, float] = "weight",
    round_to: int = 8,
) -> tuple[Trainable, Analysis, frozenset[int], list[str]] | str:
    """Remove a share of one block's channels.

    Args:
        partition: The blocks.
        crossings: The partition's.
        i: The block.
        ratio: The share.
        policy: What is taken for a channel where there is a choice.
        importance: A key of `IMPORTANCE`, or the importance of each label.
        round_to: Channels are kept in multiples of this where possible.

    Returns:
        The pruned copy, the analysis of its graph, the labels removed, and a line for each group
        that lost some; or a sentence why nothing was removed.
    """
    read = _read(partition, crossings, i, policy)
    if isinstance(read, str):
        return read
    copied, analysis, found = read
    if isinstance(importance, str):
        importance = IMPORTANCE[importance](analysis)
    labels, lines = removed(found, importance, ratio, round_to)
    if not labels:
        return "rounding leaves every channel"
    Surgery(analysis, labels).apply()
    problem = misfit(copied.module, *_ends(partition, copied))
    if problem:
        return f"the pruned block would not fit: {problem}"
    return copied, analysis, labels, lines


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


def prunable(partition: Partition, crossings: Crossings, i: int) -> Policy | str:
    """The policy by which most of a block's weights can be removed; or why none can.

    One that changes no norm's statistics is preferred.
    """
    reason = ""
    for approximate in (False, True):
        best: Policy | None = None
        share = -1
        for policy in _policies(partition, i):
            read = _read(partition, crossings, i, replace(policy, approximate=approximate))
            if isinstance(read, str):
                reason = reason or read
                continue
            elements = _elements(read[1], read[2])
            if elements > share:
                best, share = read[1].policy, elements
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


def _read(
    partition: Partition, crossings: Crossings, i: int, policy: Policy
) -> tuple[Trainable, Analysis, list[Group]] | str:
    copied = trainable(partition, i, i + 1, crossings)
    if len(copied.inputs) != 1 or len(copied.outputs) != 1:
        return "the block has not one input and one output"
    # At a batch of 3, which few other sizes are taken for; of 1, batch and broadcast look alike.
    problem = misfit(copied.module, *_ends(partition, copied), batch_sizes=(3,))
    if problem:
        return f"its shapes cannot be derived: {problem}"
    analysis = analysed(copied.module, frozenset(copied.inputs), policy)
    found = [group for group in groups(analysis) if len(group.labels) > 1]
    if not found:
        reasons = "; ".join(analysis.channels.reasons)
        return f"no channels to remove: {reasons or 'all are tied to its input or output'}"
    return copied, analysis, found


def _ends(partition: Partition, copied: Trainable) -> tuple[list[torch.Tensor], torch.Tensor]:
    values = {node.name: node.meta.get("val") for node in partition.graph.nodes}
    operands = [values[name] for name in (*copied.inputs, *copied.context)]
    return operands, values[copied.outputs[0]]


def _elements(analysis: Analysis, found: list[Group]) -> int:
    """How many weights the removable channels have."""
    free = {label for group in found for label in group.labels}
    total = 0
    for node, dims in analysis.dims.items():
        if node.op == "get_attr":
            sizes = [len(labels) for labels in dims]
            stay = [
                sum(int(label) not in free for label in analysis.channels.roots(labels))
                for labels in dims
            ]
            whole = rest = 1
            for size, left in zip(sizes, stay, strict=True):
                whole, rest = whole * size, rest * left
            total += whole - rest
    return total


def _percent(ratio: float) -> str:
    return f"{100 * ratio:g}".replace(".", "_")
