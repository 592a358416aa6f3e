"""One block in the place of several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, fx

from fxelastic.branches.projection import obstacle, project
from fxelastic.branches.propagation import (
    computes_nothing,
    graph_flops,
    is_feature,
    misfit,
    same_kind,
)
from fxelastic.branches.retarget import retarget
from fxelastic.branches.trainable import Trainable, trainable
from fxelastic.errors import UsageError
from fxelastic.ir.branch import Branch, Crossings, Skip
from fxelastic.ir.operators import operator_name
from fxelastic.ir.partition import Partition
from fxelastic.spec import BranchSpec, branch_id

KIND = "merged"
_REPLACEABLE = ("basic", "oversize")
#: A block of exactly the run's shapes is taken though it is not the largest, down to this share.
_FITTING_SHARE = 0.25


@dataclass(frozen=True)
class Merged:
    """A trained copy of one block in the place of a run of blocks.

    A run ``[i, k)`` replaces ``j + 1`` blocks, for each ``j`` of ``spans``, with the glue between
    them. It has one stream value in and one out; where that takes more (the paths of an opened
    region side by side), it goes on to the next such cut, up to twice as many blocks.

    The copy is that of the largest block which stands between exactly these shapes, if one does
    that is not far smaller than the largest of all. Else it is the largest block's, with its outer
    layers changed to the run's shapes, or with projections at its ends. Its parameters never
    exceed those of the largest block by more than its projections, which the branch's note tells.

    What stands before the first and after the last block that has its like in the model, the stem
    and the head, is not merged: a copy of a classifier would cost more than it saves.

    Attributes:
        spans: How many further blocks a branch replaces beside its first.

    Source: AdaptiveNet, section 4.1, the blocks ``B_i^(j)``.
    """

    spans: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        """Refuse spans that are none.

        Raises:
            UsageError: One is no integer of at least 1.
        """
        for span in self.spans:
            if isinstance(span, bool) or not isinstance(span, int) or span < 1:
                raise UsageError(
                    "a span is no number of further blocks",
                    expected="integers of at least 1, like spans=(1, 2)",
                    got=repr(self.spans),
                )

    def make(self, partition: Partition, seed: int = 0) -> Iterator[Branch | Skip]:
        """Make the branches.

        Args:
            partition: What to make them for.
            seed: Not used: a copy starts from the model's weights, a projection as an identity.

        Yields:
            A branch for each run, or the reason why there is none.
        """
        crossings = Crossings(partition)
        first, last = _repeating(partition)
        done: set[tuple[int, int]] = set()
        for start, block in enumerate(partition.blocks):
            if block.kind in _REPLACEABLE:
                for span in sorted(set(self.spans)):
                    run = _run(partition, crossings, start, span)
                    if run is not None and (run.start, run.stop) not in done:
                        done.add((run.start, run.stop))
                        if first <= start and run.blocks[-1] <= last:
                            yield run.branch()
                        else:
                            yield run.skip("the run reaches into the model's stem or head")


def _repeating(partition: Partition) -> tuple[int, int]:
    """The first and the last block whose operators another block has too, in the same order."""
    nodes = {node.name: node for node in partition.graph.nodes}
    kinds = {
        i: tuple(operator_name(nodes[name]) for name in block.nodes)
        for i, block in enumerate(partition.blocks)
        if block.kind in _REPLACEABLE
    }
    counts = Counter(kinds.values())
    repeated = [i for i, kind in kinds.items() if counts[kind] > 1]
    return (repeated[0], repeated[-1]) if repeated else (0, len(partition.blocks))


def _run(partition: Partition, crossings: Crossings, start: int, span: int) -> _Run | None:
    """The shortest run with one input and one output; the shortest of all where there is none."""
    blocks: list[int] = []
    shortest: _Run | None = None
    for i in range(start, len(partition.blocks)):
        if partition.blocks[i].kind in _REPLACEABLE:
            blocks.append(i)
        if len(blocks) > 2 * (span + 1):
            break
        if len(blocks) > span:
            run = _Run(partition, crossings, start, i + 1, tuple(blocks))
            shortest = shortest or run
            if run.has_one_input_and_output():
                return run
    return shortest


@dataclass(frozen=True)
class _Run:
    """A run of blocks to be replaced by one."""

    partition: Partition
    crossings: Crossings
    start: int
    stop: int
    blocks: tuple[int, ...]

    def branch(self) -> Branch | Skip:
        values = {node.name: node.meta.get("val") for node in self.partition.graph.nodes}
        inputs, outputs = self._ends()
        if len(inputs) != 1 or len(outputs) != 1:
            return self.skip(
                f"the run has {_counted(len(inputs), 'input')} "
                f"and {_counted(len(outputs), 'output')}"
            )
        operand, result = values[inputs[0]], values[outputs[0]]
        if not isinstance(operand, Tensor) or not isinstance(result, Tensor):
            return self.skip("what enters or leaves the run is no tensor")
        reasons: list[str] = []
        for i in self._candidates(values, operand, result):
            made = self._made(i, values, inputs[0], operand, result)
            if isinstance(made, str):
                reasons.append(f"{self.partition.blocks[i].name}: {made}")
            elif computes_nothing(made[0].module):
                reasons.append("nothing would be left to compute: 0 FLOPs")
            else:
                copied, note = made
                return self._finished(copied, inputs, outputs, note)
        return self.skip("; ".join(dict.fromkeys(reasons)) or "no block of the run has weights")

    def has_one_input_and_output(self) -> bool:
        return all(len(values) == 1 for values in self._ends())

    def _ends(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        run = self.partition.blocks[self.start : self.stop]
        made = {name for block in run for name in block.nodes}
        read = [name for block in run for name in block.inputs if name not in made]
        return tuple(dict.fromkeys(read)), self.crossings.outputs(self.start, self.stop)

    def _candidates(
        self, values: dict[str, Tensor], operand: Tensor, result: Tensor
    ) -> Sequence[int]:
        """Blocks to copy, best first: a large one that fits, then by size."""
        blocks = self.partition.blocks
        by_size = sorted(self.blocks, key=lambda i: (-_weights(self.partition, i), i))
        by_size = [i for i in by_size if _weights(self.partition, i)]
        if not by_size:
            return ()
        least = _FITTING_SHARE * _weights(self.partition, by_size[0])
        fitting = [
            i
            for i in by_size
            if _weights(self.partition, i) >= least
            and blocks[i].input is not None
            and same_kind(values[blocks[i].input or ""], operand)
            and same_kind(values[blocks[i].output], result)
        ]
        return tuple(dict.fromkeys((*fitting, *by_size)))

    def _made(
        self, i: int, values: dict[str, Tensor], name: str, operand: Tensor, result: Tensor
    ) -> tuple[Trainable, str] | str:
        """A copy of one block between the run's shapes, or why there is none."""
        block = self.partition.blocks[i]
        live = self.crossings.live(self.start)
        missing = [value for value in block.context if value not in live]
        if missing:
            return f"it reads {missing[0]}, which is computed inside the run"
        if name in block.context and block.input != name:
            return f"it reads {name}, which its copy would get in the place of its input"
        contexts = [values[value] for value in block.context]
        copied = trainable(self.partition, i, i + 1, self.crossings)
        if len(copied.inputs) != 1 or len(copied.outputs) != 1:
            return "it has not one input and one output"
        (ended,) = self._ends()[1]
        for there, here in ((copied.inputs[0], name), (copied.outputs[0], ended)):
            if there != here and not is_feature(values[here]):
                return f"{there} and {here} are indices or flags, and mean different things"
        source, target = values[copied.inputs[0]], values[copied.outputs[0]]
        if same_kind(source, operand) and same_kind(target, result):
            return copied, f"a copy of {block.name}"
        operands = (operand, *contexts)
        if self._can_be_retargeted(i, operands, result):
            retarget(copied.module, operand, result)
            misfit(copied.module, operands, result)  # gives its nodes the shapes that FLOPs take
            return copied, f"a copy of {block.name} with other outer layers"
        for one, other in ((operand, source), (target, result)):
            problem = obstacle(one, other)
            if problem:
                return problem
        copied = trainable(self.partition, i, i + 1, self.crossings)
        own = _size(copied.module)
        added = _wrap(copied.module, (operand, source), (target, result))
        if added > own:
            return f"its projections would have {added:,} parameters, and it has {own:,}"
        problem = misfit(copied.module, operands, result)
        if problem:
            return f"projections do not lead to the run's shapes: {problem}"
        return copied, f"a copy of {block.name} between projections of {added:,} parameters"

    def _can_be_retargeted(self, i: int, operands: Sequence[Tensor], result: Tensor) -> bool:
        """Whether other outer layers fit, without a weight being made: many candidates do not."""
        probe = trainable(self.partition, i, i + 1, self.crossings, share=True).module.to("meta")
        return (
            retarget(probe, operands[0], result)
            and _size(probe) <= max(_weights(self.partition, i) for i in self.blocks)
            and not misfit(probe, operands, result)
        )

    def _finished(
        self, copied: Trainable, inputs: tuple[str, ...], outputs: tuple[str, ...], note: str
    ) -> Branch:
        copied.module.graph.lint()
        copied.module.recompile()
        spec = BranchSpec(
            branch_id(KIND, self.start, self.stop),
            KIND,
            self.start,
            self.stop,
            _size(copied.module),
            graph_flops(copied.module),
        )
        return Branch(spec, copied.module, inputs, outputs, copied.context, note=note)

    def skip(self, reason: str) -> Skip:
        return Skip(reason, KIND, self.start, self.stop)


