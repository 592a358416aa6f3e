"""Write the branches' ONNX files, with shared tensors in separate files."""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import onnx_ir as ir

from fxelastic.backends.onnxruntime.half_storage import store_halves
from fxelastic.errors import ExportError
from fxelastic.spec.branch_spec import BranchSpec
from fxelastic.spec.bundle_files import BRANCHES_FOLDER, DATA_FOLDER, FileInfo, file_stem
from fxelastic.spec.cache import Cache
from fxelastic.spec.segment import Segment
from fxelastic.spec.value_info import ValueInfo


class Described(Protocol):
    """A branch as its segment describes it; see `Segment`."""

    @property
    def spec(self) -> BranchSpec: ...  # noqa: D102

    @property
    def approximate(self) -> bool: ...  # noqa: D102

    @property
    def note(self) -> str: ...  # noqa: D102


@dataclass(frozen=True)
class FileWriter:
    """Writes ONNX files into a bundle's folder.

    A file holds its own weights, so that it can be copied and inspected alone. There are two
    exceptions, which go to other files (ONNX's external data): tensors that several branches
    share, and the weights of a branch that is too large for an ONNX file.

    Attributes:
        folder: The bundle.
        max_file_bytes: Most bytes of weights in an ONNX file; protobuf has a limit of 2 GiB.
        min_shared_bytes: Smaller tensors are repeated instead of shared.
        half: Store weights in 16 bits where these hold them without a loss.
    """

    folder: Path
    max_file_bytes: int = 2**31 - 2**24
    min_shared_bytes: int = 2**14
    half: bool = False

    def write(
        self,
        branches: Iterable[Described],
        models: Mapping[str, ir.Model],
        values: Mapping[str, ValueInfo],
        caches: Sequence[Cache] = (),
    ) -> tuple[list[Segment], list[FileInfo]]:
        """Write a file for each branch.

        Args:
            branches: The branches in the search space's order.
            models: Their graphs, by id; the call sets the sizes of inputs and outputs.
            values: Descriptions of the inputs and outputs.
            caches: The model's caches.

        Returns:
            The segments in the same order, and the files with shared or large tensors.

        Raises:
            ExportError: A converted value has another dtype than the captured one.
            OSError: The disk is full, or the folder can't be written.
        """
        (self.folder / DATA_FOLDER).mkdir(parents=True, exist_ok=True)
        saved = {name: store_halves(m.graph) if self.half else 0 for name, m in models.items()}
        shared = self._shared(models.values())
        data: dict[str, FileInfo] = {}
        taken: set[str] = set()
        segments = []
        for branch in branches:
            spec = branch.spec
            model = models[spec.id]
            _annotate(spec, model.graph, values, caches)
            outside = self._outside(model.graph, shared)
            weight_bytes = sum(_tensor(value).nbytes for value in _initializers(model.graph))
            weight_bytes += saved[branch.spec.id]  # once it is open
            files = []
            for value in outside:
                digest = shared.get(id(value)) or _digest(_tensor(value))
                file = self._write_tensor(_tensor(value), digest, data)
                files.append(file.path)
                value.const_value = ir.ExternalTensor(
                    posixpath.relpath(file.path, BRANCHES_FOLDER),
                    0,
                    file.size_bytes,
                    _tensor(value).dtype,
                    shape=ir.Shape(_tensor(value).shape.numpy()),
                    name=str(value.name),
                    base_dir=str(self.folder / BRANCHES_FOLDER),
                )
            path = f"{BRANCHES_FOLDER}/{file_stem(branch.spec.id, taken)}.onnx"
            proto = ir.to_proto(model)
            segments.append(
                Segment(
                    spec,
                    self._write(path, proto.SerializeToString(deterministic=True)),
                    tuple(str(value.name) for value in model.graph.inputs),
                    tuple(str(value.name) for value in model.graph.outputs),
                    weight_bytes,
                    tuple(dict.fromkeys(files)),
                    branch.approximate,
                    branch.note,
                )
            )
        return segments, list(data.values())

    def write_constant(self, path: str, data: bytes) -> FileInfo:
        """Write the elements of a constant result."""
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        return self._write(path, data)

    def _shared(self, models: Iterable[ir.Model]) -> dict[int, str]:
        """Digests of the tensors that several branches hold, by id, without small tensors.

        Only tensors that agree in a sample of their elements are hashed.
        """
        alike: dict[object, list[tuple[int, ir.Value]]] = defaultdict(list)
        for i, model in enumerate(models):
            for value in _initializers(model.graph):
                if _tensor(value).nbytes >= self.min_shared_bytes:
                    alike[_sample(_tensor(value))].append((i, value))
        users: dict[str, set[int]] = defaultdict(set)
        digests: dict[int, str] = {}
        for held in alike.values():
            if len({i for i, _ in held}) > 1:
                for i, value in held:
                    digests[id(value)] = _digest(_tensor(value))
                    users[digests[id(value)]].add(i)
        return {value: digest for value, digest in digests.items() if len(users[digest]) > 1}

    def _outside(self, graph: ir.Graph, shared: Mapping[int, str]) -> list[ir.Value]:
        """The weights of a branch that go to other files."""
        large = [v for v in _initializers(graph) if _tensor(v).nbytes >= self.min_shared_bytes]
        n_bytes = sum(_tensor(value).nbytes for value in _initializers(graph))
        if n_bytes > self.max_file_bytes:
            return large
        return [value for value in large if id(value) in shared]

    def _write_tensor(
        self, tensor: ir.TensorProtocol, digest: str, data: dict[str, FileInfo]
    ) -> FileInfo:
        if digest not in data:
            data[digest] = self._write(f"{DATA_FOLDER}/{digest[:32]}.bin", tensor.tobytes())
        return data[digest]

    def _write(self, path: str, data: bytes) -> FileInfo:
        with (self.folder / path).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return FileInfo(path, len(data), hashlib.sha256(data).hexdigest())


