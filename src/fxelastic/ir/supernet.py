"""The third stage: a partition with branches, of which any tiling is a subnet."""

from __future__ import annotations

import copy
import operator
import re
from collections.abc import Iterable, Mapping, MutableMapping
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn

from fxelastic.errors import UsageError
from fxelastic.ir.branch import Branch, Crossings, FrozenGraphModule, Skip
from fxelastic.ir.operators import attribute
from fxelastic.ir.partition import Partition
from fxelastic.ir.signature import Signature, check_tensors
from fxelastic.ir.table import aligned, engineering
from fxelastic.spec import Arch, SearchSpace


class Supernet(nn.Module):
    """A model as a multi-path network (AdaptiveNet §4.1).

    It is called as the model is, and returns what the model returns; a keyword ``arch`` chooses
    the subnet. A model whose own ``forward`` has a parameter ``arch`` takes that by position.

    A subnet runs over named values: each branch reads the values that it names and adds its
    outputs, so that any branches that tile the blocks run after one another, whatever their kind.
    A value is dropped after the last block that reads it.

    Originals stay in eval mode and never train: their parameters require no gradients (see
    `fxelastic.branches.original`). All others do, so that an optimiser is given the parameters
    with ``requires_grad``. The subnet of originals alone computes what the model does bit for bit,
    with and without gradients: its result requires them where the model's does, though a backward
    pass leaves no gradient anywhere but in the inputs. Beside new branches, originals run over
    weights that require none, for which torch may round differently.

    Attributes:
        partition: The blocks.
        branches: Each branch by its id, in the search space's order.
        space: The search space.
        skips: What makers did not make, with the reasons.
        branch_modules: The branches' modules, by their ids as identifiers (``original_3``).
    """

    def __init__(
        self, partition: Partition, branches: Iterable[Branch], skips: Iterable[Skip] = ()
    ) -> None:
        """Put branches over a partition together.

        Args:
            partition: The blocks.
            branches: An original for each block, and any others.
            skips: What makers did not make.

        Raises:
            UsageError: The branches are no search space, or one reads what need not be there, or
                does not give what the interval's blocks give.
        """
        super().__init__()
        given = tuple(branches)
        by_id = {branch.id: branch for branch in given}
        self.partition = partition
        self.space = SearchSpace(len(partition.blocks), tuple(branch.spec for branch in given))
        self.branches: Mapping[str, Branch] = {
            spec.id: by_id[spec.id] for spec in self.space.branches
        }
        self.skips = tuple(skips)
        self._crossings = Crossings(partition)
        self.branch_modules = nn.Module()
        names: set[str] = set(dir(self.branch_modules))
        for branch in self.branches.values():
            _check_values(branch, self._crossings)
            self.branch_modules.add_module(_identifier(branch.id, names), branch.module)
        self._constants = nn.Module()
        self._results = tuple(self._result(node) for node in self._output_nodes())
        self.eval()

    def forward(self, *args: Any, arch: Arch | None = None, **kwargs: Any) -> Any:
        """Run a subnet.

        Args:
            args: The model's own positional arguments.
            arch: The subnet; the model itself where None.
            kwargs: The model's own keyword arguments.

        Returns:
            The subnet's result, in the structure of the model's. That of the originals is the
            model's, bit for bit.

        Raises:
            UsageError: The arch is none of this search space, or the arguments do not have the
                structure that the model was captured with.
        """
        values = self.bind(args, kwargs)
        branches = self.path(arch)
        as_model = all(branch.frozen for branch in branches)
        for branch in branches:
            self.run_branch(branch, values, as_model=as_model)
        return self.result(values)

    def path(self, arch: Arch | None = None) -> tuple[Branch, ...]:
        """The branches of a subnet in execution order; the originals where None.

        Raises:
            UsageError: The arch is none of this search space.
        """
        if arch is None:
            return self._original_path
        return tuple(self.branches[spec.id] for spec in self.space.specs(arch))

    @cached_property
    def _original_path(self) -> tuple[Branch, ...]:
        return self.path(self.space.original)

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The values that a call begins with: the model's inputs, by their names in the graph.

        Raises:
            UsageError: The arguments do not have the structure that the model was captured with.
        """
        signature = self.partition.signature
        leaves = signature.flatten_arguments(args, kwargs)
        check_tensors(self._placeholders, leaves)
        return dict(zip(signature.inputs, leaves, strict=True))

    @cached_property
    def _placeholders(self) -> tuple[fx.Node, ...]:
        return tuple(node for node in self.partition.graph.nodes if node.op == "placeholder")

    def run_branch(
        self, branch: Branch, values: MutableMapping[str, Any], *, as_model: bool = False
    ) -> None:
        """Run one branch.

        Args:
            branch: One of the supernet's branches; those before its interval have run.
            values: Named values. The branch's outputs are added; what no later block reads is
                removed.
            as_model: Run an original exactly as the model does, as a teacher is run: gradients
                are tracked for weights too, unless they are disabled.
        """
        operands = [values[name] for name in (*branch.inputs, *branch.context)]
        if as_model and isinstance(branch.module, FrozenGraphModule):
            result = branch.module.as_model(*operands)
        else:
            result = branch.module(*operands)
        if len(branch.outputs) == 1:
            values[branch.outputs[0]] = result
        else:
            values.update(zip(branch.outputs, result, strict=True))
        last_read = self._crossings.last_read
        for name in [name for name in values if last_read.get(name, -1) < branch.stop]:
            del values[name]

    def result(self, values: Mapping[str, Any]) -> Any:
        """The model's own result structure from the values after the last branch."""
        outputs = [
            getattr(self._constants, name) if constant else values[name]
            for name, constant in self._results
        ]
        return self.partition.signature.unflatten_result(outputs)

    def subnet(self, arch: Arch | None = None) -> fx.GraphModule:
        """One subnet as a module of its own.

        Args:
            arch: The subnet; the model itself where None.

        Returns:
            A graph module that is called as the model is and holds only this subnet's branches,
            each a submodule. It is a copy: training or moving it leaves the supernet as it is.
            Originals share their weights' memory with the model, as in the supernet.

        Raises:
            UsageError: The arch is none of this search space.
        """
        branches = self.path(arch)
        memo: dict[int, Any] = {}
        for branch in branches:
            if branch.frozen:
                _share(branch.module, memo)
        signature = self.partition.signature
        root, graph = nn.Module(), fx.Graph()
        root.add_module("arguments", _Arguments(signature, self._placeholders))
        packed = graph.placeholder("*args"), graph.placeholder("**kwargs")
        leaves = graph.call_module("arguments", packed)
        nodes = {node.name: node for node in self.partition.graph.nodes}
        values: dict[str, fx.Node] = {}

        def name_value(name: str, value: fx.Node) -> None:
            value.meta["val"] = nodes[name].meta.get("val")
            values[name] = value

        for i, name in enumerate(signature.inputs):
            name_value(name, _item(graph, leaves, i, name))
        names = {"arguments", "result"} | set(dir(fx.GraphModule))
        as_model = all(branch.frozen for branch in branches)
        for branch in branches:
            target = _identifier(branch.id, names)
            module = copy.deepcopy(branch.module, memo)
            root.add_module(target, _AsModel(module) if as_model else module)
            operands = tuple(values[name] for name in (*branch.inputs, *branch.context))
            called = graph.call_module(target, operands)
            if len(branch.outputs) == 1:
                name_value(branch.outputs[0], called)
                continue
            for i, name in enumerate(branch.outputs):
                name_value(name, _item(graph, called, i, name))
        results = []
        for name, constant in self._results:
            if constant:
                target = _identifier(name, names)
                value = getattr(self._constants, name)
                root.register_buffer(target, value, persistent=False)
                results.append(graph.get_attr(target))
            else:
                results.append(values[name])
        root.add_module("result", _Result(signature))
        graph.output(graph.call_module("result", (results,)))
        result = fx.GraphModule(root, graph, class_name=f"{self.partition.model_name}Subnet")
        result.meta["arch"] = str(arch or self.space.original)
        return result.train(self.training)

    def _output_nodes(self) -> list[fx.Node]:
        (output,) = (node for node in self.partition.graph.nodes if node.op == "output")
        nodes: list[fx.Node] = list(output.args[0])
        return nodes

    def _result(self, node: fx.Node) -> tuple[str, bool]:
        """Where a result comes from: its name, and whether it is a constant of the model."""
        if node.op != "get_attr":
            return node.name, False
        name = node.name
        value = attribute(self.partition.graph_module, str(node.target))
        if name not in self._constants._buffers:
            assert isinstance(value, torch.Tensor)
            self._constants.register_buffer(name, value.detach(), persistent=False)
        return name, True

    @property
    def n_params(self) -> int:
        """Parameters of all branches."""
        return sum(spec.n_params for spec in self.space.branches)

    def __str__(self) -> str:
        """A summary for terminals: branches of each kind, subnets, size, what was not made."""
        blocks, count = self.space.n_blocks, self.space.count()
        base = self.partition.n_params
        rows = [("kind", "branches", "params", "FLOPs", "approximate")]
        for kind in dict.fromkeys(spec.kind for spec in self.space.branches):
            branches = [branch for branch in self.branches.values() if branch.kind == kind]
            rows.append(
                (
                    kind,
                    str(len(branches)),
                    f"{sum(branch.n_params for branch in branches):,}",
                    engineering(sum(branch.flops for branch in branches)),
                    str(sum(branch.approximate for branch in branches) or "-"),
                )
            )
        ratio = f"{self.n_params / base:.2f}" if base else "-"
        lines = [
            f"Supernet of {self.partition.model_name}: {blocks} block{'s' * (blocks != 1)}, "
            f"{len(self.branches)} branch{'es' * (len(self.branches) != 1)}, "
            f"{_count(count)} subnet{'s' * (count != 1)}",
            "",
            *aligned(rows, right={1, 2, 3, 4}),
            "",
            f"{self.n_params:,} parameters, {ratio} × the model's {base:,}",
        ]
        if self.skips:
            lines += ["", f"{len(self.skips)} branches not made:"]
            lines += [f"  {_described(skip)}" for skip in self.skips]
        return "\n".join(lines)


