"""A bundle on disk: every file is verified before it is used."""

from __future__ import annotations

import copy
import hashlib
import math
import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from fxelastic.edge import authorship
from fxelastic.edge.authorship import ManifestSignature
from fxelastic.edge.bundle_reading import PrivateCopies, hash_file, read_file, stat_file
from fxelastic.edge.external_data import check_external_data
from fxelastic.edge.verified_model import VerifiedModel
from fxelastic.errors import BundleError, UsageError
from fxelastic.files import recover_folder
from fxelastic.spec import structure
from fxelastic.spec.arch import Arch
from fxelastic.spec.bundle_files import MANIFEST_NAME, SIGNATURE_NAME, FileInfo
from fxelastic.spec.cache import KeptCache
from fxelastic.spec.manifest import Manifest
from fxelastic.spec.search_space import SearchSpace
from fxelastic.spec.segment import Segment
from fxelastic.spec.symbols import dimension
from fxelastic.spec.value_info import ValueInfo


def load(
    path: str | os.PathLike[str],
    *,
    trusted_keys: Sequence[str | os.PathLike[str]] | None = None,
    least_counter: int = 0,
    subset: bool = False,
) -> Bundle:
    """Open a bundle.

    Verifies the manifest, and that each file exists and has the listed size. The bytes of a file
    are verified when it is first read.

    Args:
        path: The bundle's folder.
        trusted_keys: Files of public ed25519 keys, PEM. One of them must have signed the bundle,
            with a counter that is not lower than before; see docs/signing.md. None for a bundle
            that need not be signed.
        least_counter: The lowest counter of a signature to accept.
        subset: Whether files may be missing, such as branches that a device does not need. Reading
            one of them raises an error then.

    Returns:
        The bundle.

    Raises:
        UsageError: The folder does not exist, a key is not usable, or there is none.
        BundleError: The folder does not contain a bundle, or the bundle is damaged; the message
            names the file and the field. Or it is not signed as required.
    """
    if isinstance(trusted_keys, (str, os.PathLike)):
        trusted_keys = (trusted_keys,)
    if (least_counter and trusted_keys is None) or (trusted_keys is not None and not trusted_keys):
        raise UsageError(
            "there is no key to check a signature with",
            expected="trusted_keys=[FILE], the file of a public key",
            got=f"trusted_keys={trusted_keys!r}, least_counter={least_counter!r}",
        )
    if not isinstance(path, (str, os.PathLike)):
        raise UsageError("path must be a str or a Path", expected="a path", got=repr(path))
    folder = Path(path)
    recover_folder(folder)
    if not folder.is_dir():
        raise UsageError(
            f"the bundle {folder} does not exist",
            expected="a folder written by fxelastic.export",
            got="no folder" if not folder.exists() else "a file",
            fix="export one with fxelastic export MODEL OUT",
        )
    data = read_file(folder, FileInfo(MANIFEST_NAME, -1, ""))
    digest = hashlib.sha256(data).hexdigest()
    signature = None
    if trusted_keys is not None:
        # Before anything of the manifest is looked at.
        signature = authorship.check(
            folder, digest, trusted_keys, now_s=time.time(), least_counter=least_counter
        )
    bundle = Bundle(folder, Manifest.from_json(data), digest)
    bundle.signature = signature
    for file in bundle.files.values():
        if subset and not os.path.lexists(folder / file.path):
            bundle.missing |= {file.path}
        else:
            stat_file(folder, file)
    return bundle


def reopen(folder: Path, digest: str) -> Bundle:
    """Open a bundle that another process has verified; only its manifest is read.

    Args:
        folder: The bundle's folder.
        digest: The digest of the bundle when it was verified.

    Raises:
        BundleError: The folder no longer contains this bundle.
    """
    data = read_file(folder, FileInfo(MANIFEST_NAME, -1, ""))
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise BundleError(
            f"the bundle {folder} has changed since it was loaded",
            expected=f"sha256 {digest} of {MANIFEST_NAME}",
            got=f"sha256 {found}",
            fix="load the bundle again, with its table and pool; export each to its own folder",
        )
    return Bundle(folder, Manifest.from_json(data), digest)


def files_in(folder: Path) -> frozenset[str] | None:
    """The manifest in a folder and the files that it lists, which are not read.

    Args:
        folder: Any folder.

    Returns:
        Their paths relative to the folder; None if it has no readable manifest.
    """
    try:
        data = read_file(folder, FileInfo(MANIFEST_NAME, -1, ""))
        bundle = Bundle(folder, Manifest.from_json(data), "")
    except BundleError:
        return None
    return frozenset((MANIFEST_NAME, SIGNATURE_NAME, *bundle.files))


