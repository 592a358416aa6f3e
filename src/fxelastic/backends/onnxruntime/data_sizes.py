"""Sizes that data choose, such as the rows of an expert, in what an export is made from.

A router may send no row to an expert, or one. A comparison with torch says nothing then, and
torch.export takes a size of 0 or 1 for a constant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from fxelastic.backends.onnxruntime.teacher import make_inputs
from fxelastic.ir.partition import Partition
from fxelastic.ir.signature import batch_dims
from fxelastic.ir.values import data_dims

_LEAST = 2
_TRIES = 16


def inputs_with_rows(partition: Partition, n_samples: int, seed: int) -> dict[str, Any]:
    """Made-up inputs for which no size that data choose is 0 or 1, if the draws give such inputs.

    Where the model has such sizes, up to 16 draws are tried: other random numbers, the example's
    own samples, and both mixed.

    Args:
        partition: The model.
        n_samples: The batch size.
        seed: The same seed gives the same inputs.

    Returns:
        The first draw without such sizes, or the one with the fewest.
    """
    chosen = _chosen(partition)
    if not chosen:
        return make_inputs(partition, n_samples, seed)
    best: dict[str, Any] = {}
    least = None
    for inputs in _draws(partition, n_samples, seed):
        try:
            missing = _missing(partition, inputs, chosen)
        except RuntimeError:
            # A model may refuse a mix of samples; it must take the first draw.
            if least is None:
                raise
            continue
        if least is None or missing < least:
            best, least = inputs, missing
        if not missing:
            break
    return best


def has_rows(partition: Partition, inputs: Mapping[str, Any]) -> bool:
    """Whether no size that data choose is 0 or 1 for these inputs."""
    chosen = _chosen(partition)
    given = {name: inputs[name] for name in partition.signature.inputs}
    return not chosen or not _missing(partition, given, chosen)


def without_special_sizes(partition: Partition, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, resized to at least 2 where data chose a size of 0 or 1.

    Args:
        partition: The model.
        values: Values that cross a cut, by name.

    Returns:
        The same values; resized ones repeat their elements, or hold zeros if they had no elements.
        Only their shapes mean something, for a conversion.
    """
    nodes = {node.name: node for node in partition.graph.nodes}
    sizes = {
        expression: int(value.shape[dim])
        for name, value in values.items()
        for dim, expression in _expressions(nodes[name]).items()
        if expression.is_Symbol
    }
    chosen = {s for name in values for s in free_unbacked_symbols(nodes[name].meta.get("val"))}
    taken = {size for value in values.values() for size in getattr(value, "shape", ())}
    replaced = dict(sizes)
    for symbol in sorted(chosen, key=str):
        if sizes.get(symbol, 0) < _LEAST:
            # A size of its own for each symbol: the exporter takes equal sizes for the same one.
            replaced[symbol] = next(n for n in range(_LEAST, 2**31) if n not in taken)
            taken.add(replaced[symbol])
    changed = {symbol for symbol in chosen if replaced[symbol] != sizes.get(symbol)}
    result = dict(values)
    for name in values:
        for dim, expression in _expressions(nodes[name]).items():
            if changed & expression.free_symbols:
                result[name] = _resized(result[name], dim, int(expression.subs(replaced)))
    return result


def _draws(partition: Partition, n_samples: int, seed: int) -> Iterator[dict[str, Any]]:
    own = make_inputs(partition, n_samples, seed, own=True)
    yield make_inputs(partition, n_samples, seed)
    yield own
    for i in range(1, _TRIES // 2):
        drawn = make_inputs(partition, n_samples, seed + 7919 * i)
        yield drawn
        yield _mixed(partition, own, drawn)


def _mixed(
    partition: Partition, own: Mapping[str, Any], drawn: Mapping[str, Any]
) -> dict[str, Any]:
    """Every other sample of two draws."""
    mixed = dict(drawn)
    for node in partition.graph.nodes:
        if node.op == "placeholder":
            for dim in batch_dims(node.meta.get("val")):
                even = torch.arange(0, own[node.name].shape[dim], 2, device=own[node.name].device)
                rows = own[node.name].index_select(dim, even)
                mixed[node.name] = mixed[node.name].index_copy(dim, even, rows)
    return mixed


def _missing(
    partition: Partition, inputs: Mapping[str, Any], chosen: Mapping[fx.Node, tuple[int, ...]]
) -> int:
    """By how much the sizes that data choose fall short of 2, in total."""
    run = _SizeRecorder(partition.graph_module, chosen)
    weight = next(partition.graph_module.parameters(), None)
    device = torch.device("cpu") if weight is None else weight.device
    operands = [v.to(device) if isinstance(v, torch.Tensor) else v for v in inputs.values()]
    with torch.no_grad():
        run.run(*operands)
    return sum(max(0, _LEAST - size) for size in run.sizes)


class _SizeRecorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, chosen: Mapping[fx.Node, tuple[int, ...]]) -> None:
        super().__init__(module)
        self._chosen = chosen
        self.sizes: list[int] = []

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.sizes += [int(result.shape[dim]) for dim in self._chosen.get(n, ())]
        return result


def _chosen(partition: Partition) -> dict[fx.Node, tuple[int, ...]]:
    """The values with sizes that data choose, and these sizes."""
    found = {node: data_dims(node.meta.get("val")) for node in partition.graph.nodes}
    return {node: dims for node, dims in found.items() if dims}


def _expressions(node: fx.Node) -> dict[int, Any]:
    """The symbolic sizes of a value, by dimension."""
    value = node.meta.get("val")
    shape: tuple[Any, ...] = tuple(value.shape) if isinstance(value, torch.Tensor) else ()
    return {i: size.node.expr for i, size in enumerate(shape) if isinstance(size, torch.SymInt)}


def _resized(value: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    """A tensor with another size in a dimension."""
    if not value.shape[dim]:
        return value.new_zeros((*value.shape[:dim], size, *value.shape[dim + 1 :]))
    rows = torch.arange(size, device=value.device) % value.shape[dim]
    return value.index_select(dim, rows)
