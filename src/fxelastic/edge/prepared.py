"""Optimised files of subnets and branches, which serving maps."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import shutil
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import onnxruntime as ort
import psutil

from fxelastic.edge.assembly import join
from fxelastic.edge.bundle import Bundle
from fxelastic.edge.cascades.joined import CascadeForm, separate_names
from fxelastic.edge.cascades.segments import CascadeSegment
from fxelastic.edge.digests import copy_hashed, digest
from fxelastic.edge.fingerprint import fingerprint, processor_features
from fxelastic.edge.model_file import write_model
from fxelastic.edge.private_folder import PrivateFolder
from fxelastic.edge.sessions import Model, source
from fxelastic.edge.verified_model import VerifiedModel
from fxelastic.errors import BundleError, ServingError
from fxelastic.files import open_regular, read_regular, sync, write_durably
from fxelastic.spec import Arch
from fxelastic.spec.bounded_json import loads

SCHEMA = "fxelastic.prepared/2"

_MODEL, _WEIGHTS, _ENTRY = "model.onnx", "model.weights", "entry.json"
# Protobuf has a limit of 2 GiB, which includes the graph.
_IN_MEMORY_BYTES = 2**30
# Smaller weights stay in the graph.
_LEAST_BYTES = 1024
# What reading an item's files raises if they are missing or damaged.
_DAMAGES = (OSError, ValueError, KeyError, TypeError, AttributeError)
_ENTRY_BYTES = 2**16


class Item(NamedTuple):
    """A subnet, a branch, a cascade or a segment of one, to prepare.

    Attributes:
        kind: ``subnet``, ``branch``, ``cascade`` or ``segment``.
        name: The text of the arch, the cascade's form or the segment, or the id of the branch.
    """

    kind: str
    name: str

    @classmethod
    def subnet(cls, arch: Arch) -> Item:
        """A subnet as one model."""
        return cls("subnet", str(arch))

    @classmethod
    def branch(cls, branch_id: str) -> Item:
        """A branch by itself."""
        return cls("branch", branch_id)

    @classmethod
    def segment(cls, segment: CascadeSegment) -> Item:
        """A segment of a cascade as one model."""
        return cls("segment", str(segment))

    @classmethod
    def cascade(cls, form: CascadeForm) -> Item:
        """A cascade as one model, whatever its thresholds."""
        return cls("cascade", str(form))

    @property
    def branches(self) -> tuple[str, ...]:
        """The ids of the branches in it."""
        if self.kind == "cascade":
            return CascadeForm.parse(self.name).branches
        if self.kind == "segment":
            return CascadeSegment.parse(self.name).branches
        return (self.name,) if self.kind == "branch" else Arch.parse(self.name).branches

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return hashlib.sha256(f"{self.kind} {self.name}".encode()).hexdigest()[:24]


@dataclass
class PreparedFiles:
    """The optimised files of one bundle on this machine, in a separate folder.

    The folder's name depends on the bundle, onnxruntime's version and the processor, since
    onnxruntime optimises for the processor it runs on. The number of threads does not matter.

    The contract:

    * The folder of a subnet or branch is complete or absent: it is written under a temporary name
      and then renamed. A killed process leaves only a temporary folder behind, which the next
      `make` deletes. Several processes may prepare the same item at once.
    * What `read` returns has the digest that it had when it was written, and does not change. A
      damaged item is None, and `make` replaces it.

    Attributes:
        bundle: The bundle.
        folder: The folder of the files; created when the first file is written.
        spare: A second folder that files are written to and also searched for in; None to write to
            ``folder``.
    """

    bundle: Bundle
    folder: Path
    spare: Path | None = None

    @classmethod
    def of(cls, bundle: Bundle, parent: str | os.PathLike[str] | None = None) -> PreparedFiles:
        """The prepared files of a bundle.

        Args:
            bundle: The bundle.
            parent: The parent of the folder; by default ``BUNDLE.prepared`` next to the bundle.
        """
        if parent is None:
            place = Path(os.path.abspath(bundle.path))
            parent = place.with_name(f"{place.name}.prepared")
        return cls(bundle, Path(parent).absolute() / _key(bundle))

    def __post_init__(self) -> None:
        """Start with no file verified."""
        self._verified: dict[Path, tuple[int, ...]] = {}
        # By folder: the digests of its files, and what was read. A switch back costs no copy.
        self._read_before: dict[Path, tuple[list[str], VerifiedModel]] = {}

    def find(self, item: Item) -> Path | None:
        """The file of a subnet or branch; None if it is missing or damaged. Thread-safe."""
        found = (self._find(place / item.folder, item) for place in self._places)
        return next((path for path in found if path is not None), None)

    def read(self, item: Item) -> VerifiedModel | None:
        """A prepared subnet or branch, to make sessions of; None if missing or damaged.

        Large weights are copied into a private folder, once: it goes with this object. A damaged
        item is deleted, so that `make` replaces it. Thread-safe.

        Raises:
            ServingError: The weights can't be copied.
        """
        found = (self._read(place / item.folder, item) for place in self._places)
        return next((model for model in found if model is not None), None)

    @property
    def _places(self) -> tuple[Path, ...]:
        return (self.folder,) if self.spare is None else (self.folder, self.spare)

    @property
    def target(self) -> Path:
        """The folder that files are written to."""
        return self.folder if self.spare is None else self.spare

    def is_writable(self) -> bool:
        """Whether the permissions of ``folder`` allow writing files to it.

        With a signed bundle, others may not be able to, either.
        """
        there = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        own = self.bundle.signature is None or not self.folder.exists() or _is_own(self.folder)
        return own and there.is_dir() and os.access(there, os.W_OK | os.X_OK)

    def make(self, item: Item) -> Path:
        """Prepare a subnet or branch, unless it is already prepared, and return its file.

        Raises:
            BundleError: A file of the bundle is damaged, or onnxruntime can't optimise it.
            ServingError: The files can't be written.
        """
        found = self.find(item)
        if found is not None:
            return found
        temporary = self.target / f"{_prefix()}{os.getpid()}-{secrets.token_hex(4)}"
        try:
            self._sweep()
            temporary.mkdir(parents=True)
            self._write(item, temporary)
            return self._publish(item, temporary)
        except OSError as e:
            raise ServingError(
                f"can't write prepared files to {self.target}",
                expected="a writable folder, on a disk with free space",
                got=f"{type(e).__name__}: {e.strerror or e}",
                fix="choose another folder, or serve in paged mode, which needs none",
            ) from e
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def size_bytes(self) -> int:
        """The total size of all prepared files on disk, in bytes."""
        total = 0
        # Folders that another process writes now have other names, and its files may go any time.
        for path in self.folder.glob("[!.]*/*"):
            with suppress(FileNotFoundError):
                total += path.stat().st_size
        return total

    def _counts(self, folder: Path) -> bool:
        """Whether others could not have written an item, which matters for a signed bundle."""
        return self.bundle.signature is None or _is_own(folder.parent)

    def _find(self, folder: Path, item: Item) -> Path | None:
        if not self._counts(folder):
            return None
        try:
            files = _entry(folder, item)
            intact = all(self._is_intact(folder / name, facts) for name, facts in files.items())
        except _DAMAGES:
            return None
        return folder / _MODEL if intact else None

    def _read(self, folder: Path, item: Item) -> VerifiedModel | None:
        if not self._counts(folder):
            return None
        try:
            files = _entry(folder, item)
            digests = [files[name]["sha256"] for name in sorted(files)]
            known, before = self._read_before.get(folder, (None, None))
            if known == digests:
                return before
            data = read_regular(folder / _MODEL)
            intact = hashlib.sha256(data).hexdigest() == files[_MODEL]["sha256"]
            weights = open_regular(folder / _WEIGHTS) if _WEIGHTS in files else None
        except _DAMAGES:
            return self._discard(folder)
        owner = None
        if weights is not None:
            with weights:
                try:
                    owner = PrivateFolder()
                    copied = copy_hashed(weights, owner.path / _WEIGHTS)
                except OSError as e:
                    raise ServingError(
                        "prepared weights can't be copied to a private folder",
                        expected="free space in the folder for temporary files",
                        got=e.strerror or str(e),
                        fix="free some space, or set TMPDIR to a folder with more",
                    ) from e
            intact = intact and copied == files[_WEIGHTS]["sha256"]
        if not intact:
            return self._discard(folder)
        found = VerifiedModel(item.name, data, None if owner is None else owner.path, owner)
        self._read_before[folder] = digests, found
        return found

    @staticmethod
    def _discard(folder: Path) -> None:
        """Let `make` replace a damaged item."""
        with suppress(OSError):
            (folder / _ENTRY).unlink()

    def _write(self, item: Item, folder: Path) -> None:
        # Nobody can replace a file between onnxruntime's writing it and its being hashed here.
        made = PrivateFolder()
        path = made.path / _MODEL
        try:
            if item.kind == "branch":
                optimise(self.bundle.model(item.name), path)
            elif item.kind == "segment":
                segment = CascadeSegment.parse(item.name)
                self._write_joined(segment.model(self.bundle), path)
            elif item.kind == "cascade":
                form = CascadeForm.parse(item.name)
                self._write_joined(form.join(self.bundle), path)
                made_model = onnx.load(path, load_external_data=False)
                separate_names(made_model.graph)
                path.write_bytes(made_model.SerializeToString())
            else:
                self._write_joined(join(self.bundle, Arch.parse(item.name)), path)
        except (BundleError, OSError):
            raise
        except Exception as e:  # onnxruntime's exceptions have no common base class
            raise BundleError(
                f"{item.kind} {item.name} can't be prepared",
                expected="a model that the installed onnxruntime can optimise",
                got=f"{type(e).__name__}: {e}",
                fix="export the bundle again, or use a newer onnxruntime",
            ) from e
        facts = {}
        for name in (_MODEL, _WEIGHTS):
            if (made.path / name).exists():
                with open_regular(made.path / name) as source:
                    found = copy_hashed(source, folder / name)
                sync(folder / name)
                facts[name] = {"sha256": found, "state": _state(folder / name)}
        entry = {"schema": SCHEMA, **item._asdict(), "files": facts}
        write_durably(folder / _ENTRY, json.dumps(entry, indent=1).encode())
        sync(folder)

    def _publish(self, item: Item, written: Path) -> Path:
        """Rename a complete folder, unless another process did so first; returns its model file."""
        final = self.target / item.folder
        damaged = written.with_name(f"{written.name}-damaged")
        found = self.find(item)
        if found is None:
            with suppress(FileNotFoundError):
                final.rename(damaged)
            try:
                written.rename(final)
            except OSError:
                if self.find(item) is None:
                    raise
            shutil.rmtree(damaged, ignore_errors=True)
            sync(self.target)
        return final / _MODEL

    def _write_joined(self, model: onnx.ModelProto, path: Path) -> None:
        if model.ByteSize() < _IN_MEMORY_BYTES:
            optimise(model.SerializeToString(), path)
            return
        plain = path.with_name("plain.onnx")
        optimise(write_model(model, plain, "the model"), path)
        for file in plain.parent.glob(f"{plain.name}*"):
            file.unlink()

    def _is_intact(self, path: Path, facts: dict[str, Any]) -> bool:
        state = _state(path)
        if facts["state"] == state or self._verified.get(path) == tuple(state):
            return True
        # The files were copied or touched.
        if digest(path) != facts["sha256"]:
            return False
        self._verified[path] = tuple(state)
        return True

    def _sweep(self) -> None:
        """Delete the temporary folders of killed processes of this machine."""
        for folder in self.target.glob(f"{_prefix()}*"):
            pid = folder.name.removeprefix(_prefix()).partition("-")[0]
            if pid.isdigit() and not psutil.pid_exists(int(pid)):
                shutil.rmtree(folder, ignore_errors=True)


def optimise(model: Model | bytes, path: Path) -> None:
    """Optimise a model with onnxruntime for this machine, and write it.

    Large weights go to a second file, which onnxruntime maps into memory; this makes creating a
    session three to ten times as fast.

    Args:
        model: The model, its bytes, or the path of a file that no other process can replace.
        path: The file to write.
    """
    options = ort.SessionOptions()
    # Warnings say that the optimised model fits only this machine, where it stays; errors are also
    # raised.
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = os.fspath(path)
    weights = path.with_suffix(".weights").name
    for key, value in (("file_name", weights), ("min_size_in_bytes", str(_LEAST_BYTES))):
        options.add_session_config_entry(
            f"session.optimized_model_external_initializers_{key}", value
        )
    given = model if isinstance(model, bytes) else source(model, options)
    ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def _entry(folder: Path, item: Item) -> dict[str, dict[str, Any]]:
    """The files of an item and their digests, as its folder states them.

    Raises:
        OSError: There are none.
        ValueError: They are damaged, or of another item; also the other errors of `_DAMAGES`.
    """
    entry = loads(read_regular(folder / _ENTRY), _ENTRY_BYTES)
    files: dict[str, dict[str, Any]] = entry["files"]
    if (entry["schema"], entry["kind"], entry["name"]) != (SCHEMA, *item):
        raise ValueError("it is another item")
    if _MODEL not in files or not {_MODEL, _WEIGHTS}.issuperset(files):
        raise ValueError("it has other files")
    if not all({"sha256", "state"}.issubset(facts) for facts in files.values()):
        raise ValueError("it does not state what its files are")
    return files


def _key(bundle: Bundle) -> str:
    device = fingerprint()
    facts = [SCHEMA, bundle.digest, processor_features()]
    facts += [device[name] for name in ("processor", "machine", "system", "onnxruntime")]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def _is_own(folder: Path) -> bool:
    """Whether a folder belongs to this user, and only its group and the user may write to it."""
    try:
        found = folder.stat()
    except OSError:
        return False
    own = getattr(os, "getuid", lambda: found.st_uid)()
    return found.st_uid == own and not found.st_mode & stat.S_IWOTH


def _prefix() -> str:
    # Several machines may share the folder, but each knows only its own processes.
    return f".{hashlib.sha256(platform.node().encode()).hexdigest()[:8]}-"


def _state(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
