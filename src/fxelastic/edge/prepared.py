"""Subnets and branches as optimised files: made ahead of serving, which maps them."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime as ort
import psutil

from fxelastic.edge.arguments import refuse_paths
from fxelastic.edge.assembly import assemble, join
from fxelastic.edge.bundle import Bundle
from fxelastic.edge.candidates import (
    Candidate,
    PoolLike,
    absolute_limits,
    candidates_of,
    choose_mode,
)
from fxelastic.edge.digests import digest
from fxelastic.edge.fingerprint import fingerprint, processor_features
from fxelastic.edge.pool import SubnetPool
from fxelastic.errors import BundleError, ServingError
from fxelastic.files import sync, write_durably
from fxelastic.spec import Arch
from fxelastic.spec.latency_table import LatencyTable
from fxelastic.spec.limits import Bound
from fxelastic.spec.pareto import ParetoTable

SCHEMA = "fxelastic.prepared/1"

_MODEL, _WEIGHTS, _ENTRY = "model.onnx", "model.weights", "entry.json"
# Protobuf has a limit of 2 GiB; graphs take some of it.
_IN_MEMORY_BYTES = 2**30
# Smaller weights stay in the graph.
_LEAST_BYTES = 1024


class Item(NamedTuple):
    """A subnet or a branch to prepare.

    Attributes:
        kind: ``subnet`` or ``branch``.
        name: The text of the arch, or the id of the branch.
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

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return hashlib.sha256(f"{self.kind} {self.name}".encode()).hexdigest()[:24]


