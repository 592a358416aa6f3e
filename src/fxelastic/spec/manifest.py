"""A bundle's ``manifest.json``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fxelastic.errors import BundleError, UsageError
from fxelastic.spec import structure as structures
from fxelastic.spec.bundle_files import MANIFEST_NAME, FileInfo
from fxelastic.spec.cache import Cache
from fxelastic.spec.json_fields import Fields, parse_object, show
from fxelastic.spec.manifest_checks import check_manifest, search_space
from fxelastic.spec.quantised import Quantisation
from fxelastic.spec.search_space import SearchSpace
from fxelastic.spec.segment import Segment
from fxelastic.spec.storage import Storage
from fxelastic.spec.symbols import BATCH, SYMBOL_NAME, Symbol
from fxelastic.spec.value_info import NAME, ValueInfo
from fxelastic.spec.verification import Verification

#: The version of the format that this release reads and writes.
SCHEMA_VERSION = 1

#: How the branches were converted: all in one conversion, or one conversion for each.
CONVERSIONS = ("at-once", "one-by-one")

BLOCK_KINDS = ("basic", "oversize", "glue", "context")


@dataclass(frozen=True)
class ModelInfo:
    """The model that was exported.

    Attributes:
        name: The name of its class.
        digest: SHA-256 of its graph and weights, in hexadecimal.
        n_params: P0, the number of parameters that its graph reads.
        dynamic_batch: Whether the batch size may differ from ``batch_size``.
        batch_size: Batch size of the example inputs; 1 if no size depends on it.
        batch: Name of the batch size in shapes.
        sizes: The other sizes that may vary.
    """

    name: str
    digest: str
    n_params: int
    dynamic_batch: bool
    batch_size: int
    batch: str = BATCH
    sizes: tuple[Symbol, ...] = ()

    @cached_property
    def symbols(self) -> Mapping[str, Symbol]:
        """Every size that may vary, by name; the batch size first."""
        batch = (Symbol(self.batch, self.batch_size),) if self.dynamic_batch else ()
        return {symbol.name: symbol for symbol in (*batch, *self.sizes)}

    def sizes_at(self, batch_size: int, sizes: Mapping[str, int] | None = None) -> dict[str, int]:
        """The value of each symbol.

        Args:
            batch_size: The number of samples.
            sizes: Values of other symbols; the example's for those without an entry.

        Raises:
            UsageError: A size has an unknown name, or is outside of its symbol's range.
        """
        given = dict(sizes or {})
        for name, size in given.items():
            symbol = self.symbols.get(name)
            if symbol is None or name == self.batch:
                raise UsageError(
                    f"the model has no size {name!r} that may vary",
                    expected=", ".join(s.name for s in self.sizes) or "no sizes but the batch's",
                    got=repr(name),
                    fix="pass dynamic_shapes= to fxelastic.expand to let it vary",
                )
            if not symbol.holds(size):
                raise UsageError(f"{name} is out of range", expected=str(symbol), got=str(size))
        return {
            name: batch_size if name == self.batch else given.get(name, symbol.example)
            for name, symbol in self.symbols.items()
        }

    def to_json(self) -> dict[str, object]:
        """The model as an object for ``json.dumps``.

        Fields that earlier releases do not know are written only if they are needed.
        """
        batch = {} if self.batch == BATCH else {"batch": self.batch}
        sizes = {"sizes": [symbol.to_json() for symbol in self.sizes]} if self.sizes else {}
        return {
            "name": self.name,
            "digest": self.digest,
            "n_params": self.n_params,
            "dynamic_batch": self.dynamic_batch,
            "batch_size": self.batch_size,
            **batch,
            **sizes,
        }


@dataclass(frozen=True)
class BackendInfo:
    """The tools that made the files.

    Attributes:
        name: The inference framework: ``onnxruntime``.
        opset: Version of the ONNX operator set; the same for every file.
        conversion: ``at-once`` or ``one-by-one``.
        reason: Why the branches were not converted at once; empty if they were.
        versions: Version of each tool by name.
    """

    name: str
    opset: int
    conversion: str
    reason: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class BlockInfo:
    """A block of the partition.

    Attributes:
        name: The path of the user's module if there is one.
        kind: ``basic``, ``oversize``, ``glue`` or ``context``.
    """

    name: str
    kind: str


@dataclass(frozen=True)
class Result:
    """One flat result of the model.

    Attributes:
        name: Its name as an output of an assembled model, such as ``logits``.
        value: The name of the value that it returns.
    """

    name: str
    value: str


@dataclass(frozen=True)
class Manifest:
    """The description of a bundle, checked for consistency by `check_manifest`.

    Attributes:
        model: The model.
        backend: The tools that made the files.
        blocks: The blocks in execution order.
        segments: The branches in the search space's order.
        values: Every value that crosses a cut, inputs and results included.
        inputs: Names of the model's inputs in order.
        results: The model's flat results in order.
        structure: The structure of the model's return value; see `fxelastic.spec.structure`.
        data: Files other than ONNX files.
        verification: The results of the checks at export; None if there were no checks.
        batched: Names of the inputs that hold samples; every other input is passed whole. None in
            bundles of earlier releases.
        int8: How the branches of kind ``int8`` were made; None if there are none.
        storage: The precision of stored weights; None for that of the computation.
        fixed_batch_dims: If the batch size is fixed, the dimension of the samples in inputs that
            don't hold them in dimension 0, by name.
        caches: The inputs that results extend, such as past keys and values.
        schema_version: Version of the format.
    """

    model: ModelInfo
    backend: BackendInfo
    blocks: tuple[BlockInfo, ...]
    segments: tuple[Segment, ...]
    values: tuple[ValueInfo, ...]
    inputs: tuple[str, ...]
    results: tuple[Result, ...]
    structure: Mapping[str, Any]
    data: tuple[FileInfo, ...] = ()
    verification: Verification | None = None
    batched: tuple[str, ...] | None = None
    int8: Quantisation | None = None
    storage: Storage | None = None
    fixed_batch_dims: Mapping[str, int] = field(default_factory=dict)
    caches: tuple[Cache, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Check that the fields agree.

        Raises:
            BundleError: Two fields contradict each other; the message names one of them.
        """
        check_manifest(self)

    @cached_property
    def space(self) -> SearchSpace:
        """The search space."""
        return search_space(self)

    @cached_property
    def sample_inputs(self) -> tuple[str, ...]:
        """Names of the inputs that hold samples."""
        if self.batched is not None:
            return self.batched
        infos = [value for value in self.values if value.name in self.inputs and value.dims]
        size: object = None if self.model.dynamic_batch else self.model.batch_size
        found = {info.name for info in infos if info.shape[0] == size}
        return tuple(name for name in self.inputs if name in found)

    @cached_property
    def batch_dims(self) -> Mapping[str, int]:
        """The dimension of the samples, by the names of the inputs and results that hold some.

        In the results of a model with a fixed batch size, it is taken to be 0.
        """
        names = dict.fromkeys((*self.sample_inputs, *(result.value for result in self.results)))
        values = {value.name: value for value in self.values}
        if not self.model.dynamic_batch:
            return {name: self.fixed_batch_dims.get(name, 0) for name in names}
        dims = {name: values[name].dim_of(self.model.batch) for name in names}
        return {name: dim for name, dim in dims.items() if dim is not None}

    def to_json(self) -> bytes:
        """The bytes of ``manifest.json``: equal for equal manifests."""
        verification = self.verification
        value = {
            "schema_version": self.schema_version,
            "model": self.model.to_json(),
            "backend": {**vars(self.backend), "versions": dict(self.backend.versions)},
            "blocks": [{"name": block.name, "kind": block.kind} for block in self.blocks],
            "branches": [segment.to_json() for segment in self.segments],
            "values": [info.to_json() for info in self.values],
            "inputs": list(self.inputs),
            "batched": list(self.sample_inputs),
            **({"fixed_batch_dims": dict(self.fixed_batch_dims)} if self.fixed_batch_dims else {}),
            **({"caches": [cache.to_json() for cache in self.caches]} if self.caches else {}),
            "results": [{"name": result.name, "value": result.value} for result in self.results],
            "structure": self.structure,
            "data": [file.to_json() for file in self.data],
            "verification": None if verification is None else verification.to_json(),
            **({} if self.int8 is None else {"int8": self.int8.to_json()}),
            **({} if self.storage is None else {"storage": self.storage.to_json()}),
        }
        return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Read the bytes of ``manifest.json``.

        Raises:
            BundleError: The version is not supported, a field is missing or malformed, or two
                fields contradict each other.
        """
        fields = parse_object(data, MANIFEST_NAME)
        version = fields.take("schema_version")
        if type(version) is not int or version != SCHEMA_VERSION:
            raise BundleError(
                f"{MANIFEST_NAME}: schema_version is not supported by this release",
                expected=str(SCHEMA_VERSION),
                got=show(version),
                fix="export the bundle again, or use the release that wrote it",
            )
        blocks = fields.objects("blocks", _block)
        verification = fields.take("verification")
        manifest = cls(
            _model(fields.object("model")),
            _backend(fields.object("backend")),
            blocks,
            fields.objects("branches", Segment.from_json),
            fields.objects("values", lambda value: ValueInfo.from_json(value, len(blocks))),
            fields.texts("inputs", NAME, "a value's name"),
            fields.objects("results", _result),
            _structure(fields),
            fields.objects("data", FileInfo.from_json),
            None if verification is None else Verification.from_json(fields.object("verification")),
            fields.texts("batched", NAME, "a value's name") if "batched" in fields.value else None,
            Quantisation.from_json(fields.object("int8")) if "int8" in fields.value else None,
            Storage.from_json(fields.object("storage")) if "storage" in fields.value else None,
            _fixed_batch_dims(fields) if "fixed_batch_dims" in fields.value else {},
            fields.objects("caches", Cache.from_json) if "caches" in fields.value else (),
        )
        fields.end()
        return manifest


def _fixed_batch_dims(fields: Fields) -> Mapping[str, int]:
    dims = fields.object("fixed_batch_dims")
    return {name: dims.count(name) for name in dims.value}


def _model(fields: Fields) -> ModelInfo:
    model = ModelInfo(
        fields.text("name"),
        fields.text("digest", r"[0-9a-f]{64}", "a sha256"),
        fields.count("n_params"),
        fields.flag("dynamic_batch"),
        fields.count("batch_size", 1),
        fields.text("batch", SYMBOL_NAME, "a name") if "batch" in fields.value else BATCH,
        fields.objects("sizes", Symbol.from_json) if "sizes" in fields.value else (),
    )
    fields.end()
    names = [model.batch, *(symbol.name for symbol in model.sizes)]
    if len(set(names)) != len(names):
        raise fields.error(
            "sizes", "have a name twice", expected="distinct names", got=", ".join(names)
        )
    return model


def _backend(fields: Fields) -> BackendInfo:
    versions = fields.object("versions")
    backend = BackendInfo(
        fields.text("name", r"[a-z0-9_-]+", "a name"),
        fields.count("opset", 1, 1000),
        fields.text("conversion", "|".join(map(re.escape, CONVERSIONS)), " or ".join(CONVERSIONS)),
        fields.text("reason"),
        {tool: versions.text(tool) for tool in versions.value},
    )
    fields.end()
    return backend


def _block(fields: Fields) -> BlockInfo:
    kinds = "|".join(BLOCK_KINDS)
    return BlockInfo(fields.text("name"), fields.text("kind", kinds, f"one of {kinds}"))


def _result(fields: Fields) -> Result:
    return Result(fields.text("name", NAME, "a name"), fields.text("value", NAME, "a value's name"))


def _structure(fields: Fields) -> Mapping[str, Any]:
    structure = fields.object("structure").value
    n_results = len(fields.array("results"))
    structures.check(structure, n_results, f"{MANIFEST_NAME}: structure")
    return structure