class _Arguments(nn.Module):
    """The model's arguments as the flat tensors that its graph reads."""

    def __init__(self, signature: Signature, captured: Iterable[fx.Node]) -> None:
        super().__init__()
        self._signature = signature
        # Copies in a graph of their own: the partition's graph would be kept and copied with it.
        self._captured = fx.Graph()
        for node in captured:
            self._captured.node_copy(node)

    def forward(self, args: Any, kwargs: Any) -> list[Any]:
        # fx.Interpreter passes all that is left for a starred placeholder: an empty list here.
        leaves = self._signature.flatten_arguments(tuple(args), dict(kwargs))
        check_tensors(list(self._captured.nodes), leaves)
        return leaves


class _Result(nn.Module):
    """Flat tensors in the structure of the model's result."""

    def __init__(self, signature: Signature) -> None:
        super().__init__()
        self._signature = signature

    def forward(self, outputs: list[Any]) -> Any:
        return self._signature.unflatten_result(list(outputs))


class _AsModel(nn.Module):
    """Runs an original as the model does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *operands: Any) -> Any:
        assert isinstance(self.module, FrozenGraphModule)
        return self.module.as_model(*operands)


def _item(graph: fx.Graph, value: fx.Node, i: int, name: str) -> fx.Node:
    return graph.create_node("call_function", operator.getitem, (value, i), name=name)


def _share(module: nn.Module, memo: dict[int, Any]) -> None:
    """Have ``copy.deepcopy(module, memo)`` share memory: no copy of a frozen weight is needed."""
    for parameter in module.parameters():
        if id(parameter) not in memo:
            memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    memo.update((id(buffer), buffer) for buffer in module.buffers())


def _identifier(name: str, taken: set[str]) -> str:
    """A name for a submodule, different from those taken; takes it."""
    base = re.sub(r"\W", "_", name)
    result, n = base, 2
    while result in taken:
        result, n = f"{base}_{n}", n + 1
    taken.add(result)
    return result


def _check_values(branch: Branch, crossings: Crossings) -> None:
    """Refuse a branch that can't stand for its interval beside any others."""
    live = crossings.live(branch.start)
    missing = [name for name in (*branch.inputs, *branch.context) if name not in live]
    if missing:
        raise UsageError(
            f"branch {branch.id!r} reads {missing[0]!r}, which need not be there",
            expected=f"values that cross the cut before block {branch.start}: {', '.join(live)}",
            got=", ".join((*branch.inputs, *branch.context)),
        )
    outputs = crossings.outputs(branch.start, branch.stop)
    if sorted(branch.outputs) != sorted(outputs):
        raise UsageError(
            f"branch {branch.id!r} does not give what its interval gives",
            expected=f"outputs {', '.join(outputs) or 'none'}",
            got=f"outputs {', '.join(branch.outputs) or 'none'}",
        )


def _count(n: int) -> str:
    return f"{n:,}" if n < 10**12 else f"about {n:.2g}"


def _described(skip: Skip) -> str:
    if skip.start is None or skip.stop is None:
        return f"{skip.kind}: {skip.reason}" if skip.kind else skip.reason
    return f"{skip.kind} [{skip.start}, {skip.stop}): {skip.reason}"
