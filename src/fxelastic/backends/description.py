"""A supernet's description in a bundle's manifest, for any backend."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from fxelastic.errors import ExportError, InternalError
from fxelastic.ir import trees
from fxelastic.ir.branch import Branch
from fxelastic.ir.liveness import Liveness
from fxelastic.ir.operators import attribute
from fxelastic.ir.partition import Partition
from fxelastic.ir.value_names import value_names
from fxelastic.ir.values import Values, one_line
from fxelastic.spec.bundle_files import DATA_FOLDER
from fxelastic.spec.cache import Cache
from fxelastic.spec.manifest import BlockInfo, ModelInfo, Result
from fxelastic.spec.structure import is_plain
from fxelastic.spec.symbols import BATCH
from fxelastic.spec.value_info import DTYPES, ValueInfo


def describe_model(partition: Partition, batch_size: int) -> ModelInfo:
    """The model, with a digest of its graph and weights."""
    return ModelInfo(
        partition.model_name,
        _digest(partition),
        partition.n_params,
        partition.dynamic_batch,
        batch_size,
        next((s.symbol.name for s in partition.symbols if s.is_batch), BATCH),
        tuple(s.symbol for s in partition.symbols if not s.is_batch),
    )


def fixed_batch_dims(partition: Partition) -> dict[str, int]:
    """If the batch size is fixed, the dimension of the samples where it is not 0, by input."""
    dims = {} if partition.dynamic_batch else partition.batch_dims
    return {name: dim for name, dim in dims.items() if dim}


def describe_blocks(partition: Partition) -> tuple[BlockInfo, ...]:
    """The blocks in execution order."""
    return tuple(BlockInfo(block.name, block.kind) for block in partition.blocks)


def describe_values(partition: Partition) -> tuple[ValueInfo, ...]:
    """Every value that crosses a cut, including inputs and results.

    Raises:
        ExportError: A value is not a tensor, or has a dtype that devices don't support.
    """
    liveness, types = Liveness(partition), Values(partition)
    names = device_names(partition)
    values = []
    for name, produced in liveness.produced.items():
        last_read = liveness.last_read.get(name, -1)
        if produced < 0 or last_read > produced:
            values.append(_describe(name, names, types, produced, last_read))
    inputs = [value for value in values if value.produced < 0]
    if partition.dynamic_batch and not any(None in value.shape for value in inputs):
        raise InternalError(
            "the batch size of a dynamic capture is fixed",
            expected="a size that depends on the batch in one of the inputs",
            got=", ".join(map(str, inputs)),
        )
    n_blocks = len(partition.blocks)
    for name in constant_results(partition):
        file = f"{DATA_FOLDER}/{name}.bin"
        values.append(_describe(name, names, types, -1, n_blocks, file))
    return tuple(values)


def with_ranges(described: Sequence[ValueInfo], values: Mapping[str, Any]) -> tuple[ValueInfo, ...]:
    """Add the ranges of integers and booleans to descriptions.

    Args:
        described: From `describe_values`.
        values: The values for the example inputs, by their names on the device.
    """
    return tuple(
        replace(info, range=_range(values[info.name])) if info.name in values else info
        for info in described
    )


def _range(value: Any) -> tuple[int, int] | None:
    if not isinstance(value, torch.Tensor) or not value.numel():
        return None
    if value.is_floating_point() or value.is_complex():
        return None
    array = value.detach().cpu().numpy()
    return int(array.min()), int(array.max())


def device_names(partition: Partition) -> dict[str, str]:
    """Names of the graph's values on a device.

    Inputs have the user's names, other values the graph's. A value whose name is an input's gets a
    number.
    """
    inputs = partition.signature.names
    names = dict(zip(partition.signature.inputs, inputs, strict=True))
    others = [node.name for node in partition.graph.nodes if node.name not in names]
    taken = {*inputs, *others}
    for value in others:
        name, n = value, 2
        while value in inputs and name in taken:
            name, n = f"{value}_{n}", n + 1
        taken.add(name)
        names[value] = name
    return names


def describe_caches(partition: Partition) -> tuple[Cache, ...]:
    """The inputs that results extend, by their names on a device."""
    names = device_names(partition)
    return tuple(
        replace(cache, past=names[cache.past], present=names[cache.present])
        for cache in partition.caches
    )


def on_device(branch: Branch, names: Mapping[str, str]) -> Branch:
    """A branch whose entry in the search space has the names that its caches have on a device.

    Args:
        branch: The branch.
        names: From `device_names`.
    """
    cache = tuple(
        replace(kept, past=names[kept.past], present=names[kept.present])
        for kept in branch.spec.cache
    )
    return replace(branch, spec=replace(branch.spec, cache=cache))


def constant_results(partition: Partition) -> dict[str, torch.Tensor]:
    """Results of the model that don't depend on its inputs, by their names in the graph."""
    found: dict[str, torch.Tensor] = {}
    for node in _results(partition):
        if node.op == "get_attr":
            value = attribute(partition.graph_module, str(node.target))
            assert isinstance(value, torch.Tensor)
            found[node.name] = value.detach()
    return found


