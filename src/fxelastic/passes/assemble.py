"""Turn packs into blocks over a graph whose nodes are in block order."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from fxelastic.errors import InternalError
from fxelastic.ir.block import Block, BlockKind, SoftFusion, UntakenCut
from fxelastic.ir.flops import node_flops
from fxelastic.ir.flops_by_size import FlopsBySize
from fxelastic.ir.graph_symbols import GraphSymbol, one_sample
from fxelastic.ir.operators import node_parameters
from fxelastic.ir.traced import Traced
from fxelastic.passes.contexts import arrange_contexts
from fxelastic.passes.flow import Flow
from fxelastic.passes.packing import FindRule, Pack
from fxelastic.passes.repeats import STRUCTURAL, block_label, instance_path
from fxelastic.passes.sizes import size_from
from fxelastic.spec.cache import Cache


@dataclass(frozen=True)
class Assembled:
    """Blocks and the graph that they refer to."""

    graph_module: fx.GraphModule
    blocks: tuple[Block, ...]
    soft_fusions: tuple[SoftFusion, ...]
    untaken_cuts: tuple[UntakenCut, ...]
    caches: tuple[Cache, ...]


@dataclass(frozen=True)
class _Draft:
    """A block's operators in the captured graph, before they are copied."""

    label: str
    nodes: tuple[fx.Node, ...]
    pack: Pack | None
    path: str


def assemble(
    traced: Traced, flow: Flow, packs: Sequence[Pack], cap: float, find_rule: FindRule
) -> Assembled:
    """Build the final graph and describe each block.

    Args:
        traced: The captured model; it is not changed.
        flow: Its classification.
        packs: The stream's blocks, in execution order.
        cap: Most parameters of a basic block.
        find_rule: The backend's fusion rules.

    Returns:
        The blocks with names, kinds, parameters and operations.
    """
    drafts = _drafts(traced, flow, packs, find_rule)
    graph, copies, members = _reorder(traced, drafts)
    graph_module = fx.GraphModule(traced.graph_module, graph, class_name=traced.model_name)
    caches = tuple(Cache(c.past.name, copies[c.present].name, c.dim) for c in flow.caches)
    presents = [cache.present for cache in caches]
    reads = [
        {copies[node].name for node in draft.pack.reads} if draft.pack else set()
        for draft in drafts
    ]
    blocks = _describe(graph_module, drafts, members, reads, cap, traced.symbols, presents)
    names = {
        draft.pack.nodes: block.name
        for draft, block in zip(drafts, blocks, strict=True)
        if draft.pack
    }
    return Assembled(
        graph_module,
        blocks,
        _soft_fusions(flow, drafts, copies, find_rule),
        tuple(
            UntakenCut(copies[kept.value].name, names[pack.nodes], kept.reason)
            for pack in packs
            for kept in pack.kept
        ),
        caches,
    )


def _drafts(traced: Traced, flow: Flow, packs: Sequence[Pack], find_rule: FindRule) -> list[_Draft]:
    position = {node: i for i, node in enumerate(traced.graph.nodes)}
    plan = arrange_contexts(flow, packs, find_rule)
    sizes = _module_sizes(flow)
    drafts = []
    for segment in plan.segments:
        path = _shared_path(segment)
        drafts.append(_Draft(f"{path}:context" if path else "context", segment, None, path))
    for i, pack in enumerate(packs):
        nodes = list(pack.nodes)
        nodes += [node for reader in pack.nodes for node in flow.attached.get(reader, ())]
        nodes += plan.absorbed.get(i, ())
        nodes.sort(key=position.__getitem__)
        if pack.home is not None and pack.home.startswith(STRUCTURAL):
            drafts.append(_Draft(pack.home.replace(STRUCTURAL, "unit"), tuple(nodes), pack, ""))
            continue
        label = block_label(_core(pack), pack.path, pack.home, sizes)
        drafts.append(_Draft(label, tuple(nodes), pack, pack.path[-1] if pack.path else ""))
    return drafts


def _core(pack: Pack) -> list[fx.Node]:
    """The operators that give a block its name: those of its unit, without absorbed ones."""
    if not pack.path:
        return list(pack.nodes)
    inside = [node for node in pack.nodes if pack.path[-1] in instance_path(node)]
    return inside or list(pack.nodes)


def _module_sizes(flow: Flow) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for node in flow.stream:
        for key in instance_path(node):
            sizes[key] = sizes.get(key, 0) + 1
    return sizes


def _shared_path(nodes: Sequence[fx.Node]) -> str:
    paths = [instance_path(node) for node in nodes]
    shared = []
    for keys in zip(*paths, strict=False):
        if len(set(keys)) > 1:
            break
        shared.append(keys[0])
    return shared[-1] if shared else ""


def _reorder(
    traced: Traced, drafts: Sequence[_Draft]
) -> tuple[fx.Graph, dict[fx.Node, fx.Node], list[list[fx.Node]]]:
    """Copy the graph with its operators in block order."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in traced.graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            copies[node] = graph.node_copy(node)
    members: list[list[fx.Node]] = []
    for draft in drafts:
        block: list[fx.Node] = []
        for node in draft.nodes:
            new = _rebound_size(graph, node, draft.pack, copies, block)
            if new is None:
                new = graph.node_copy(node, copies.__getitem__)
                block.append(new)
            copies[node] = new
        members.append(block)
    graph.node_copy(traced.graph.output_node(), copies.__getitem__)
    return graph, copies, members


def _rebound_size(
    graph: fx.Graph,
    node: fx.Node,
    pack: Pack | None,
    copies: Mapping[fx.Node, fx.Node],
    block: list[fx.Node],
) -> fx.Node | None:
    """Compute a size of a model input from the block's own input instead, if that is possible."""
    if pack is None or node.target is not torch.ops.aten.sym_size.int or not pack.reads:
        return None
    source, size = node.args[0], node.meta["val"]
    if not isinstance(source, fx.Node) or source.op != "placeholder" or source in pack.reads:
        return None
    if not isinstance(size, torch.SymInt):
        return None
    before = graph._root.prev
    new = size_from(graph, copies[pack.reads[0]], size.node.expr, node)
    if new is None:
        return None
    added = []
    last = graph._root.prev
    while last is not before:
        added.append(last)
        last = last.prev
    block.extend(reversed(added))
    return new


