"""Inputs of a model at any batch size, and the values that its blocks compute for them.

Data may choose sizes, such as the rows of an expert. A router may send no row to an expert, or a
single one: a comparison with torch then says nothing, and torch.export takes a size of 0 or 1 for a
constant. `inputs_with_rows` looks for inputs without such sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from fxelastic.errors import ExportError
from fxelastic.ir.graph_symbols import concrete_shape
from fxelastic.ir.partition import Partition
from fxelastic.ir.signature import batch_dims
from fxelastic.ir.supernet import Supernet
from fxelastic.ir.values import data_dims

_LEAST = 2
_TRIES = 16

#: What operators of torch raise for values or sizes that they don't take.
FAILURES = (RuntimeError, IndexError)


def batch_size(partition: Partition) -> int:
    """The example inputs' batch size; 1 if none of their sizes depends on the batch.

    If the model fixes it, it is the size of the first input that holds samples.
    """
    batch = next((s.symbol for s in partition.symbols if s.is_batch), None)
    if batch is not None:
        return batch.example
    if partition.dynamic_batch or not partition.batched:
        return 1
    name, dim = next(iter(partition.batch_dims.items()))
    return int(partition.example[partition.signature.names.index(name)].shape[dim])


def make_inputs(
    partition: Partition,
    n_samples: int,
    seed: int,
    *,
    own: bool = False,
    sizes: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Synthetic inputs like the example's.

    Floating-point inputs are random with the example's mean and spread. Other inputs (token ids,
    masks) repeat the example's own samples in turn.

    Args:
        partition: The model.
        n_samples: The batch size; ignored if the model fixes it.
        seed: The same seed gives the same inputs.
        own: Repeat the example's own samples for floating-point inputs too.
        sizes: Values of other sizes that may vary; the example's for those without an entry.

    Returns:
        The model's inputs by name.
    """
    if len(partition.example) != len(partition.signature.inputs):
        raise ExportError(
            "the partition has no example inputs",
            expected="a supernet of fxelastic.expand",
            got=f"{len(partition.example)} example inputs",
        )
    generator = torch.Generator().manual_seed(seed)
    inputs: dict[str, Any] = {}
    for node, example in zip(partition.placeholders, partition.example, strict=True):
        value = example
        if isinstance(value, torch.Tensor):
            value = value.detach()
            like = node.meta["val"]
            shape = concrete_shape(like, partition.symbols, _all_sizes(partition, n_samples, sizes))
            for dim in batch_dims(like):
                if shape[dim] != value.shape[dim]:
                    rows = torch.arange(shape[dim], device=value.device) % value.shape[dim]
                    value = value.index_select(dim, rows)
            if not own and value.is_floating_point() and bool(value.isfinite().all()):
                value = _like(value, generator)
        inputs[node.name] = value
    return inputs


def sizes_to_convert(partition: Partition, n_samples: int) -> dict[str, int]:
    """The sizes besides the batch at which to convert branches.

    torch.export takes a size of 1 for a constant, and pooling may leave a single row of the
    example's sizes. Up to 8 times larger ones are tried then.

    Args:
        partition: The model.
        n_samples: The batch size.

    Returns:
        The sizes by name: those of the capture, if no others leave two rows everywhere.
    """
    symbols = [s.symbol for s in partition.symbols if not s.is_batch]
    traced = {symbol.name: symbol.traced for symbol in symbols}
    names = {name for block in partition.blocks for name in block.inputs}
    crossing = [node for name in names if _expressions(node := partition.nodes[name])]
    for times in (1, 2, 4, 8):
        sizes = {symbol.name: symbol.traced_at(times) for symbol in symbols}
        known = _all_sizes(partition, n_samples, sizes)
        shapes = ((n, concrete_shape(n.meta["val"], partition.symbols, known)) for n in crossing)
        if all(shape[dim] >= _LEAST for node, shape in shapes for dim in _expressions(node)):
            return sizes
    return traced


def _all_sizes(
    partition: Partition, n_samples: int, sizes: Mapping[str, int] | None
) -> dict[str, int]:
    batch = {s.symbol.name: n_samples for s in partition.symbols if s.is_batch}
    return {**batch, **(sizes or {})}


