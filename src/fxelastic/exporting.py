"""The public function `export`: a supernet as a bundle."""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from fxelastic.backends.onnxruntime.comparison import SUBNET_TOLERANCES, TOLERANCES
from fxelastic.backends.onnxruntime.conversion import DEFAULT_OPSET
from fxelastic.backends.onnxruntime.export import write_bundle
from fxelastic.backends.onnxruntime.files import FileWriter
from fxelastic.backends.onnxruntime.half_storage import measured, rounded
from fxelastic.backends.onnxruntime.kernels import compare_kernels, optimised_kernels
from fxelastic.backends.onnxruntime.parity import Parity
from fxelastic.backends.onnxruntime.quantisation.calibration import CalibrationData
from fxelastic.backends.onnxruntime.quantisation.options import Int8
from fxelastic.backends.onnxruntime.teacher import (
    FAILURES,
    batch_size,
    has_rows,
    synthetic_values,
)
from fxelastic.backends.staging import replace_folder
from fxelastic.branches.options import as_batches, inputs_of
from fxelastic.edge.assembling import assemble
from fxelastic.edge.bundle import Bundle, files_in, load
from fxelastic.errors import UsageError
from fxelastic.exporting_int8 import check_int8
from fxelastic.files import write_durably
from fxelastic.ir.part_names import name_of
from fxelastic.ir.supernet import Supernet
from fxelastic.spec.bundle_files import MANIFEST_NAME
from fxelastic.spec.options import check_seed, check_word
from fxelastic.spec.storage import STORAGES, Storage
from fxelastic.spec.symbols import Symbol
from fxelastic.spec.verification import SoftFusionInfo, Verification
from fxelastic.threads import computing_with

logger = logging.getLogger(__name__)

_MIN_OPSET, _MAX_OPSET = 18, 25
# The largest sizes with which an export is compared, in multiples of the example's.
_LARGE = 4
# Samples of a further comparison if smaller batches leave parts of the model without rows.
_MANY = 8


def export(
    supernet: Supernet,
    path: str | os.PathLike[str],
    *,
    opset: int = DEFAULT_OPSET,
    verify: bool = True,
    force: bool = False,
    jobs: int = 1,
    n_subnets: int = 3,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[str], None] | None = None,
    quantise: Int8 | None = None,
    storage: str = "fp32",
) -> Bundle:
    """Write a supernet as a bundle: a folder that a device can search and run without torch.

    The bundle appears at ``path`` in one step when it is complete: an interrupted or failed
    export changes nothing.

    Args:
        supernet: The supernet; it does not change.
        path: The folder to write.
        opset: Version of the ONNX operator set.
        verify: Compare every file, the assembled model and some assembled subnets with torch at
            two batch sizes if the batch is dynamic, and record which fusions the cuts cost.
        force: Replace an existing bundle, if its folder holds nothing else.
        jobs: Number of files that are compared at the same time.
        n_subnets: Number of random subnets that are assembled and compared, besides the model.
        seed: Seed of the inputs of the conversion and the comparison, and of the compared subnets.
        threads: Threads that torch computes with; one where None, since more do not help.
        progress: Called with a short text at each step.
        quantise: Adds branches that compute in 8 bits, ``fxelastic.Int8(calibration=batches)``.
        storage: ``"fp16"`` rounds the weights of new branches and stores them in 16 bits. Devices
            compute with 32 bits as before, in the same time. The manifest has the largest error
            that rounding causes. The model's own blocks keep their weights.

    Returns:
        The bundle, as `fxelastic.edge.load` returns it.

    Raises:
        UsageError: An argument is not usable, or ``path`` exists.
        ExportError: The exporter can't convert a branch, or a file computes other results than
            torch; the message names branches and operators.

    Source: AdaptiveNet, section 5.
    """
    _check_arguments(supernet, opset, jobs, n_subnets)
    check_word("storage", storage, STORAGES)
    check_seed(seed)
    report = progress or (lambda _: None)
    _warn_of_nan(supernet)
    calibrated = None if quantise is None else (quantise, _calibration(supernet, quantise))
    with (
        computing_with(1 if threads is None else threads),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
        replace_folder(Path(path), files_in, force=force) as folder,
    ):
        rounding = None
        if storage == "fp16":
            supernet, rounding = _rounded(supernet, seed)
        writer = FileWriter(folder, half=rounding is not None)
        manifest = write_bundle(supernet, writer, opset, seed, report, calibrated)
        manifest = dataclasses.replace(manifest, storage=rounding)
        if verify:
            write_durably(folder / MANIFEST_NAME, manifest.to_json())
            bundle = load(folder)
            record = _verify(supernet, bundle, jobs, n_subnets, seed, report)
            if calibrated is not None and manifest.int8 is not None:
                archs = check_int8(bundle, calibrated[1].held_out, n_subnets, seed, report)
                int8 = dataclasses.replace(manifest.int8, subnets=tuple(map(str, archs)))
                manifest = dataclasses.replace(manifest, int8=int8)
            manifest = dataclasses.replace(manifest, verification=record)
        write_durably(folder / MANIFEST_NAME, manifest.to_json())
        load(folder)  # refuses a bundle that no device can read, before it gets its place
    return load(path)