def describe_results(partition: Partition) -> tuple[Result, ...]:
    """The flat results, each with a unique name: ``logits``, ``boxes_0``, ``output``."""
    signature, values = partition.signature, device_names(partition)
    names = value_names(signature.result, signature.names, "output")
    nodes = _results(partition)
    return tuple(Result(n, values[node.name]) for n, node in zip(names, nodes, strict=True))


def describe_structure(tree: trees.Tree) -> dict[str, Any]:
    """A result's structure as JSON (see `fxelastic.spec.structure`)."""
    return _structure(tree, iter(range(len(trees.leaf_names(tree, "")))))


def _structure(tree: trees.Tree, indices: Iterator[int]) -> dict[str, Any]:
    if isinstance(tree, trees.Leaf):
        return {"tensor": next(indices)}
    if isinstance(tree, trees.Constant):
        value = tree.value
        return {"value": value} if is_plain(value) else {"text": one_line(repr(value))}
    assert isinstance(tree, trees.Node)
    children = [_structure(child, indices) for child in tree.children]
    if tree.kind in ("tuple", "list"):
        return {tree.kind: children}
    if len({str(key) for key in tree.keys}) < len(tree.keys):
        raise ExportError(
            "a result has keys that are equal in JSON",
            expected="keys with different texts",
            got=", ".join(map(repr, tree.keys)),
            fix="rename the results of the model",
        )
    return {"dict": dict(zip(tree.keys, children, strict=True)), "type": tree.kind}


def _describe(
    name: str,
    names: Mapping[str, str],
    types: Values,
    produced: int,
    last_read: int,
    constant: str | None = None,
) -> ValueInfo:
    kind = types.type(name)
    if kind.dtype not in DTYPES:
        raise ExportError(
            f"the value {names[name]!r} can't cross a cut or be a result on a device",
            expected="a tensor of one of " + ", ".join(DTYPES),
            got=str(kind),
            fix="return tensors only; for a value between blocks, a larger gamma may help",
        )
    dims = tuple(int(size) if size.isdigit() else size for size in kind.shape)
    return ValueInfo(names[name], kind.dtype, dims, produced, last_read, constant)


def _results(partition: Partition) -> tuple[fx.Node, ...]:
    outputs: Any = partition.output_node.args[0]
    nodes = tuple(outputs)
    for node in nodes:
        if not isinstance(node, fx.Node):
            raise InternalError(
                "the captured graph returns a result that it does not compute",
                expected="the result of a node",
                got=repr(node),
            )
    return nodes


def _digest(partition: Partition) -> str:
    digest = hashlib.sha256()
    for node in partition.graph.nodes:
        digest.update(one_line(node.format_node() or str(node)).encode())
        digest.update(b"\n")
        for name, tensor in _weights(partition.graph_module, node).items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def _weights(root: nn.Module, node: fx.Node) -> Mapping[str, torch.Tensor]:
    if node.op == "get_attr":
        value = attribute(root, str(node.target))
        return {str(node.target): value} if isinstance(value, torch.Tensor) else {}
    if node.op == "call_module":
        state: dict[str, torch.Tensor] = root.get_submodule(str(node.target)).state_dict()
        return state
    return {}


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """The elements in C order, little endian."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