def _like(value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    wide = value.double()
    spread = float(wide.std(correction=0)) if value.numel() else 0.0
    drawn = torch.randn(value.shape, generator=generator, dtype=torch.float64, device="cpu")
    noise = drawn.to(value.device)
    return (
        (float(wide.mean()) + (spread or 1.0) * noise).to(value.dtype) if value.numel() else value
    )


def teacher_values(supernet: Supernet, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Run the model and record every value that crosses a cut.

    Args:
        supernet: The supernet; its originals run.
        inputs: The model's inputs by name.

    Returns:
        Copies of the inputs, and the values, by name.
    """
    parameter = next(supernet.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    values = {
        name: value.to(device).clone() if isinstance(value, torch.Tensor) else value
        for name, value in inputs.items()
    }
    with torch.no_grad():
        for branch in supernet.path():
            result = branch.module(*branch.operands(values))
            results = (result,) if len(branch.outputs) == 1 else result
            values.update(zip(branch.outputs, results, strict=True))
    return values


def synthetic_values(
    supernet: Supernet, n_samples: int, seed: int, sizes: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Synthetic inputs, and the values that the model's own blocks compute for them, by name.

    The inputs are those of `inputs_with_rows`. If the model does not take random numbers, since a
    floating-point input holds indices, they are the example's own samples.

    Args:
        supernet: The supernet.
        n_samples: The batch size.
        seed: The same seed gives the same inputs.
        sizes: As in `make_inputs`.
    """
    partition = supernet.partition
    try:
        return teacher_values(supernet, inputs_with_rows(partition, n_samples, seed, sizes))
    except FAILURES:
        own = make_inputs(partition, n_samples, seed, own=True, sizes=sizes)
        return teacher_values(supernet, own)


def inputs_with_rows(
    partition: Partition, n_samples: int, seed: int, sizes: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Synthetic inputs for which no size that data choose is 0 or 1, if such inputs are found.

    If the model has such sizes, up to 16 draws are tried: other random numbers, the example's own
    samples, and mixtures of both.

    Args:
        partition: The model.
        n_samples: The batch size.
        seed: The same seed gives the same inputs.
        sizes: As in `make_inputs`.

    Returns:
        The first draw without sizes of 0 or 1, or the one with the fewest.
    """
    chosen = _chosen(partition)
    if not chosen:
        return make_inputs(partition, n_samples, seed, sizes=sizes)
    best: dict[str, Any] = {}
    least = None
    for inputs in _draws(partition, n_samples, seed, sizes):
        try:
            missing = _missing(partition, inputs, chosen)
        except FAILURES:
            # A model may fail on a mixture of samples, but must take the first draw.
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
    """The values, with sizes of 0 or 1 that data chose changed to at least 2.

    Args:
        partition: The model.
        values: Values that cross a cut, by name.

    Returns:
        The same values; resized values repeat their elements, or hold zeros if they had none. They
        serve a conversion, for which only shapes matter.
    """
    nodes = partition.nodes
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
            # A different size for each symbol, since the exporter identifies equal sizes.
            replaced[symbol] = next(n for n in range(_LEAST, 2**31) if n not in taken)
            taken.add(replaced[symbol])
    changed = {symbol for symbol in chosen if replaced[symbol] != sizes.get(symbol)}
    result = dict(values)
    for name in values:
        for dim, expression in _expressions(nodes[name]).items():
            if changed & expression.free_symbols:
                result[name] = _resized(result[name], dim, int(expression.subs(replaced)))
    return result


def _draws(
    partition: Partition, n_samples: int, seed: int, sizes: Mapping[str, int] | None
) -> Iterator[dict[str, Any]]:
    own = make_inputs(partition, n_samples, seed, own=True, sizes=sizes)
    yield make_inputs(partition, n_samples, seed, sizes=sizes)
    yield own
    for i in range(1, _TRIES // 2):
        drawn = make_inputs(partition, n_samples, seed + 7919 * i, sizes=sizes)
        yield drawn
        yield _mixed(partition, own, drawn)


def _mixed(
    partition: Partition, own: Mapping[str, Any], drawn: Mapping[str, Any]
) -> dict[str, Any]:
    """Samples of two draws in turn."""
    mixed = dict(drawn)
    for node in partition.placeholders:
        for dim in batch_dims(node.meta.get("val")):
            even = torch.arange(0, own[node.name].shape[dim], 2, device=own[node.name].device)
            rows = own[node.name].index_select(dim, even)
            mixed[node.name] = mixed[node.name].index_copy(dim, even, rows)
    return mixed


def _missing(
    partition: Partition, inputs: Mapping[str, Any], chosen: Mapping[fx.Node, tuple[int, ...]]
) -> int:
    """The total by which the sizes that data choose fall short of 2."""
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
    """The values with sizes that data choose, and the dimensions of these sizes."""
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
