"""One block in place of several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, fx

from fxelastic.branches.caches import with_empty_caches
from fxelastic.branches.interval import NOTHING_LEFT, Interval, NoBranchError, n_weights
from fxelastic.branches.options import counts
from fxelastic.branches.projection import obstacle, project
from fxelastic.branches.propagation import computes_nothing, is_feature, same_kind
from fxelastic.branches.retarget import retarget
from fxelastic.branches.trainable import Trainable
from fxelastic.ir.block import REPLACEABLE
from fxelastic.ir.branch import Branch, Refusal
from fxelastic.ir.graph_symbols import GraphSymbol
from fxelastic.ir.liveness import Liveness
from fxelastic.ir.operators import operator_name
from fxelastic.ir.partition import Partition

KIND = "merged"
#: A block of exactly the run's shapes is preferred to the largest, down to this share of its size.
_FITTING_SHARE = 0.25


@dataclass(frozen=True)
class Merged:
    """A trained copy of one block in place of a run of blocks.

    For each ``j`` of ``spans``, a run ``[i, k)`` replaces ``j + 1`` blocks and the glue between
    them. It has one stream value in and one out. Where this takes more blocks (the paths of an
    opened region side by side), the run extends to the next such cut, up to twice as many blocks.

    The copy is of the largest block between exactly the run's shapes, if there is one that is not
    far smaller than the largest block of all. Otherwise it is of the largest block, with other
    outer layers or with projections at its ends. It has at most as many parameters as the largest
    block and the projections, which the branch's note counts.

    Layers that a copy replaces and does not compute have caches without elements.

    Runs do not reach into the model's stem and head, which are the blocks before the first and
    after the last block that repeats: a copy of a classifier would cost more than it saves.

    Attributes:
        spans: Numbers of further blocks that a branch replaces beside its first.

    Raises:
        UsageError: ``spans`` holds anything but integers of at least 1.

    Source: AdaptiveNet, section 4.1, the blocks ``B_i^(j)``.
    """

    spans: Sequence[int] = (1, 2)

    def __post_init__(self) -> None:
        """Check the options."""
        object.__setattr__(self, "spans", counts("spans", self.spans))

    def make(self, partition: Partition, seed: int = 0) -> Iterator[Branch | Refusal]:
        """Make the branches.

        Args:
            partition: The partition to make them for.
            seed: Not used: a copy starts from the model's weights, a projection as an identity.

        Yields:
            A branch for each run, or the reason why there is none.
        """
        liveness = Liveness(partition)
        first, last = _repeating(partition)
        done: set[tuple[int, int]] = set()
        for start, block in enumerate(partition.blocks):
            if block.kind not in REPLACEABLE:
                continue
            for span in sorted(set(self.spans)):
                run = _run(partition, liveness, start, span)
                if run is None or (run.start, run.stop) in done:
                    continue
                done.add((run.start, run.stop))
                if first <= start and max(_replaceable(run)) <= last:
                    yield run.attempt(_merged)
                else:
                    yield run.refuse("the run reaches into the model's stem or head")


def _repeating(partition: Partition) -> tuple[int, int]:
    """The first and the last block whose sequence of operators another block has too."""
    operators = {
        i: tuple(operator_name(partition.nodes[name]) for name in block.nodes)
        for i, block in enumerate(partition.blocks)
        if block.kind in REPLACEABLE
    }
    n_like = Counter(operators.values())
    repeated = [i for i, names in operators.items() if n_like[names] > 1]
    return (repeated[0], repeated[-1]) if repeated else (0, len(partition.blocks))


def _run(partition: Partition, liveness: Liveness, start: int, span: int) -> Interval | None:
    """The shortest run with one input and one output, or the shortest of all if none has."""
    n_blocks = 0
    shortest: Interval | None = None
    for i in range(start, len(partition.blocks)):
        n_blocks += partition.blocks[i].kind in REPLACEABLE
        if n_blocks > 2 * (span + 1):
            break
        if n_blocks > span:
            run = Interval(partition, liveness, KIND, start, i + 1)
            shortest = shortest or run
            if len(run.inputs) == len(run.outputs) - len(run.caches) == 1:
                return run
    return shortest


def _replaceable(run: Interval) -> list[int]:
    blocks = run.partition.blocks
    return [i for i in range(run.start, run.stop) if blocks[i].kind in REPLACEABLE]


def _merged(run: Interval) -> Branch:
    """A copy of the best block that can stand in for a run."""
    operand, result = run.ends()
    reasons: list[str] = []
    for i in _candidates(run, operand, result):
        try:
            copied, note = _fitted(run, i, operand, result)
        except NoBranchError as e:
            reasons.append(f"{run.partition.blocks[i].name}: {e}")
            continue
        if computes_nothing(copied.module, run.partition.symbols):
            reasons.append(NOTHING_LEFT)
            continue
        n_own = len(run.outputs) - len(run.caches)
        ends = replace(
            copied, inputs=run.inputs, outputs=(*run.outputs[:n_own], *copied.outputs[1:])
        )
        others = [cache for cache in run.caches if cache.present not in ends.outputs]
        ends, cache = with_empty_caches(run, ends, others)
        return run.branch(ends, note=note, cache=cache)
    raise NoBranchError("; ".join(dict.fromkeys(reasons)) or "no block of the run has weights")


def _candidates(run: Interval, operand: Tensor, result: Tensor) -> Sequence[int]:
    """Blocks to copy, best first: large blocks that fit, then all by size."""
    size = {i: _weights(run.partition, i) for i in _replaceable(run)}
    by_size = sorted((i for i in size if size[i]), key=lambda i: (-size[i], i))
    fitting = [i for i in by_size if size[i] >= _FITTING_SHARE * size[by_size[0]]]
    fitting = [i for i in fitting if _fits(run.partition, i, operand, result)]
    return tuple(dict.fromkeys((*fitting, *by_size)))


def _fits(partition: Partition, i: int, operand: Tensor, result: Tensor) -> bool:
    block = partition.blocks[i]
    return (
        block.input is not None
        and same_kind(partition.value(block.input), operand)
        and same_kind(partition.value(block.output), result)
    )


def _fitted(run: Interval, i: int, operand: Tensor, result: Tensor) -> tuple[Trainable, str]:
    """A copy of one block between the run's shapes, and how it was fitted.

    Raises:
        NoBranchError: The block can't be fitted.
    """
    partition = run.partition
    block, own = partition.blocks[i], replace(run, start=i, stop=i + 1)
    (read,), (ended, *_) = run.inputs, run.outputs
    live = run.liveness.live(run.start)
    missing = [value for value in block.context if value not in live]
    if missing:
        raise NoBranchError(f"it reads {missing[0]}, which the run computes")
    if read in block.context and block.input != read:
        raise NoBranchError(f"it reads {read}, which its copy would get in place of its input")
    copied = own.copy()
    if len(copied.inputs) != 1 or len(copied.outputs) - len(own.caches) != 1:
        raise NoBranchError("it does not have one input and one output")
    for there, here in ((copied.inputs[0], read), (copied.outputs[0], ended)):
        if there != here and not is_feature(partition.value(here)):
            raise NoBranchError(f"{there} and {here} are indices or flags with different meanings")
    source, target = (partition.value(x[0]) for x in (copied.inputs, copied.outputs))
    if same_kind(source, operand) and same_kind(target, result):
        return copied, f"a copy of {block.name}"
    operands = (operand, *(partition.value(name) for name in block.context))
    if _can_be_retargeted(run, own, operands, result):
        retarget(copied.module, operand, result, partition.symbols)
        run.misfit(copied, result, operands)  # gives its nodes the shapes that FLOPs take
        return copied, f"a copy of {block.name} with other outer layers"
    for one, other in ((operand, source), (target, result)):
        problem = obstacle(one, other, partition.symbols)
        if problem:
            raise NoBranchError(problem)
    copied = own.copy()
    n_own = n_weights(copied.module)
    try:
        added = _wrap(copied.module, (operand, source), (target, result), partition.symbols)
    except ValueError as e:
        raise NoBranchError(str(e)) from e
    if added > n_own:
        raise NoBranchError(
            f"its projections would have {added:,} parameters, more than the {n_own:,} of the copy"
        )
    problem = run.misfit(copied, result, operands)
    if problem:
        raise NoBranchError(f"projections do not lead to the run's shapes: {problem}")
    return copied, f"a copy of {block.name} between projections of {added:,} parameters"


def _can_be_retargeted(
    run: Interval, own: Interval, operands: Sequence[Tensor], result: Tensor
) -> bool:
    """Whether other outer layers fit, found without real weights: many candidates don't fit."""
    copied = own.copy(share=True)
    probe = copied.module.to("meta")
    return (
        retarget(probe, operands[0], result, run.partition.symbols)
        and n_weights(probe) <= max(_weights(run.partition, i) for i in _replaceable(run))
        and not run.misfit(copied, result, operands)
    )


