"""A supernet → the files and the manifest of a bundle."""

from __future__ import annotations

from collections.abc import Callable

from fxelastic.backends import description
from fxelastic.backends.onnxruntime.conversion import DEFAULT_OPSET, convert, tool_versions
from fxelastic.backends.onnxruntime.files import FileWriter
from fxelastic.backends.onnxruntime.pieces import branch_pieces
from fxelastic.backends.onnxruntime.teacher import (
    batch_size,
    make_inputs,
    teacher_values,
    without_special_sizes,
)
from fxelastic.ir.supernet import Supernet
from fxelastic.spec.manifest import BackendInfo, Manifest

NAME = "onnxruntime"

# torch.export treats a size of 1 as a constant.
_MIN_DYNAMIC = 2


def write_bundle(
    supernet: Supernet,
    writer: FileWriter,
    opset: int = DEFAULT_OPSET,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Convert every branch and write the files of a bundle, except for ``manifest.json``.

    Args:
        supernet: The supernet; it and the modes of its modules do not change.
        writer: Writes into the bundle's folder.
        opset: Version of the ONNX operator set.
        seed: Seed of the inputs of the conversion.
        progress: Called with a short text at each step.

    Returns:
        The manifest, without a verification.

    Raises:
        ExportError: The exporter can't convert a branch, or devices don't support a value.
        OSError: The files can't be written.
    """
    partition = supernet.partition
    # Descriptions may fail, and come before the conversion, which takes a while.
    values = description.describe_values(partition)
    results = description.describe_results(partition)
    structure = description.describe_structure(partition.signature.result)
    n_samples = batch_size(partition)
    if partition.dynamic_batch:
        n_samples = max(n_samples, _MIN_DYNAMIC)
    sizes = {s.symbol.name: s.symbol.traced for s in partition.symbols if not s.is_batch}
    inputs = make_inputs(partition, n_samples, seed, sizes=sizes)
    crossing = teacher_values(supernet, inputs)
    pieces = branch_pieces(supernet, without_special_sizes(partition, crossing))
    names = description.device_names(partition)
    values = description.with_ranges(values, {names[k]: value for k, value in crossing.items()})
    conversion = convert(pieces, opset, progress)
    progress("writing the files")
    infos = {value.name: value for value in values}
    segments, data = writer.write(supernet.branches.values(), conversion.models, infos)
    for name, tensor in description.constant_results(partition).items():
        path = infos[names[name]].constant
        assert path is not None
        data.append(writer.write_constant(path, description.tensor_bytes(tensor)))
    return Manifest(
        description.describe_model(partition, batch_size(partition)),
        BackendInfo(
            NAME,
            opset,
            "one-by-one" if conversion.reason else "at-once",
            conversion.reason,
            tool_versions(),
        ),
        description.describe_blocks(partition),
        tuple(segments),
        values,
        partition.signature.names,
        results,
        structure,
        tuple(data),
        batched=partition.batched,
    )