@dataclass
class PreparedFiles:
    """The optimised files of one bundle on this machine, in a folder of their own.

    The folder's name depends on the bundle, onnxruntime's version and the processor, since
    onnxruntime optimises for the processor it runs on. The number of threads does not matter.

    The contract:

    * A subnet or branch has a folder that is complete or absent: it is written under another name
      and renamed. A process that is killed leaves only such another name behind, which the next
      `make` deletes. Several processes may prepare the same thing at once.
    * A file is used only if it has not changed since it was written, or has the digest that it had
      then. Otherwise `find` returns None, and `make` replaces it.

    Attributes:
        bundle: The bundle.
        folder: Where the files are; made when the first one is written.
        spare: Where files are written instead, and found too; None for ``folder``.
    """

    bundle: Bundle
    folder: Path
    spare: Path | None = None

    @classmethod
    def of(cls, bundle: Bundle, parent: str | os.PathLike[str] | None = None) -> PreparedFiles:
        """The prepared files of a bundle.

        Args:
            bundle: The bundle.
            parent: The folder of such folders; by default ``BUNDLE.prepared`` beside the bundle.
        """
        if parent is None:
            place = Path(os.path.abspath(bundle.path))
            parent = place.with_name(f"{place.name}.prepared")
        return cls(bundle, Path(parent).absolute() / _key(bundle))

    def __post_init__(self) -> None:
        """Begin with no file verified."""
        self._verified: dict[Path, tuple[int, ...]] = {}

    def find(self, item: Item) -> Path | None:
        """The file of a subnet or branch; None if it is not there or damaged. In any thread."""
        places = (self.folder,) if self.spare is None else (self.folder, self.spare)
        found = (self._find(place / item.folder, item) for place in places)
        return next((path for path in found if path is not None), None)

    @property
    def target(self) -> Path:
        """The folder that files are written to."""
        return self.folder if self.spare is None else self.spare

    def is_writable(self) -> bool:
        """Whether files can be written to ``folder``, as far as its permissions tell."""
        there = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        return there.is_dir() and os.access(there, os.W_OK | os.X_OK)

    def make(self, item: Item) -> Path:
        """Prepare a subnet or branch, unless it is there already.

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
                expected="a folder that can be written, on a disk with space",
                got=f"{type(e).__name__}: {e.strerror or e}",
                fix="name another folder, or serve in paged mode, which needs none",
            ) from e
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def size_bytes(self) -> int:
        """What all files take on the disk, in bytes."""
        files = (path for path in self.folder.glob("*/*") if path.is_file())
        return sum(path.stat().st_size for path in files)

    def _find(self, folder: Path, item: Item) -> Path | None:
        try:
            entry = json.loads((folder / _ENTRY).read_bytes())
            named = (entry["schema"], entry["kind"], entry["name"]) == (SCHEMA, *item)
            files = entry["files"]
            intact = (
                named
                and _MODEL in files
                and {_MODEL, _WEIGHTS}.issuperset(files)
                and all(self._is_intact(folder / name, facts) for name, facts in files.items())
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return folder / _MODEL if intact else None

    def _write(self, item: Item, folder: Path) -> None:
        path = folder / _MODEL
        try:
            if item.kind == "branch":
                optimise(os.fspath(self.bundle.model_path(item.name)), path)
            else:
                self._write_subnet(Arch.parse(item.name), path)
        except (BundleError, OSError):
            raise
        except Exception as e:  # onnxruntime's exceptions derive from Exception one by one
            raise BundleError(
                f"{item.kind} {item.name} can't be prepared",
                expected="a model that this onnxruntime can optimise",
                got=f"{type(e).__name__}: {e}",
                fix="export the bundle again, or use a newer onnxruntime",
            ) from e
        files = [file for file in (path, folder / _WEIGHTS) if file.exists()]
        for file in files:
            sync(file)
        facts = {file.name: {"sha256": digest(file), "state": _state(file)} for file in files}
        entry = {"schema": SCHEMA, **item._asdict(), "files": facts}
        write_durably(folder / _ENTRY, json.dumps(entry, indent=1).encode())
        sync(folder)

    def _publish(self, item: Item, written: Path) -> Path:
        """Give a folder its name, unless another process was quicker; returns the file in it."""
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

    def _write_subnet(self, arch: Arch, path: Path) -> None:
        weight_bytes = sum(self.bundle.segment(branch).weight_bytes for branch in arch)
        if weight_bytes < _IN_MEMORY_BYTES:
            optimise(join(self.bundle, arch).SerializeToString(), path)
            return
        plain = path.with_name("plain.onnx")
        optimise(os.fspath(assemble(self.bundle, arch, plain)), path)
        for file in plain.parent.glob(f"{plain.name}*"):
            file.unlink()

    def _is_intact(self, path: Path, facts: dict[str, Any]) -> bool:
        state = _state(path)
        if facts["state"] == state or self._verified.get(path) == tuple(state):
            return True
        # The files were copied, or something else touched them.
        if digest(path) != facts["sha256"]:
            return False
        self._verified[path] = tuple(state)
        return True

    def _sweep(self) -> None:
        """Delete what processes of this machine left behind when they were killed."""
        for folder in self.target.glob(f"{_prefix()}*"):
            pid = folder.name.removeprefix(_prefix()).partition("-")[0]
            if pid.isdigit() and not psutil.pid_exists(int(pid)):
                shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Preparation:
    """What `prepare` did.

    Attributes:
        folder: Where the files are.
        mode: ``assembled`` or ``paged``.
        n_subnets: Subnets of the Pareto table.
        n_made: Subnets, or branches in paged mode, that were prepared now.
        n_ready: Those that were ready before.
        size_bytes: What all files in the folder take, in bytes.
        seconds: How long it took.
    """

    folder: Path
    mode: str
    n_subnets: int
    n_made: int
    n_ready: int
    size_bytes: int
    seconds: float


def prepare(
    bundle: Bundle,
    pool: PoolLike,
    table: LatencyTable | None = None,
    *,
    mode: str = "auto",
    prepared: str | os.PathLike[str] | None = None,
    limits: Mapping[str, Bound] | None = None,
    memory_bytes: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Preparation:
    """Prepare what serving a pool needs: each subnet of its Pareto table, or their branches.

    In ``assembled`` mode each subnet becomes one optimised model, in ``paged`` mode each branch
    does. Files that exist stay as they are, so that a run that was interrupted goes on from there.
    Several processes may do this at once.

    Args:
        bundle: The bundle, from `edge.load`.
        pool: The subnets, as `edge.serve` takes them.
        table: The device's latencies; then the Pareto table is made of its latencies, as serving
            does.
        mode: As of `edge.serve`.
        prepared: The folder to write to; by default ``BUNDLE.prepared`` beside the bundle.
        limits: As of `edge.serve`: subnets beyond them are not served, and not prepared.
        memory_bytes: As of `edge.serve`: larger subnets are not served, and not prepared.
        progress: Called before each piece of work and at the end with how many are done, how many
            there are, and the name of the next one.

    Returns:
        What was done.

    Raises:
        UsageError: The pool or the table is of another bundle, or an argument is out of range.
        BundleError: A file of the bundle is damaged, or onnxruntime can't optimise it.
        ServingError: The files can't be written.
    """
    refuse_paths(bundle=bundle, table=table, pool=pool)
    pool = pool if isinstance(pool, SubnetPool) else tuple(pool)
    begin_s = time.monotonic()
    mode = choose_mode(bundle, pool, mode, memory_bytes)
    candidates = candidates_of(bundle, pool, table, mode, memory_bytes)
    bounds = absolute_limits(limits, bundle, table, candidates, mode)
    best = ParetoTable(c for c in candidates if bounds is None or bounds.keeps(c.costs))
    files = PreparedFiles.of(bundle, prepared)
    items = needed(best, mode)
    n_made = 0
    for done, item in enumerate(items):
        if progress is not None:
            progress(done, len(items), item.name)
        if files.find(item) is None:
            files.make(item)
            n_made += 1
    if progress is not None:
        progress(len(items), len(items), "")
    return Preparation(
        folder=files.folder,
        mode=mode,
        n_subnets=len(best),
        n_made=n_made,
        n_ready=len(items) - n_made,
        size_bytes=files.size_bytes(),
        seconds=time.monotonic() - begin_s,
    )


def needed(table: ParetoTable[Candidate], mode: str) -> tuple[Item, ...]:
    """What a mode needs to serve the subnets of a Pareto table, the quickest subnet's first."""
    archs = [candidate.arch for candidate in table]
    if mode == "assembled":
        return tuple(map(Item.subnet, archs))
    return tuple(map(Item.branch, dict.fromkeys(branch for arch in archs for branch in arch)))


def optimise(model: str | bytes, path: Path) -> None:
    """Write a model as onnxruntime optimises it on this machine.

    Large weights go to a second file, which onnxruntime maps: to make a session then takes a third
    to a tenth of the time.

    Args:
        model: The model, or its path.
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
    ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _key(bundle: Bundle) -> str:
    device = fingerprint()
    facts = [SCHEMA, bundle.digest, processor_features()]
    facts += [device[name] for name in ("processor", "machine", "system", "onnxruntime")]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def _prefix() -> str:
    # Machines may share the folder; each knows its own processes only.
    return f".{hashlib.sha256(platform.node().encode()).hexdigest()[:8]}-"


def _state(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