def _describe(
    graph_module: fx.GraphModule,
    drafts: Sequence[_Draft],
    members: Sequence[Sequence[fx.Node]],
    stream_inputs: Sequence[Collection[str]],
    cap: float,
    symbols: tuple[GraphSymbol, ...],
    presents: Collection[str],
) -> tuple[Block, ...]:
    sizes, by_size = one_sample(symbols), FlopsBySize(graph_module.graph, symbols)
    home = {node: i for i, nodes in enumerate(members) for node in nodes}
    counted: set[int] = set()
    taken: set[str] = set()
    blocks = []
    for i, (draft, nodes) in enumerate(zip(drafts, members, strict=True)):
        reads = dict.fromkeys(
            operand.name
            for node in nodes
            for operand in node.all_input_nodes
            if operand.op != "get_attr" and home.get(operand) != i
        )
        inputs = tuple(name for name in reads if name in stream_inputs[i])
        context = tuple(name for name in reads if name not in stream_inputs[i])
        if draft.pack and not draft.pack.glue and not inputs and context:
            # A first layer after a context: the context is its input.
            inputs, context = context[:1], context[1:]
        escaping = [node for node in nodes if any(home.get(r) != i for r in node.users)]
        # A cache that only the model's result reads comes after the block's own output.
        escaping.sort(key=lambda node: node.name in presents and _only_returned(node, home, i))
        outputs = tuple(node.name for node in escaping)
        own, shared, n_params = _count(graph_module, nodes, counted)
        blocks.append(
            Block(
                name=_unique(draft.label, taken),
                kind=_kind(draft.pack, n_params, cap),
                nodes=tuple(node.name for node in nodes),
                n_params=n_params,
                input=inputs[0] if inputs else None,
                output=outputs[0],
                context=context,
                inputs=inputs,
                outputs=outputs,
                params=own,
                shared_params=shared,
                flops=sum(node_flops(node, sizes) for node in nodes),
                flops_by_size=by_size.of(nodes),
                path=draft.path,
                reason=_reason(draft.pack, n_params, cap),
            )
        )
    return tuple(blocks)


def _only_returned(node: fx.Node, home: Mapping[fx.Node, int], i: int) -> bool:
    """Whether no other block than block ``i`` reads a value."""
    return all(reader.op == "output" or home.get(reader) == i for reader in node.users)


def _count(
    graph_module: fx.GraphModule, nodes: Sequence[fx.Node], counted: set[int]
) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    """Parameters that a block counts, parameters shared with an earlier block, and the count."""
    own: list[str] = []
    shared: list[str] = []
    seen: set[int] = set()
    n_params = 0
    for node in nodes:
        for name, parameter in node_parameters(node, graph_module).items():
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if id(parameter) in counted:
                shared.append(name)
            else:
                own.append(name)
                n_params += parameter.numel()
    counted |= seen
    return tuple(own), tuple(shared), n_params


def _kind(pack: Pack | None, n_params: int, cap: float) -> BlockKind:
    if pack is None:
        return "context"
    if pack.glue:
        return "glue"
    return "basic" if n_params <= cap else "oversize"


def _reason(pack: Pack | None, n_params: int, cap: float) -> str:
    if pack is None:
        return ""
    if pack.glue:
        return pack.reason
    if n_params <= cap:
        return ""
    fused = dict.fromkeys(kept.rule for kept in pack.kept if kept.rule)
    if fused:
        return f"cannot be split below the cap: fused ({', '.join(fused)})"
    weighty = [node.name for node in pack.nodes if node_flops(node) or node.op == "call_module"]
    if pack.reason and len(pack.nodes) > 1:
        return f"cannot be split below the cap: {pack.reason}"
    return f"cannot be split below the cap: one operator ({(weighty or [pack.nodes[0].name])[0]})"


def _unique(label: str, taken: set[str]) -> str:
    name, n = label, 2
    while name in taken:
        name, n = f"{label}#{n}", n + 1
    taken.add(name)
    return name


def _soft_fusions(
    flow: Flow,
    drafts: Sequence[_Draft],
    copies: Mapping[fx.Node, fx.Node],
    find_rule: FindRule,
) -> tuple[SoftFusion, ...]:
    home = {node: draft for draft in drafts for node in draft.nodes}
    found = []
    for value, draft in home.items():
        readers = flow.readers.get(value) or tuple(value.users)
        if len(readers) != 1 or home.get(readers[0], draft) is draft:
            continue
        rule = find_rule(value, readers[0])
        if rule is None:
            continue
        if rule.soft:
            reason = "no other cut was possible"
        elif _is_executed_only(draft) or _is_executed_only(home[readers[0]]):
            reason = "a region above the cap was opened, or a context is computed once for all"
        else:
            raise InternalError(f"the cut at {value.name} separates a pair of {rule.name}")
        found.append(SoftFusion(rule.name, copies[value].name, copies[readers[0]].name, reason))
    return tuple(found)


def _is_executed_only(draft: _Draft) -> bool:
    """Whether a draft becomes a block that is never replaced: glue or context."""
    return draft.pack is None or draft.pack.glue
