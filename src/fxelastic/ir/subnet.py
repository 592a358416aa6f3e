"""One subnet of a supernet as a separate module."""

from __future__ import annotations

import copy
import keyword
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import fx, nn

from fxelastic.ir.block import BlockGraph
from fxelastic.ir.branch import Branch
from fxelastic.ir.graph_modules import FrozenGraphModule
from fxelastic.ir.signature import InputChecks, Signature


def subnet_module(
    partition: BlockGraph,
    branches: Sequence[Branch],
    results: Iterable[tuple[str, bool]],
    constants: nn.Module,
) -> fx.GraphModule:
    """Chain branches.

    Args:
        partition: The blocks.
        branches: Branches that tile the blocks, in order.
        results: For each flat result of the model its name, and whether it is a constant.
        constants: Holds the constants, by name.

    Returns:
        A graph module with the calling convention of the model. It is a copy; frozen branches
        share their weights' memory with the model.
    """
    memo: dict[int, Any] = {}
    for branch in branches:
        if branch.frozen:
            _share(branch.module, memo)
    root, graph = nn.Module(), fx.Graph()
    cache = [kept for branch in branches for kept in branch.spec.cache]
    root.add_module("arguments", _Arguments(partition.signature, partition.checks_of(cache)))
    packed = graph.placeholder("*args"), graph.placeholder("**kwargs")
    leaves = graph.call_module("arguments", packed)
    as_model = all(branch.frozen for branch in branches)

    def module_of(branch: Branch) -> nn.Module:
        module = copy.deepcopy(branch.module, memo)
        return _AsModel(module) if as_model else module

    return _chain(partition, root, graph, leaves, branches, module_of, results, constants)


def plain_module(
    partition: BlockGraph,
    branches: Sequence[Branch],
    results: Iterable[tuple[str, bool]],
    constants: nn.Module,
) -> fx.GraphModule:
    """Chain branches as a module that depends on nothing else.

    It can be trained, captured, pickled and exported like any other module, at other sizes too.
    Its ``forward`` has the parameters of the model's by name, so that a capture finds the same
    names of inputs. Parameters that the example inputs leave out are None.

    Args:
        partition: The blocks.
        branches: Branches that tile the blocks, in order; none of them is frozen.
        results: For each flat result of the model its name, and whether it is a constant.
        constants: Holds the constants, by name.

    Returns:
        A graph module that is a copy and shares no memory with the branches or the model.
    """
    memo: dict[int, Any] = {}
    root, graph = nn.Module(), fx.Graph()
    signature = partition.signature
    names = signature.taken
    if all(name.isidentifier() and not keyword.iskeyword(name) for name in names):
        optional = [name not in signature.captured for name in names]
        given = tuple(
            # Python takes no parameter without a default after one that has a default.
            graph.placeholder(name, default_value=None)
            if any(optional[: i + 1])
            else graph.placeholder(name)
            for i, name in enumerate(names)
        )
        root.add_module("arguments", _NamedArguments(signature, names))
    else:
        given = graph.placeholder("*args"), graph.placeholder("**kwargs")
        root.add_module("arguments", _Arguments(signature))
    leaves = graph.call_module("arguments", given)

    def module_of(branch: Branch) -> nn.Module:
        return copy.deepcopy(branch.module, memo)

    result = _chain(
        partition, root, graph, leaves, branches, module_of, results, copy.deepcopy(constants)
    )
    for part in result.modules():
        if isinstance(part, fx.GraphModule):
            # Values of the capture, which refer to all of its symbols.
            for node in part.graph.nodes:
                node.meta = {}
    return result


def _chain(
    partition: BlockGraph,
    root: nn.Module,
    graph: fx.Graph,
    leaves: fx.Node,
    branches: Sequence[Branch],
    module_of: Callable[[Branch], nn.Module],
    results: Iterable[tuple[str, bool]],
    constants: nn.Module,
) -> fx.GraphModule:
    """Add the branches and the result to a graph that has the flat arguments."""
    signature = partition.signature
    values: dict[str, fx.Node] = {}

    def name_value(name: str, value: fx.Node) -> None:
        value.meta["val"] = partition.value(name)
        values[name] = value

    for i, name in enumerate(signature.inputs):
        name_value(name, _item(graph, leaves, i, name))
    names = {"arguments", "result"} | set(dir(fx.GraphModule(nn.Module(), fx.Graph())))
    for branch in branches:
        target = identifier(branch.id, names)
        root.add_module(target, module_of(branch))
        operands = tuple(values[name] for name in (*branch.inputs, *branch.context))
        called = graph.call_module(target, operands)
        if len(branch.outputs) == 1:
            name_value(branch.outputs[0], called)
            continue
        for i, name in enumerate(branch.outputs):
            name_value(name, _item(graph, called, i, name))
    outputs = []
    for name, constant in results:
        if constant:
            target = identifier(name, names)
            value = getattr(constants, name)
            root.register_buffer(target, value, persistent=False)
            outputs.append(graph.get_attr(target))
        else:
            outputs.append(values[name])
    root.add_module("result", _Result(signature))
    graph.output(graph.call_module("result", (outputs,)))
    return fx.GraphModule(root, graph, class_name=f"{partition.model_name}Subnet")


def identifier(name: str, taken: set[str]) -> str:
    """A name for a submodule that differs from all taken names; adds it to them."""
    base = re.sub(r"\W", "_", name)
    result, n = base, 2
    while result in taken:
        result, n = f"{base}_{n}", n + 1
    taken.add(result)
    return result


class _Arguments(nn.Module):
    """Flattens the model's arguments into the tensors that its graph reads."""

    def __init__(self, signature: Signature, checks: InputChecks | None = None) -> None:
        super().__init__()
        self._signature = signature
        self._checks = checks

    def forward(self, args: Any, kwargs: Any) -> list[Any]:
        # fx.Interpreter passes an empty list for a starred placeholder without arguments.
        leaves = self._signature.flatten_arguments(tuple(args), dict(kwargs))
        if self._checks is not None:
            self._checks.check(leaves)
        return leaves


class _NamedArguments(nn.Module):
    """Flattens the model's arguments, given in order, without those that are left out."""

    def __init__(self, signature: Signature, names: tuple[str, ...]) -> None:
        super().__init__()
        self._signature = signature
        self._names = names

    def forward(self, *values: Any) -> list[Any]:
        captured = self._signature.captured
        named = zip(self._names, values, strict=True)
        given = {name: value for name, value in named if value is not None or name in captured}
        return self._signature.flatten_arguments((), given)


class _Result(nn.Module):
    """Puts flat tensors into the structure of the model's result."""

    def __init__(self, signature: Signature) -> None:
        super().__init__()
        self._signature = signature

    def forward(self, outputs: list[Any]) -> Any:
        return self._signature.unflatten_result(list(outputs))


class _AsModel(nn.Module):
    """Runs a frozen branch as the model runs its block."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *operands: Any) -> Any:
        assert isinstance(self.module, FrozenGraphModule)
        return self.module.as_model(*operands)


def _item(graph: fx.Graph, value: fx.Node, i: int, name: str) -> fx.Node:
    return graph.create_node("call_function", operator.getitem, (value, i), name=name)


def _share(module: nn.Module, memo: dict[int, Any]) -> None:
    """Make ``copy.deepcopy(module, memo)`` share the memory of frozen weights."""
    for parameter in module.parameters():
        if id(parameter) not in memo:
            memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    memo.update((id(buffer), buffer) for buffer in module.buffers())