def _weights(partition: Partition, i: int) -> int:
    """Parameters that a copy of a block has, shared ones included."""
    block = partition.blocks[i]
    names = (*block.params, *block.shared_params)
    return sum(partition.parameters[name].numel() for name in names)


def _wrap(
    module: fx.GraphModule, before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]
) -> int:
    """Put projections at both ends where the shapes differ; returns their parameters."""
    had = _size(module)
    graph = module.graph
    placeholder = next(node for node in graph.nodes if node.op == "placeholder")
    readers = list(placeholder.users)
    (output,) = (node for node in graph.nodes if node.op == "output")
    last = output.args[0]
    assert isinstance(last, fx.Node)
    if not same_kind(*before):
        first = next(node for node in graph.nodes if node.op != "placeholder")
        with graph.inserting_before(first):
            channel = _channel_dimension(readers, before[1])
            value = project(module, placeholder, *before, channel, "projection_in")
        for reader in readers:
            reader.replace_input_with(placeholder, value)
    if not same_kind(*after):
        with graph.inserting_before(output):
            channel = _channel_dimension([last], after[0])
            output.args = (project(module, last, *after, channel, "projection_out"),)
    return _size(module) - had


def _size(module: fx.GraphModule) -> int:
    return sum(p.numel() for p in module.parameters())


def _channel_dimension(nodes: Sequence[fx.Node], value: Tensor) -> int:
    """Where the channels of a value stand, by the operators at it."""
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


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"
