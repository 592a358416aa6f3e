"""Check that the parts of a manifest agree.

If they agree, every tiling of the blocks can run: each branch finds the values that it reads, and
no value is computed twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from fxelastic.errors import BundleError, UsageError
from fxelastic.spec.arch import Arch
from fxelastic.spec.bundle_files import MANIFEST_NAME
from fxelastic.spec.quantised import INT8
from fxelastic.spec.search_space import SearchSpace
from fxelastic.spec.segment import Segment
from fxelastic.spec.value_info import ValueInfo

if TYPE_CHECKING:
    from fxelastic.spec.manifest import Manifest


def check_manifest(manifest: Manifest) -> None:
    """Check that the parts of a manifest agree.

    Raises:
        BundleError: Two parts contradict each other; the message names the field.
    """
    _unique("blocks", "name", [block.name for block in manifest.blocks])
    _unique("values", "name", [value.name for value in manifest.values])
    _unique("results", "name", [result.name for result in manifest.results])
    space = search_space(manifest)
    if [segment.spec for segment in manifest.segments] != list(space.branches):
        _refuse(
            "branches", "are not in order", "by start, stop, originals first, id", "another order"
        )
    values = {value.name: value for value in manifest.values}
    example = {symbol.name: symbol.example for symbol in manifest.model.sizes}
    for i, segment in enumerate(manifest.segments):
        _check_flops(f"branches[{i}].flops_by_size", segment, example)
        _check_reads(f"branches[{i}]", segment, values)
        _check_outputs(f"branches[{i}]", segment, manifest.values)
    _check_int8(manifest)
    _check_interface(manifest, values)
    _check_caches(manifest, values)
    _check_last_reads(manifest)
    _check_files(manifest)
    verified = () if manifest.verification is None else manifest.verification.subnets
    compared = () if manifest.int8 is None else manifest.int8.subnets
    for field, texts in (("verification", verified), ("int8", compared)):
        for i, text in enumerate(texts):
            try:
                space.validate(Arch.parse(text))
            except UsageError as e:
                where = f"{field}.subnets[{i}]"
                raise _refusal(where, f"is not a subnet: {e.what}", e.expected, e.got) from e


def search_space(manifest: Manifest) -> SearchSpace:
    """The search space of a manifest's blocks and branches.

    Raises:
        BundleError: An id occurs twice, an interval exceeds the blocks, or a block does not have
            exactly one original branch.
    """
    try:
        return SearchSpace(
            len(manifest.blocks), tuple(segment.spec for segment in manifest.segments)
        )
    except UsageError as e:
        raise _refusal("branches", f"are not a search space: {e.what}", e.expected, e.got) from e


def _check_flops(where: str, segment: Segment, example: Mapping[str, int]) -> None:
    try:
        flops = segment.spec.flops_at(example)
    except ValueError as e:
        expected, got = "an expression of the model's sizes", str(segment.spec.flops_by_size)
        raise _refusal(where, f"can't be computed: {e}", expected, got) from e
    if flops != segment.spec.flops:
        _refuse(where, "contradicts flops", f"{segment.spec.flops} at {example}", str(flops))


def _check_reads(where: str, segment: Segment, values: dict[str, ValueInfo]) -> None:
    start = segment.spec.start
    for name in segment.inputs:
        value = values.get(name)
        if value is None or value.constant is not None:
            _refuse(
                f"{where}.inputs", f"name an unknown value: {name!r}", "a value of the model", name
            )
        if not value.produced < start <= value.last_read:
            _refuse(
                f"{where}.inputs",
                f"name a value that may not exist there: {name!r}",
                f"computed before block {start}, and read by it or later",
                f"computed by block {value.produced}, last read by block {value.last_read}",
            )


def _check_outputs(where: str, segment: Segment, values: Sequence[ValueInfo]) -> None:
    start, stop = segment.spec.start, segment.spec.stop
    expected = {v.name for v in values if start <= v.produced < stop <= v.last_read}
    if set(segment.outputs) != expected:
        _refuse(
            f"{where}.outputs",
            f"are not the values of blocks [{start}, {stop}) that later blocks read",
            ", ".join(sorted(expected)) or "none",
            ", ".join(segment.outputs) or "none",
        )


def _check_int8(manifest: Manifest) -> None:
    """A branch of kind int8 replaces a float branch of the same interval."""
    segments = {segment.id: segment for segment in manifest.segments}
    for i, segment in enumerate(manifest.segments):
        where, quantised = f"branches[{i}].int8", segment.quantised
        if (quantised is not None) != (segment.spec.kind == INT8):
            _refuse(where, "contradicts the kind", f"set for the kind {INT8} only", segment.id)
        if quantised is None:
            continue
        source = segments.get(quantised.source)
        if source is None or source.quantised is not None:
            _refuse(f"{where}.source", "names no float branch", "a float branch", quantised.source)
        spec, other = segment.spec, source.spec
        if (spec.start, spec.stop) != (other.start, other.stop):
            _refuse(f"{where}.source", "has another interval", str(spec), str(other))
    if manifest.int8 is None and any(segment.quantised for segment in manifest.segments):
        _refuse("int8", "is missing", "how the branches of kind int8 were made", "no such field")


def _check_interface(manifest: Manifest, values: dict[str, ValueInfo]) -> None:
    given = [v.name for v in manifest.values if v.produced == -1 and v.constant is None]
    if sorted(manifest.inputs) != sorted(given):
        _refuse(
            "inputs",
            "don't match the values that no block computes",
            str(given),
            str(manifest.inputs),
        )
    _check_batched(manifest, values)
    n_blocks = len(manifest.blocks)
    results = {result.value for result in manifest.results}
    for i, result in enumerate(manifest.results):
        if result.value not in values:
            _refuse(
                f"results[{i}].value",
                "names an unknown value",
                "a value of the model",
                result.value,
            )
    for i, value in enumerate(manifest.values):
        if (value.last_read == n_blocks) != (value.name in results):
            _refuse(
                f"values[{i}].last_read",
                "contradicts the results",
                f"{n_blocks} for results only",
                f"{value.last_read} for {value.name!r}",
            )
    clashes = [r.name for r in manifest.results if r.name in manifest.inputs]
    if clashes:
        _refuse("results", "have the name of an input", "names that no input has", clashes[0])


def _check_batched(manifest: Manifest, values: dict[str, ValueInfo]) -> None:
    model, where = manifest.model, manifest.fixed_batch_dims
    for name in where:
        if model.dynamic_batch or name not in (manifest.batched or ()):
            _refuse(
                "fixed_batch_dims",
                f"names an input without a fixed batch size: {name!r}",
                "inputs that hold samples, of a model with a fixed batch size",
                name,
            )
    for name in manifest.batched or ():
        value = values[name] if name in manifest.inputs else None
        if value is None or not (
            value.dim_of(model.batch) is not None
            if model.dynamic_batch
            else where.get(name, 0) < len(value.dims)
        ):
            _refuse(
                "batched",
                f"names an input without a batch dimension: {name!r}",
                "inputs that hold samples",
                str(values.get(name)),
            )


def _check_caches(manifest: Manifest, values: dict[str, ValueInfo]) -> None:
    results = {result.value for result in manifest.results}
    known = {}
    for i, cache in enumerate(manifest.caches):
        past, present = values.get(cache.past), values.get(cache.present)
        if past is None or past.name not in manifest.inputs or present is None:
            _refuse(f"caches[{i}]", "names an unknown value", "an input and a result", str(cache))
        if present.name not in results or cache.dim >= len(past.dims):
            _refuse(
                f"caches[{i}]", "does not lead to a result", "an input and a result", str(cache)
            )
        if len(past.dims) != len(present.dims) or past.dtype != present.dtype:
            _refuse(f"caches[{i}]", "changes the type", str(past), str(present))
        known[cache.past, cache.present] = past
    for i, segment in enumerate(manifest.segments):
        for kept in segment.spec.cache:
            past = known.get((kept.past, kept.present))
            whole = past.dims[kept.dim] if past and kept.dim < len(past.dims) else None
            fits = isinstance(whole, int) and all(index < whole for index in kept.kept)
            if not fits or kept.present not in segment.outputs:
                _refuse(
                    f"branches[{i}].cache",
                    f"does not fit the model's cache {kept.past!r}",
                    "indices of a dimension of fixed size, and an output of the branch",
                    str(kept),
                )


def _check_last_reads(manifest: Manifest) -> None:
    """A value must exist until the last original that reads it."""
    for i, value in enumerate(manifest.values):
        if value.produced >= 0 and value.last_read <= value.produced:
            _refuse(
                f"values[{i}].last_read",
                "is not after the block that computes it",
                f"more than {value.produced}",
                str(value.last_read),
            )


def _check_files(manifest: Manifest) -> None:
    paths = [segment.file for segment in manifest.segments]
    paths += [file.path for file in manifest.data]
    # Some file systems ignore case.
    _unique("branches and data", "file", [path.casefold() for path in paths])
    data = {file.path for file in manifest.data}
    for i, segment in enumerate(manifest.segments):
        folder = segment.file.rpartition("/")[0]
        for path in segment.data:
            if path not in data or not path.startswith(f"{folder}/" if folder else ""):
                _refuse(
                    f"branches[{i}].data",
                    "names an unknown file",
                    "a file listed in data, in the folder of the ONNX file",
                    path,
                )
    for i, value in enumerate(manifest.values):
        if value.constant is not None and value.constant not in data:
            _refuse(
                f"values[{i}].constant", "names an unknown file", "a file of data", value.constant
            )


def _unique(where: str, field: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            _refuse(where, f"have a duplicate {field}", "each once", name)
        seen.add(name)


def _refusal(where: str, problem: str, expected: str | None, got: str | None) -> BundleError:
    return BundleError(
        f"{MANIFEST_NAME}: {where} {problem}",
        expected=expected,
        got=got,
        fix="export the bundle again",
    )


def _refuse(where: str, problem: str, expected: str | None, got: str | None) -> NoReturn:
    raise _refusal(where, problem, expected, got)