def _initializers(graph: ir.Graph) -> list[ir.Value]:
    return list(graph.initializers.values())


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    return value.const_value


def _sample(tensor: ir.TensorProtocol) -> object:
    """A sample of elements, which few different tensors have in common."""
    elements = tensor.numpy().reshape(-1)
    return tensor.dtype, tuple(tensor.shape), elements[:: max(1, elements.size // 64)].tobytes()


def _digest(tensor: ir.TensorProtocol) -> str:
    kind = f"{tensor.dtype} {list(tensor.shape)}".encode()
    return hashlib.sha256(kind + tensor.tobytes()).hexdigest()


def _annotate(
    spec: BranchSpec, graph: ir.Graph, values: Mapping[str, ValueInfo], caches: Sequence[Cache]
) -> None:
    """Set the sizes of inputs and outputs from the descriptions of the values."""
    computed = {str(value.name) for value in graph.outputs}
    # Of the past of another layer, a branch reads the length alone.
    others = {cache.past for cache in caches if cache.present not in computed}
    kept = {name: part for part in spec.cache for name in (part.past, part.present)}
    for value in (*graph.inputs, *graph.outputs):
        info = values[str(value.name)]
        if value.dtype is None or _dtype_name(value.dtype) != info.dtype:
            raise ExportError(
                f"the exporter changes the dtype of {info.name!r} of branch {spec.id!r}",
                expected=info.dtype,
                got="no dtype" if value.dtype is None else _dtype_name(value.dtype),
                fix="compute with the real and the imaginary parts separately"
                if info.dtype.startswith("complex")
                else "report it, with the model",
            )
        dims = kept[info.name].shape(info.dims) if info.name in kept else info.dims
        if info.name in others:
            free = (f"{info.name}_{i}" for i in range(len(dims)))
            dims = tuple(d if isinstance(d, str) else n for d, n in zip(dims, free, strict=True))
        value.shape = ir.Shape(list(dims))


def _dtype_name(dtype: ir.DataType) -> str:
    return str(dtype.numpy())
