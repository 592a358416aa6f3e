"""Partition: `Traced` → `Partition`. The passes in the order in which they run."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

from torch import fx

from fxelastic.errors import UsageError
from fxelastic.ir.block import OpenedModule
from fxelastic.ir.fusion import FusionRule, FusionRules
from fxelastic.ir.operators import is_tensor, operator_name
from fxelastic.ir.partition import Partition
from fxelastic.ir.quiet import collector_paused
from fxelastic.ir.traced import Traced
from fxelastic.passes.assemble import assemble
from fxelastic.passes.flow import Flow, analyse_flow
from fxelastic.passes.packing import FindRule, Pack, pack_units
from fxelastic.passes.regions import Unit, find_units
from fxelastic.passes.repeats import instance_path, repeating_units
from fxelastic.passes.rewriting import expand_splits, separate_mixtures

logger = logging.getLogger(__name__)


def check_gamma(gamma: float) -> None:
    """Check gamma.

    Raises:
        UsageError: ``gamma`` is not a number in (0, 1].
    """
    if isinstance(gamma, bool) or not isinstance(gamma, (int, float)) or not 0 < gamma <= 1:
        raise UsageError(
            f"gamma must be above 0 and at most 1, got {gamma!r}",
            expected="a number above 0 and at most 1",
            got=repr(gamma),
            fix="pass for example gamma=0.1: no block has more than 10 % of the parameters",
        )


def partition_graph(traced: Traced, gamma: float, fusion: FusionRules) -> Partition:
    """Cut a captured graph into basic blocks (AdaptiveNet §4.1).

    Args:
        traced: The captured model; it is not changed.
        gamma: Cap on a block's parameters, as a share of P0, in (0, 1].
        fusion: The inference framework's fusion rules.

    Returns:
        The partition, verified.

    Raises:
        UsageError: gamma is out of range, or the model has no parameters to divide.
        PartitionError: The result breaks an invariant (a bug in this package).
    """
    check_gamma(gamma)
    with collector_paused():
        partition = _partition(traced, gamma, fusion)
    partition.verify()
    return partition


def _partition(traced: Traced, gamma: float, fusion: FusionRules) -> Partition:
    flow = analyse_flow(traced.graph_module)
    separated = separate_mixtures(traced, flow)
    if separated is not None:
        traced = separated
        flow = analyse_flow(traced.graph_module)
    n_params = _count(flow)
    if not n_params:
        raise UsageError(
            f"{traced.model_name} has no parameters that its forward reads",
            expected="a model with parameters to divide into blocks",
            got="a graph without any",
            fix="partition the part of the system that has weights",
        )
    cap = _cap(gamma, n_params)
    repeating = repeating_units(flow.operands, flow.parameters)
    units = find_units(flow, cap, repeating)
    expanded = expand_splits(traced, flow, units)
    if expanded is not None:
        logger.debug("splits whose parts go to different regions become slices")
        traced = expanded
        flow = analyse_flow(traced.graph_module)
        units = find_units(flow, cap, repeating)
    find_rule = _rule_finder(fusion, flow)
    packs = _packs(units, flow, cap, repeating, find_rule)

    def pack_at(gamma: float) -> list[Pack]:
        larger = _cap(gamma, n_params)
        return _packs(find_units(flow, larger, repeating), flow, larger, repeating, find_rule)

    result = assemble(traced, flow, packs, cap, find_rule)
    return Partition(
        graph_module=result.graph_module,
        blocks=result.blocks,
        gamma=float(gamma),
        signature=traced.signature,
        fusion=fusion,
        soft_fusions=result.soft_fusions,
        untaken_cuts=result.untaken_cuts,
        opened_modules=opened_modules(flow, packs, gamma, n_params, repeating, pack_at),
        unused_params=traced.unused_params,
        dynamic_batch=traced.dynamic_batch,
        symbols=traced.symbols,
        batch_dims=traced.batch_dims,
        batch_reason=traced.batch_reason,
        caches=result.caches,
        model_name=traced.model_name,
        opaque=traced.opaque,
        warnings=traced.warnings,
        example=traced.example,
    )


def _cap(gamma: float, n_params: int) -> float:
    return gamma * n_params * (1 + 1e-9)


def _packs(
    units: Sequence[Unit],
    flow: Flow,
    cap: float,
    repeating: frozenset[str],
    find_rule: FindRule,
) -> list[Pack]:
    """The blocks of the stream for a cap."""
    packs = pack_units(units, flow, cap, repeating, find_rule)
    opened: frozenset[fx.Node] = frozenset()
    while more := _to_open(packs, cap) - opened:
        opened |= more
        units = find_units(flow, cap, repeating, opened)
        packs = pack_units(units, flow, cap, repeating, find_rule)
    return packs


def _to_open(packs: Sequence[Pack], cap: float) -> frozenset[fx.Node]:
    """Regions that fit the cap alone, but not together with the operators fused to them."""
    return frozenset(
        kept.value
        for pack in packs
        if not pack.glue and pack.n_params > cap
        for kept in pack.kept
        if kept.openable
    )


def _count(flow: Flow) -> int:
    found: dict[str, int] = {}
    for parameters in flow.parameters.values():
        found.update(parameters)
    return sum(found.values())


def _rule_finder(fusion: FusionRules, flow: Flow) -> FindRule:
    """A lookup of fusion rules for edges of the stream, cached for each pair of operators."""
    stream = set(flow.stream)
    known: dict[tuple[str, str, bool], FusionRule | None] = {}

    def find(producer: fx.Node, consumer: fx.Node) -> FusionRule | None:
        source = producer
        while not isinstance(source.meta.get("val"), tuple) and operator_name(source) == "getitem":
            source = source.all_input_nodes[0]
        constant = all(
            operand is producer or (operand not in stream and operand.op != "placeholder")
            for operand in consumer.all_input_nodes
            if is_tensor(operand)
        )
        key = (operator_name(source), operator_name(consumer), constant)
        if key not in known:
            known[key] = fusion.match(*key)
        return known[key]

    return find


#: Modules above this multiple of the cap get no note: gamma is meant to open them.
_MOST = 1.25
_DIGITS = 3


def opened_modules(
    flow: Flow,
    packs: Sequence[Pack],
    gamma: float,
    n_params: int,
    repeating: frozenset[str],
    pack_at: Callable[[float], Sequence[Pack]],
) -> tuple[OpenedModule, ...]:
    """Find the repeating modules that are cut because they exceed the cap by a little.

    Args:
        flow: The classified graph.
        packs: The blocks.
        gamma: Their cap, as a share of the parameters.
        n_params: Parameters of the model.
        repeating: Instances of the repeating units.
        pack_at: Returns the blocks for another gamma.

    Returns:
        A note for each such module, in graph order, with a gamma that keeps it whole.
    """
    members: dict[str, list[fx.Node]] = {}
    for node in flow.stream:
        if flow.parameters[node]:
            for key in instance_path(node):
                if key in repeating:
                    members.setdefault(key, []).append(node)
    cap = gamma * n_params
    packs_at: dict[float, Sequence[Pack]] = {}
    found = []
    for key, nodes in members.items():
        size = sum({k: n for node in nodes for k, n in flow.parameters[node].items()}.values())
        if not cap < size <= _MOST * cap or _is_whole(nodes, packs):
            continue
        larger = _rounded_up(size / n_params)
        if larger not in packs_at:
            packs_at[larger] = pack_at(larger)
        if _is_whole(nodes, packs_at[larger]):
            found.append(OpenedModule(key, size, size / cap - 1, larger))
    return tuple(found)


def _is_whole(nodes: Sequence[fx.Node], packs: Sequence[Pack]) -> bool:
    return any(not pack.glue and set(nodes) <= set(pack.nodes) for pack in packs)


def _rounded_up(share: float) -> float:
    """The share rounded up to three digits."""
    digits = _DIGITS - 1 - math.floor(math.log10(share))
    scale = 10.0**digits
    return min(1.0, round(math.ceil(share * scale - 1e-9) / scale, digits))
