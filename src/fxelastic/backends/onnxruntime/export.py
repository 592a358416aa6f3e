"""A supernet → the files and the manifest of a bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from fxelastic.backends import description
from fxelastic.backends.onnxruntime.conversion import DEFAULT_OPSET, convert, tool_versions
from fxelastic.backends.onnxruntime.files import Described, FileWriter
from fxelastic.backends.onnxruntime.pieces import branch_pieces
from fxelastic.backends.onnxruntime.quantisation.branches import quantise_branches
from fxelastic.backends.onnxruntime.quantisation.calibration import CalibrationData
from fxelastic.backends.onnxruntime.quantisation.options import Int8
from fxelastic.backends.onnxruntime.teacher import (
    batch_size,
    make_inputs,
    sizes_to_convert,
    teacher_values,
    without_special_sizes,
)
from fxelastic.ir.supernet import Supernet
from fxelastic.spec.manifest import BackendInfo, Manifest
from fxelastic.spec.quantised import Quantisation
from fxelastic.spec.search_space import SearchSpace

NAME = "onnxruntime"

# torch.export treats a size of 1 as a constant.
_MIN_DYNAMIC = 2


def write_bundle(
    supernet: Supernet,
    writer: FileWriter,
    opset: int = DEFAULT_OPSET,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
    quantise: tuple[Int8, CalibrationData] | None = None,
) -> Manifest:
    """Convert every branch and write the files of a bundle, except for ``manifest.json``.

    Args:
        supernet: The supernet; it and the modes of its modules do not change.
        writer: Writes into the bundle's folder.
        opset: Version of the ONNX operator set.
        seed: Seed of the inputs of the conversion.
        progress: Called with a short text at each step.
        quantise: How to make branches of kind ``int8``, and the data to calibrate them on; None
            for none.

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
    sizes = sizes_to_convert(partition, n_samples)
    inputs = make_inputs(partition, n_samples, seed, own=True, sizes=sizes)
    crossing = teacher_values(supernet, inputs)
    pieces = branch_pieces(supernet, without_special_sizes(partition, crossing))
    names = description.device_names(partition)
    values = description.with_ranges(values, {names[k]: value for k, value in crossing.items()})
    conversion = convert(pieces, opset, progress)
    infos = {value.name: value for value in values}
    own = [description.on_device(branch, names) for branch in supernet.branches.values()]
    branches: list[Described] = list(own)
    models, made, record = dict(conversion.models), {}, None
    if quantise is not None:
        options, samples = quantise
        found = quantise_branches(own, models, infos, options, *samples.parts, progress)
        models |= {branch.id: branch.model for branch in found.branches}
        made = {branch.id: branch.quantised for branch in found.branches}
        branches = _ordered(len(partition.blocks), [*branches, *found.branches])
        values = tuple(replace(info, int8=found.scales.get(info.name)) for info in values)
        record = Quantisation(options.ranges, samples.n_samples, samples.n_held_out, found.refused)
    progress("writing the files")
    caches = description.describe_caches(partition)
    segments, data = writer.write(branches, models, infos, caches)
    segments = [replace(segment, quantised=made.get(segment.id)) for segment in segments]
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
        int8=record,
        fixed_batch_dims=description.fixed_batch_dims(partition),
        caches=caches,
    )


def _ordered(n_blocks: int, branches: Sequence[Described]) -> list[Described]:
    """The branches in the search space's order."""
    by_id = {branch.spec.id: branch for branch in branches}
    space = SearchSpace(n_blocks, tuple(branch.spec for branch in branches))
    return [by_id[spec.id] for spec in space.branches]
