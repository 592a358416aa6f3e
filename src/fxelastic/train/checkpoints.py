"""Checkpoints of a run on disk: written in one step, kept in rotation, refused with a reason."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from fxelastic.errors import TrainingError, UsageError
from fxelastic.files import read_regular, sync, write_durably
from fxelastic.spec.bounded_json import loads

SCHEMA = "fxelastic.checkpoint/1"

_DATA, _TENSORS = "checkpoint.json", "state.safetensors"
_TENSOR, _TUPLE, _ITEMS = "__tensor__", "__tuple__", "__items__"
# The most bytes of the data: reports of all epochs, with numbers for each branch.
_DATA_BYTES = 2**28


@dataclass(frozen=True)
class Checkpoint:
    """The state from which a run resumes.

    Attributes:
        step: Steps made.
        epoch: Epochs that have ended.
        data: All state but tensors, for ``json.dumps``.
        tensors: The tensors, by name.
    """

    step: int
    epoch: int
    data: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one stage, in a folder that it may share with other stages.

    A checkpoint is a folder ``<stage>-<step>-<epoch>`` with ``checkpoint.json`` and
    ``state.safetensors``. It gets its name when it is on disk as a whole, so that a crash leaves
    no partial checkpoint of that name.

    Attributes:
        folder: The folder.
        stage: The first part of the checkpoints' names.
        run: Facts of the supernet, the model's weights and the options, by name. A checkpoint is
            used only by a run with the same facts.
        keep: How many to keep.
    """

    folder: Path
    stage: str
    run: Mapping[str, str] = field(repr=False)
    keep: int = 2

    def write(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint and remove this run's oldest beyond ``keep``.

        Returns:
            Its folder.

        Raises:
            UsageError: The folder can't be written to.
        """
        name = f"{self.stage}-{checkpoint.step:08d}-{checkpoint.epoch:04d}"
        temporary = self.folder / f".{name}.{os.getpid()}.tmp"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            tensors = {k: v.detach().cpu().contiguous() for k, v in checkpoint.tensors.items()}
            # A copy each: safetensors refuses tensors that share memory.
            packed = safetensors.torch.save({k: v.clone() for k, v in tensors.items()})
            write_durably(temporary / _TENSORS, packed)
            text = json.dumps(
                {
                    "schema": SCHEMA,
                    "stage": self.stage,
                    "step": checkpoint.step,
                    "epoch": checkpoint.epoch,
                    "sha256": hashlib.sha256(packed).hexdigest(),
                    "run": dict(self.run),
                    "data": checkpoint.data,
                }
            )
            seal = hashlib.sha256(text.encode()).hexdigest()
            write_durably(temporary / _DATA, f"{seal}\n{text}\n".encode())
            sync(temporary)
            target = self.folder / name
            self._make_room(target)
            temporary.rename(target)
            sync(self.folder)
        except OSError as e:
            raise UsageError(
                f"a checkpoint can't be written to {self.folder}",
                expected="a folder that may be written to, with room on its disk",
                got=f"{type(e).__name__}: {e}",
            ) from e
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._rotate()
        return target

    def newest(self) -> tuple[Checkpoint | None, tuple[str, ...]]:
        """Read the newest checkpoint that can be used.

        Returns:
            The checkpoint, and why newer ones were refused, a sentence each. None where there is
            no checkpoint of this stage.

        Raises:
            TrainingError: There are checkpoints, and none can be used.
        """
        self._clean()
        refused: list[str] = []
        names = self._names()
        for name in names:
            try:
                return self._read(self.folder / name), tuple(refused)
            except TrainingError as e:
                refused.append(f"{name}: {e.what}" + (f" ({e.got})" if e.got else ""))
        if names:
            raise TrainingError(
                f"no checkpoint of {self.stage} in {self.folder} can be used",
                expected="a checkpoint of this run",
                got="\n".join(refused),
                fix="restore the settings, name another folder, or move these checkpoints away",
            )
        return None, ()

    def _read(self, folder: Path) -> Checkpoint:
        try:
            seal, text = _data(folder)
            packed = read_regular(folder / _TENSORS)
        except (OSError, ValueError) as e:
            raise TrainingError("it is not complete", got=f"{type(e).__name__}: {e}") from e
        if hashlib.sha256(text).hexdigest().encode() != seal:
            raise TrainingError("it is corrupt", got=f"{_DATA} has changed since it was written")
        record = _record(text)
        _check_run(record["run"], self.run)
        if hashlib.sha256(packed).hexdigest() != record["sha256"]:
            raise TrainingError("it is corrupt", got=f"{_TENSORS} has changed since it was written")
        try:
            tensors = safetensors.torch.load(packed)
        except SafetensorError as e:
            raise TrainingError("it is corrupt", got=str(e)) from e
        return Checkpoint(record["step"], record["epoch"], record["data"], tensors)

    def _names(self) -> list[str]:
        """Checkpoints of this stage, newest first."""
        if not self.folder.is_dir():
            return []
        pattern = re.compile(rf"{re.escape(self.stage)}-(\d{{8,}})-(\d{{4,}})")
        found = [pattern.fullmatch(path.name) for path in self.folder.iterdir() if path.is_dir()]
        matches = sorted(
            (match for match in found if match), key=lambda m: (int(m[1]), int(m[2])), reverse=True
        )
        return [match[0] for match in matches]

    def _make_room(self, target: Path) -> None:
        """Move a refused checkpoint aside that has the name of the new one."""
        if not target.exists():
            return
        for i in range(1, 10_000):
            aside = target.with_name(f"refused-{target.name}-{i}")
            if not aside.exists():
                target.rename(aside)
                return

    def _rotate(self) -> None:
        """Remove the oldest checkpoints of this run, and none of another run."""
        own = [name for name in self._names() if self._is_own(self.folder / name)]
        for name in own[self.keep :]:
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def _is_own(self, folder: Path) -> bool:
        try:
            return bool(_record(_data(folder)[1])["run"] == dict(self.run))
        except (OSError, ValueError, TrainingError):
            return False

    def _clean(self) -> None:
        """Remove partial checkpoints of killed processes."""
        if self.folder.is_dir():
            for path in self.folder.glob(f".{self.stage}-*.tmp"):
                shutil.rmtree(path, ignore_errors=True)


def _data(folder: Path) -> tuple[bytes, bytes]:
    """The digest and the text of a checkpoint's data."""
    seal, text = read_regular(folder / _DATA).split(b"\n", 1)
    return seal, text.removesuffix(b"\n")


def _record(text: bytes) -> dict[str, Any]:
    """The fields of a checkpoint, of the types that `write` gives them.

    Raises:
        TrainingError: They have others, which a new seal over changed fields may hide.
    """
    try:
        # The error of a batch that sends a branch no rows is NaN.
        record = loads(text, _DATA_BYTES, finite=False)
    except ValueError as e:
        raise TrainingError("it is corrupt", got=f"{type(e).__name__}: {e}") from e
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema != SCHEMA:
        raise TrainingError("its format is unknown", got=repr(schema)[:200])
    for name, kind in (("step", int), ("epoch", int), ("sha256", str), ("run", dict)):
        if type(record.get(name)) is not kind:
            raise TrainingError("it is corrupt", got=f"{name} is {record.get(name)!r}"[:200])
    if record["step"] < 0 or record["epoch"] < 0 or "data" not in record:
        raise TrainingError("it is corrupt", got="a number below 0, or no data")
    return dict(record)


def _check_run(recorded: Mapping[str, str], current: Mapping[str, str]) -> None:
    for name in dict.fromkeys((*current, *recorded)):
        if recorded.get(name) != current.get(name):
            raise TrainingError(
                f"it belongs to another run: {name} differs",
                got=f"{recorded.get(name)}, now {current.get(name)}",
            )


def take_apart(value: Any, prefix: str) -> tuple[Any, dict[str, Tensor]]:
    """Split nested state, such as an optimiser's, into JSON and named tensors: no pickle.

    Args:
        value: Dicts, lists, tuples, numbers, strings, None and tensors.
        prefix: What the tensors' names begin with.

    Returns:
        Data for ``json.dumps`` that names the tensors, and the tensors by name.

    Raises:
        UsageError: The structure holds something else.
    """
    tensors: dict[str, Tensor] = {}
    return _encode(value, prefix, tensors), tensors


def put_together(data: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `take_apart`.

    Raises:
        KeyError: A tensor is missing.
    """
    if isinstance(data, list):
        return [put_together(part, tensors) for part in data]
    if not isinstance(data, dict):
        return data
    if _TENSOR in data:
        return tensors[data[_TENSOR]]
    if _TUPLE in data:
        return tuple(put_together(part, tensors) for part in data[_TUPLE])
    return {_key(key): put_together(part, tensors) for key, part in data[_ITEMS]}


def _encode(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value
        return {_TENSOR: name}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        parts = [_encode(part, f"{name}/{i}", tensors) for i, part in enumerate(value)]
        return parts if isinstance(value, list) else {_TUPLE: parts}
    if isinstance(value, Mapping):
        # As pairs: the keys of an optimiser's state are numbers, which JSON would make strings.
        return {
            _ITEMS: [
                [_key_as_json(k), _encode(v, f"{name}/{k}", tensors)] for k, v in value.items()
            ]
        }
    raise UsageError(
        f"{name} can't be written to a checkpoint",
        expected="tensors, numbers, strings, and lists and dicts of them",
        got=f"{type(value).__module__}.{type(value).__qualname__}",
        fix="use an optimiser whose state_dict() holds these only, or train without checkpoints",
    )


def _key_as_json(key: Any) -> Any:
    if isinstance(key, tuple):
        return {_TUPLE: list(key)}
    return key


def _key(key: Any) -> Any:
    return tuple(key[_TUPLE]) if isinstance(key, dict) else key