def _verify(
    supernet: Supernet,
    bundle: Bundle,
    jobs: int,
    n_subnets: int,
    seed: int,
    report: Callable[[str], None],
) -> Verification:
    sizes, others, samples = _samples(supernet, seed)
    parity = Parity(supernet, samples, jobs)
    paths = {name: bundle.model_path(name) for name in supernet.branches}
    report(f"comparing {len(paths)} files with torch")
    parity.check_files(paths)
    original = bundle.space.original
    # Samples of a small space repeat.
    drawn = dict.fromkeys(supernet.space.sample(8 * n_subnets, seed))
    archs = [original, *[arch for arch in drawn if arch != original][:n_subnets]]
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name) / "original.onnx"
        for arch in archs:
            report(f"comparing subnet {archs.index(arch) + 1} of {len(archs)} with torch")
            subnet = whole if arch == original else Path(name) / "subnet.onnx"
            parity.check_subnet(arch, assemble(bundle, arch, subnet), bundle.manifest.results)
        report("comparing the kernels of the model with those of its blocks")
        kernels = compare_kernels(
            optimised_kernels(whole), (optimised_kernels(paths[name]) for name in original)
        )
    return Verification(
        sizes,
        TOLERANCES,
        SUBNET_TOLERANCES,
        tuple(map(str, archs)),
        kernels.equal,
        dict(sorted(kernels.lost.items())),
        dict(sorted(kernels.extra.items())),
        tuple(
            SoftFusionInfo(soft.rule, soft.producer, soft.consumer)
            for soft in supernet.partition.soft_fusions
        ),
        others,
    )


def _rounded(supernet: Supernet, seed: int) -> tuple[Supernet, Storage]:
    """The supernet with rounded weights of new branches, and what rounding costs."""
    half = rounded(supernet)
    values = synthetic_values(supernet, batch_size(supernet.partition), seed)
    return half, measured(supernet, half, values)


def _calibration(supernet: Supernet, options: Int8) -> CalibrationData:
    if not isinstance(options, Int8):
        raise UsageError(
            f"quantise must be an Int8, got a {type(options).__name__}",
            expected="fxelastic.Int8(calibration=batches)",
            got=repr(options),
        )
    batches = inputs_of(supernet.partition, as_batches(options.calibration))
    return CalibrationData.of(supernet.partition, batches)


def _warn_of_nan(supernet: Supernet) -> None:
    """Warn of NaN in weights, on which files and model agree."""
    names = [name_of(name) for name, value in supernet.named_parameters() if value.isnan().any()]
    if names:
        shown = ", ".join(names[:3]) + (", …" * (len(names) > 3))
        logger.warning("weights hold NaN: %s; the exported files compute NaN, as the model", shown)


def _samples(
    supernet: Supernet, seed: int
) -> tuple[tuple[int, ...], tuple[dict[str, int], ...], list[dict[str, Any]]]:
    """Values for the example's sizes and for others.

    Returns:
        The batch sizes, the other sizes besides the example's, and the values for each.
    """
    partition = supernet.partition
    size = batch_size(partition)
    sizes = [size]
    samples = [synthetic_values(supernet, size, seed)]
    # A model that takes frames by fours runs with 8 and 16 of them, but not with 9.
    others = (size + 1, 2 * size, 3 * size) if partition.dynamic_batch else ()
    _add_first(supernet, others, seed + 1, sizes, samples)
    if size < _MANY and not any(has_rows(partition, values) for values in samples):
        # Most experts get no rows from a batch of one or two.
        many = (-(-_MANY // size) * size,) if partition.dynamic_batch else ()
        _add_first(supernet, many, seed + 2, sizes, samples)
    ends = _ends([s.symbol for s in partition.symbols if not s.is_batch])
    for i, at in enumerate(ends):
        samples.append(synthetic_values(supernet, size, seed + 3 + i, at))
    return tuple(sizes), tuple(ends), samples


def _ends(symbols: Sequence[Symbol]) -> list[dict[str, int]]:
    """The smallest sizes of all symbols together, and their largest.

    Without a limit, or with one far from the example, a multiple of the example stands for the
    largest.
    """
    if not symbols:
        return []
    smallest = {s.name: s.min for s in symbols}
    return [smallest, {s.name: s.large(_LARGE) for s in symbols}]


def _add_first(
    supernet: Supernet,
    candidates: Iterable[int],
    seed: int,
    sizes: list[int],
    samples: list[dict[str, Any]],
) -> None:
    """Add values at the first batch size at which the model runs."""
    for size in candidates:
        try:
            samples.append(synthetic_values(supernet, size, seed))
        except FAILURES as e:
            logger.debug("the model does not run at batch size %d: %s", size, e)
            continue
        sizes.append(size)
        return


def _check_arguments(supernet: Supernet, opset: int, jobs: int, n_subnets: int) -> None:
    if not isinstance(supernet, Supernet):
        raise UsageError(
            f"supernet must be a Supernet, got a {type(supernet).__name__}",
            expected="a Supernet",
            got=type(supernet).__name__,
            fix="fxelastic.expand(model) makes one; kinds=() for the model's own blocks alone",
        )
    if (
        isinstance(opset, bool)
        or not isinstance(opset, int)
        or not _MIN_OPSET <= opset <= _MAX_OPSET
    ):
        raise UsageError(
            f"opset must be from {_MIN_OPSET} to {_MAX_OPSET}, got {opset!r}",
            expected=f"an integer from {_MIN_OPSET} to {_MAX_OPSET}",
            got=repr(opset),
            fix=f"leave it out for {DEFAULT_OPSET}",
        )
    for name, value, low in (("jobs", jobs, 1), ("n_subnets", n_subnets, 0)):
        if type(value) is not int or value < low:
            raise UsageError(
                f"{name} must be at least {low}, got {value!r}",
                expected=f"an integer of at least {low}",
                got=repr(value),
            )
