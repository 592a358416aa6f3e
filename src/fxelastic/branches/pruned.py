"""A block, or a run of blocks, with fewer interior channels."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import fx, nn

from fxelastic.branches.caches import check_other_readers
from fxelastic.branches.interval import Interval, NoBranchError, intervals
from fxelastic.branches.options import Arguments, counts, shares
from fxelastic.branches.pruning.activations import activations
from fxelastic.branches.pruning.analysis import analysed
from fxelastic.branches.pruning.channels import Analysis, PruningPolicy
from fxelastic.branches.pruning.selection import IMPORTANCE, Group, groups, removed
from fxelastic.branches.pruning.surgery import Surgery
from fxelastic.branches.trainable import Trainable
from fxelastic.errors import UsageError
from fxelastic.ir.branch import Branch, Refusal
from fxelastic.ir.operators import CONVOLUTIONS, LAYER_NORMS, groups_of, operator_name
from fxelastic.ir.partition import Partition
from fxelastic.spec.cache import Cache, KeptCache
from fxelastic.spec.options import check_count

KIND = "pruned"
_ACTIVATION = "activation"
#: In order of preference; the policy that can remove most is taken.
_POLICIES = tuple(PruningPolicy(factor, whole) for whole in (True, False) for factor in (-2, 0, -1))


@dataclass(frozen=True)
class Pruned:
    """A trained copy of each block, or run of blocks, without some interior channels or heads.

    The keys and values of removed heads are not in the branch's cache either: its past and its
    present have fewer heads.

    Its input and output keep their channels. Each group of alike channels loses its share
    once, however many layers it runs through. Channels that the analysis does not understand stay,
    and a block without removable channels gets a refusal with the reason.

    Removal is exact: the branch computes what the block computes if the removed channels contribute
    zero. If nothing can be removed exactly, channels are removed that a layer norm takes its
    statistics over; the branch is then marked as approximate.

    A run of blocks loses the channels at its inner borders as well, which a block alone must keep.
    A run without such channels gets a refusal: its blocks can be pruned one by one.

    Attributes:
        ratios: Shares of the channels to remove; each makes one branch.
        importance: How channels are ranked: by ``weight`` (sum of magnitudes of all weights of a
            channel), ``bn`` (magnitude of its batch norm's scale, if it has one) or ``activation``
            (mean magnitude of its values on the calibration batches).
        round_to: The number of channels kept is a multiple of this where possible.
        spans: Numbers of further blocks of a run; 0 for single blocks.
        calibration: Positional and keyword arguments of some calls of the model; those of
            `fxelastic.expand` if empty.

    Raises:
        UsageError: A ratio is not in (0, 1), the importance is unknown, or ``round_to`` or a span
            is not an integer of at least 1 or 0.

    Source: AdaptiveNet, section 4.1, the blocks ``B_i^(-k)``.
    """

    ratios: Sequence[float] = (0.25, 0.5)
    importance: str = "weight"
    round_to: int = 8
    calibration: tuple[Arguments, ...] = field(default=(), compare=False)
    spans: Sequence[int] = (0,)

    def __post_init__(self) -> None:
        """Check the options."""
        object.__setattr__(self, "ratios", shares("ratios", self.ratios))
        object.__setattr__(self, "spans", counts("spans", self.spans, least=0))
        check_count("round_to", self.round_to)
        if self.importance not in (*IMPORTANCE, _ACTIVATION):
            raise UsageError(
                "unknown importance",
                expected="one of " + ", ".join((*IMPORTANCE, _ACTIVATION)),
                got=repr(self.importance),
            )

    @property
    def needs_calibration(self) -> bool:
        """Whether the ranking takes data."""
        return self.importance == _ACTIVATION

    def make(self, partition: Partition, seed: int = 0) -> Iterator[Branch | Refusal]:
        """Make the branches.

        Args:
            partition: The partition to make them for.
            seed: Not used, since nothing here is random.

        Yields:
            A branch for each run and ratio, or the reason why there is none.
        """
        found: Iterable[tuple[Interval, Prunable | str]]
        runs = (run for span in dict.fromkeys(self.spans) for run in _runs(partition, span))
        found = ((interval, _attempt(interval)) for interval in runs)
        measured: Mapping[tuple[int, int], Mapping[int, float]] = {}
        if self.needs_calibration:
            # One run of the model for all blocks.
            found = list(found)
            blocks = {
                (i.start, i.stop): (b.copied, b.analysis)
                for i, b in found
                if isinstance(b, Prunable)
            }
            measured = activations(partition, blocks, self.calibration)
        for interval, block in found:
            by = measured.get((interval.start, interval.stop), {})
            if isinstance(block, Prunable) and not self.needs_calibration:
                by = IMPORTANCE[self.importance](block.analysis)
            for ratio in dict.fromkeys(self.ratios):
                if isinstance(block, str):
                    yield interval.refuse(block)
                else:
                    branch = partial(self._branch, block=block, ratio=ratio, by=by)
                    yield interval.attempt(branch)

    def _branch(
        self, interval: Interval, *, block: Prunable, ratio: float, by: Mapping[int, float]
    ) -> Branch:
        try:
            copied, analysis, labels, lines = prune(interval, block, ratio, by, self.round_to)
        except NoBranchError as e:
            raise NoBranchError(f"{e} (ratio {ratio:g})") from e
        return interval.branch(
            copied,
            variant=f"{100 * ratio:g}".replace(".", "_"),
            approximate=changes_statistics(analysis, labels),
            note="; ".join(lines),
            cache=kept_caches(interval, analysis, labels),
        )


@dataclass(frozen=True)
class Prunable:
    """A block with removable channels.

    Attributes:
        copied: A copy of the block that shares the model's weights.
        analysis: The analysis of its channels.
        groups: The channels that can be removed.
    """

    copied: Trainable
    analysis: Analysis
    groups: list[Group]


def prune(
    interval: Interval,
    block: Prunable,
    ratio: float,
    importance: Mapping[int, float],
    round_to: int = 8,
) -> tuple[Trainable, Analysis, frozenset[int], list[str]]:
    """Remove a share of a block's channels.

    Args:
        interval: The block's interval.
        block: The block; it does not change.
        ratio: The share.
        importance: The importance of each label.
        round_to: Channels are kept in multiples of this where possible.

    Returns:
        The pruned copy, the analysis of its graph, the removed labels, and a line for each group
        that lost channels.

    Raises:
        NoBranchError: Nothing can be removed, or the result would not fit.
    """
    labels, lines = removed(block.analysis, block.groups, importance, ratio, round_to)
    if not labels:
        raise NoBranchError("rounding leaves every channel")
    # Slices are copies already, so only the weights that surgery does not slice are copied.
    module = block.copied.module
    held = {id(t): t for t in (*module.parameters(), *module.buffers())}
    copied = replace(block.copied, module=copy.deepcopy(module, dict(held)))
    analysis = block.analysis.of_copy(copied.module)
    cache = kept_caches(interval, analysis, labels)
    Surgery(analysis, labels).apply()
    _own_the_rest(copied.module, held)
    problem = interval.misfit(copied, interval.ends()[1], cache=cache)
    if problem:
        raise NoBranchError(f"the pruned block would not fit: {problem}")
    return copied, analysis, labels, lines


def kept_caches(
    interval: Interval, analysis: Analysis, labels: frozenset[int]
) -> tuple[KeptCache, ...]:
    """The caches that lose channels, without the removed ones.

    Raises:
        NoBranchError: A cache would lose channels in several dimensions, or something else in the
            model reads all of it.
    """
    surgery = Surgery(analysis, labels)
    dims = {n.name: dims for n, dims in analysis.dims.items() if n.op == "placeholder"}
    found = []
    for cache in interval.caches:
        kept = [surgery.stay(own).tolist() for own in dims[cache.past]]
        lost = [i for i, own in enumerate(dims[cache.past]) if len(kept[i]) < len(own)]
        if len(lost) > 1:
            raise NoBranchError(f"{cache.past} would lose indices in {len(lost)} dimensions")
        if lost:
            (dim,) = lost
            found.append(KeptCache(cache.past, cache.present, dim, tuple(kept[dim])))
            check_other_readers(interval.partition, found[-1])
    return tuple(found)


def _own_the_rest(module: nn.Module, held: Mapping[int, torch.Tensor]) -> None:
    """Copy the weights that a module still shares."""
    for owner in module.modules():
        for name, value in list(owner._parameters.items()):
            if value is not None and id(value) in held:
                copied = nn.Parameter(value.detach().clone(), value.requires_grad)
                owner.register_parameter(name, copied)
        for name, buffer in list(owner._buffers.items()):
            if buffer is not None and id(buffer) in held:
                owner.register_buffer(name, buffer.clone())


def changes_statistics(analysis: Analysis, labels: frozenset[int]) -> bool:
    """Whether a norm takes its statistics over removed channels.

    Args:
        analysis: The block's analysis.
        labels: The removed labels.
    """
    return any(
        int(label) in labels
        for normalised in analysis.normalised
        for label in analysis.channels.roots(normalised)
    )


def _runs(partition: Partition, span: int) -> Iterator[Interval]:
    """The runs of ``span + 1`` replaceable blocks."""
    singles = {interval.start: interval for interval in intervals(partition, KIND)}
    for start, interval in singles.items():
        if all(start + i in singles for i in range(span + 1)):
            yield replace(interval, stop=start + span + 1)


def _attempt(interval: Interval) -> Prunable | str:
    try:
        return prunable(interval)
    except NoBranchError as e:
        return str(e)


def prunable(interval: Interval) -> Prunable:
    """The removable channels of a block, by the policy that can remove most.

    Policies that change no norm's statistics come first.

    Raises:
        NoBranchError: No policy can remove any.
    """
    copied = interval.copy(share=True)
    _, result = interval.ends()
    # At batch size 3, which few other sizes equal; at 1, batch and broadcast look alike.
    problem = interval.misfit(copied, result, batch_sizes=(3,))
    if problem:
        raise NoBranchError(f"its shapes cannot be derived: {problem}")
    nodes = [interval.partition.nodes[n] for block in interval.blocks for n in block.nodes]
    reason = ""
    for approximate in (False, True):
        best: Prunable | None = None
        share = -1
        for policy in _policies(nodes):
            try:
                read = _read(copied, replace(policy, approximate=approximate), interval.caches)
                _check_borders(interval, read)
            except NoBranchError as e:
                reason = reason or str(e)
                continue
            elements = _elements(read.analysis, read.groups)
            if elements > share:
                best, share = read, elements
        if best is not None:
            return best
        if not any(operator_name(node) in LAYER_NORMS for node in nodes):
            break
    raise NoBranchError(reason)


def _policies(nodes: Sequence[fx.Node]) -> tuple[PruningPolicy, ...]:
    """The policies that differ on a block."""
    names = [operator_name(node) for node in nodes]
    splits = any("view" in name or "reshape" in name or "flatten" in name for name in names)
    grouped = any(
        name in CONVOLUTIONS and groups_of(node) != 1
        for name, node in zip(names, nodes, strict=True)
    )
    return tuple(
        policy
        for policy in _POLICIES
        if (splits or policy.factor == _POLICIES[0].factor) and (grouped or policy.whole_groups)
    )


def _read(copied: Trainable, policy: PruningPolicy, caches: Sequence[Cache]) -> Prunable:
    analysis = analysed(copied.module, frozenset(copied.inputs), policy, caches)
    found = [group for group in groups(analysis) if len(group.labels) > 1]
    if not found:
        reasons = "; ".join(analysis.channels.reasons)
        raise NoBranchError(
            f"no channels to remove: {reasons or 'all are tied to its input or output'}"
        )
    return Prunable(copied, analysis, found)


def _check_borders(interval: Interval, block: Prunable) -> None:
    """Refuse a run of blocks without removable channels at its inner borders."""
    inner = {name for part in interval.blocks[:-1] for name in part.outputs}
    inner -= {cache.present for cache in interval.caches}
    free = {label for group in block.groups for label in group.labels}
    channels = block.analysis.channels
    borders = (
        channels.roots(labels)
        for node, dims in block.analysis.dims.items()
        if node.name in inner
        for labels in dims
    )
    if inner and not any(free.intersection(roots.tolist()) for roots in borders):
        raise NoBranchError("no channels of its inner borders can be removed")


def _elements(analysis: Analysis, found: list[Group]) -> int:
    """Number of weights of the removable channels."""
    free = [label for group in found for label in group.labels]
    total = 0
    for node, dims in analysis.dims.items():
        if node.op == "get_attr":
            whole = rest = 1
            for labels in dims:
                whole *= len(labels)
                rest *= int((~np.isin(analysis.channels.roots(labels), free)).sum())
            total += whole - rest
    return total