def _weights(partition: Partition, i: int) -> int:
    """Number of parameters of a copy of a block, including shared ones."""
    block = partition.blocks[i]
    names = (*block.params, *block.shared_params)
    return sum(partition.parameters[name].numel() for name in names)


def _wrap(
    module: fx.GraphModule,
    before: tuple[Tensor, Tensor],
    after: tuple[Tensor, Tensor],
    symbols: Sequence[GraphSymbol],
) -> int:
    """Add projections at the ends whose shapes differ; returns their number of parameters."""
    had = n_weights(module)
    graph = module.graph
    placeholder = next(node for node in graph.nodes if node.op == "placeholder")
    readers = list(placeholder.users)
    (output,) = (node for node in graph.nodes if node.op == "output")
    results = output.args[0] if isinstance(output.args[0], tuple) else output.args[:1]
    last, *presents = results
    assert isinstance(last, fx.Node)
    if not same_kind(*before):
        first = next(node for node in graph.nodes if node.op != "placeholder")
        with graph.inserting_before(first):
            channel = _channel_dimension(readers, before[1])
            value = project(module, placeholder, *before, channel, "projection_in", symbols)
        for reader in readers:
            reader.replace_input_with(placeholder, value)
    if not same_kind(*after):
        with graph.inserting_before(output):
            channel = _channel_dimension([last], after[0])
            last = project(module, last, *after, channel, "projection_out", symbols)
        output.args = ((last, *presents) if presents else last,)
    return n_weights(module) - had


def _channel_dimension(nodes: Sequence[fx.Node], value: Tensor) -> int:
    """The dimension of a value's channels, by the operators around it."""
    last = value.dim() - 1
    pending, seen = list(nodes), 0
    while pending and seen < 64:
        node = pending.pop(0)
        seen += 1
        name = operator_name(node)
        if "conv" in name or "pool" in name or name.startswith("module:"):
            return min(1, last)
        if "linear" in name or "layer_norm" in name or "matmul" in name:
            return last
        pending += [*node.users, *node.all_input_nodes]
    return min(1, last) if value.dim() == 4 else last