class Bundle:
    """A model's branches as files that can be run without torch.

    To run a subnet, run the branches of an arch in order on named values: start with the inputs
    and `constants`, feed each branch its inputs, add its outputs, and drop a value after the block
    in `last_read`. Then call `result` for the model's return value.

    Attributes:
        path: The folder.
        manifest: Its ``manifest.json``.
        digest: SHA-256 of the bytes of ``manifest.json``, which identifies the whole bundle.
        space: The search space.
        inputs: The model's inputs in order.
        outputs: The values that are the model's flat results, in order; a value may occur twice.
        values: Every value that crosses a cut, inputs and results included, by name.
        last_read: For each value that is read, the last block that reads it; the number of
            blocks for results.
        files: Every file except the manifest, by its path.
        signature: The signature that was checked; None if no key was given.
        missing: The files that were missing when it was opened, if they might be.
    """

    signature: ManifestSignature | None = None
    missing: frozenset[str] = frozenset()

    def __init__(self, path: Path, manifest: Manifest, digest: str) -> None:
        """Use `load` instead, which verifies the arguments."""
        self.path = path
        self.manifest = manifest
        self.digest = digest
        self.space: SearchSpace = manifest.space
        values = {value.name: value for value in manifest.values}
        self.values: Mapping[str, ValueInfo] = MappingProxyType(values)
        self.inputs = tuple(values[name] for name in manifest.inputs)
        self.outputs = tuple(values[result.value] for result in manifest.results)
        self.last_read: Mapping[str, int] = MappingProxyType(
            {value.name: value.last_read for value in manifest.values if value.last_read >= 0}
        )
        files = (*(segment.model for segment in manifest.segments), *manifest.data)
        self.files: Mapping[str, FileInfo] = MappingProxyType({file.path: file for file in files})
        self._segments = {segment.id: segment for segment in manifest.segments}
        self._verified: dict[str, tuple[int, ...]] = {}
        self._copies = PrivateCopies()

    def inputs_of(self, arch: Arch) -> tuple[ValueInfo, ...]:
        """The inputs of a subnet, which may have smaller caches than the model.

        Raises:
            UsageError: The arch is not in the search space.
        """
        kept = {part.past: part for part in self.space.cache_of(arch)}
        return tuple(_cut(info, kept.get(info.name)) for info in self.inputs)

    def outputs_of(self, arch: Arch) -> tuple[ValueInfo, ...]:
        """The flat results of a subnet, which may have smaller caches than the model.

        Raises:
            UsageError: The arch is not in the search space.
        """
        kept = {part.present: part for part in self.space.cache_of(arch)}
        return tuple(_cut(info, kept.get(info.name)) for info in self.outputs)

    def read_by(self, branch_id: str) -> tuple[ValueInfo, ...]:
        """The values that a branch reads, with caches as it keeps them.

        Raises:
            UsageError: The bundle has no such branch.
        """
        segment = self.segment(branch_id)
        kept = {part.past: part for part in segment.spec.cache}
        return tuple(_cut(self.values[name], kept.get(name)) for name in segment.inputs)

    def first_cache(self, arch: Arch, batch_size: int = 1) -> dict[str, np.ndarray[Any, Any]]:
        """The caches of a subnet before the first step of a decoder.

        Args:
            arch: The subnet.
            batch_size: The number of sequences.

        Returns:
            An array of length 0 for each past, by name; empty if the model has no caches.

        Raises:
            UsageError: The arch is not in the search space, or the model takes no empty cache.
        """
        growing = {cache.past: cache.dim for cache in self.manifest.caches}
        sizes = dict(self.manifest.model.sizes_at(batch_size))
        found = {}
        for info in self.inputs_of(arch):
            if info.name not in growing:
                continue
            length = dimension(str(info.dims[growing[info.name]]))
            name, size = length.solve(0) or ("", -1)
            symbol = self.manifest.model.symbols.get(name)
            if symbol is None or not symbol.holds(size):
                raise UsageError(
                    f"the model takes no past of length 0 in {info.name!r}",
                    expected=str(symbol or info),
                    got="0",
                    fix="export the model with a range of this length that begins at 0",
                )
            shape = info.shape_at({**sizes, name: size})
            found[info.name] = np.zeros(shape, info.dtype)
        return found

    def next_cache(self, results: Sequence[Any]) -> dict[str, Any]:
        """The caches for the next step of a decoder.

        Args:
            results: The flat results of a step.

        Returns:
            The past for each input that a result extends, by the input's name.
        """
        at = {result.value: i for i, result in enumerate(self.manifest.results)}
        return {cache.past: results[at[cache.present]] for cache in self.manifest.caches}

    def segment(self, branch_id: str) -> Segment:
        """A branch's file, and the values that it reads and computes.

        Raises:
            UsageError: The bundle has no such branch.
        """
        if branch_id not in self._segments:
            raise UsageError(
                f"the bundle has no branch {branch_id!r}",
                expected=f"one of {len(self._segments)} ids, as in bundle.space.branches",
                got=repr(branch_id),
            )
        return self._segments[branch_id]

    def without(self, branches: Collection[str]) -> Bundle:
        """The same bundle with a smaller search space.

        Args:
            branches: The ids of branches to leave out of the space. They may not be originals.
        """
        if not branches:
            return self
        bundle = copy.copy(self)
        kept = tuple(spec for spec in self.space.branches if spec.id not in branches)
        bundle.space = SearchSpace(self.space.n_blocks, kept)
        return bundle

    def read(self, branch_id: str) -> bytes:
        """Read and verify a branch's ONNX file.

        The bytes don't include tensors stored in separate files; `model` has both.

        Raises:
            UsageError: The bundle has no such branch.
            BundleError: The file is missing or damaged.
        """
        segment = self.segment(branch_id)
        data = read_file(self.path, segment.model)
        check_external_data(data, segment)
        return data

    def model(self, branch_id: str) -> VerifiedModel:
        """Read and verify a branch's ONNX file and all files that it refers to.

        The latter are copied into a private folder, once for all branches and threads; the folder
        goes with the bundle. Sessions of this model never read the bundle's folder again.

        Raises:
            UsageError: The bundle has no such branch.
            BundleError: A file is missing or damaged, or can't be copied.
        """
        segment = self.segment(branch_id)
        data = self.read(branch_id)
        if not segment.data:
            return VerifiedModel(segment.file, data)
        owner = self._copies.of(self.path, [self.files[path] for path in segment.data])
        place = owner.path / segment.file
        return VerifiedModel(segment.file, data, place.parent, owner)

    def model_path(self, branch_id: str) -> Path:
        """The path of a branch's ONNX file; verifies the file and all files that it refers to.

        A file is hashed again only if it has changed on disk. Another process can replace it before
        it is opened: to run it, use `model`.

        Raises:
            UsageError: The bundle has no such branch.
            BundleError: A file is missing or damaged.
        """
        segment = self.segment(branch_id)
        self._verify_once(segment.model, segment)
        for path in segment.data:
            self._verify_once(self.files[path], None)
        return self.path / segment.file

    def data_path(self, path: str) -> Path:
        """The path of a file in ``manifest.data``; verifies the file as `model_path` does.

        Raises:
            BundleError: The file is missing or damaged.
        """
        self._verify_once(self.files[path], None)
        return self.path / path

    def verify(self) -> None:
        """Read and verify every file that is not in ``missing``.

        Raises:
            BundleError: A file is missing or damaged.
        """
        for segment in self.manifest.segments:
            if segment.file not in self.missing:
                self.read(segment.id)
        for file in self.manifest.data:
            if file.path not in self.missing:
                hash_file(self.path, file)

    @cached_property
    def constants(self) -> Mapping[str, np.ndarray[Any, Any]]:
        """Results that depend on no input, by the name of their value.

        Raises:
            BundleError: A file is missing or damaged.
        """
        return {
            value.name: self._constant(value, self.files[value.constant])
            for value in self.manifest.values
            if value.constant is not None
        }

    @cached_property
    def structure_digest(self) -> str:
        """Digest of everything that affects latencies: bundles that differ in weights share it.

        The first access reads every ONNX file; see `fxelastic.edge.structure_digest`.

        Raises:
            BundleError: A file is missing or damaged.
        """
        from fxelastic.edge.structure_digest import structure_digest

        return structure_digest(self)

    def result(self, values: Mapping[str, Any]) -> Any:
        """The model's return value, from the values after the last branch.

        Args:
            values: The values by name; constants may be left out.

        Returns:
            Nested tuples, lists and dictionaries of arrays; other objects become dictionaries.
        """
        known = {**self.constants, **values}
        flat = [known[value.name] for value in self.outputs]
        return structure.build(self.manifest.structure, flat)

    def __str__(self) -> str:
        model = self.manifest.model
        return f"Bundle({model.name}: {self.space})"

    def _constant(self, value: ValueInfo, file: FileInfo) -> np.ndarray[Any, Any]:
        shape = value.shape_at({})
        dtype = np.dtype("uint16" if value.dtype == "bfloat16" else value.dtype).newbyteorder("<")
        if math.prod(shape) * dtype.itemsize != file.size_bytes:
            raise BundleError(
                f"{file.path} does not have the size of the value {value}",
                expected=f"{math.prod(shape) * dtype.itemsize} bytes",
                got=f"{file.size_bytes} bytes",
                fix="export the bundle again",
            )
        array = np.frombuffer(read_file(self.path, file), dtype).reshape(shape)
        return array.astype(dtype.newbyteorder("="))

    def _verify_once(self, file: FileInfo, segment: Segment | None) -> None:
        found = stat_file(self.path, file)
        state = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if self._verified.get(file.path) == state:
            return
        refers = hash_file(self.path, file)
        if segment is not None and (segment.data or refers):
            check_external_data(read_file(self.path, file), segment)
        self._verified[file.path] = state


def _cut(info: ValueInfo, kept: KeptCache | None) -> ValueInfo:
    """A value as a subnet has it that keeps a part of it."""
    return info if kept is None else replace(info, dims=kept.shape(info.dims))
