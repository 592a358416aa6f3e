"""The weights of a supernet's new branches as a safetensors file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fxelastic.errors import UsageError
from fxelastic.files import replace_file
from fxelastic.ir.block import BlockGraph
from fxelastic.ir.branch import Branch
from fxelastic.ir.part_names import name_of
from fxelastic.ir.text import to_text
from fxelastic.spec.bounded_json import loads

SCHEMA = "fxelastic.supernet/1"
_ENTRY = "fxelastic"

_Branches = Mapping[str, Branch]

logger = logging.getLogger(__name__)


def save(partition: BlockGraph, branches: _Branches, path: str | os.PathLike[str]) -> None:
    """Write the new branches' weights and statistics; see `Supernet.save`."""
    target = Path(path)
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in _tensors(branches).items()}
    metadata = {
        "schema": SCHEMA,
        "structure": _structure_digest(partition, branches),
        "model": _content(_model_tensors(branches)),
        "content": _content(tensors.items()),
        "inputs": _example_inputs(partition),
    }
    # A single entry, since safetensors writes several in random order.
    header = {_ENTRY: json.dumps(metadata)}
    try:
        replace_file(target, safetensors.torch.save(tensors, header))
    except OSError as e:
        raise UsageError(
            f"the supernet can't be written to {target}",
            expected="a file in a folder that exists, and free disk space",
            got=f"{type(e).__name__}: {e.strerror or e}",
        ) from e


def example_inputs_of(path: str | os.PathLike[str]) -> list[str]:
    """The example inputs that the supernet of a file was captured with.

    Returns:
        A text like ``x=2x3x32x32`` for each, as ``--example-input`` takes them; empty if the file
        can't be read, is older, or has inputs inside of other arguments.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = loads((file.metadata() or {}).get(_ENTRY, "{}").encode()).get("inputs", [])
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError):
        return []
    texts = isinstance(found, list) and all(isinstance(text, str) for text in found)
    return found if texts else []


def load(partition: BlockGraph, branches: _Branches, path: str | os.PathLike[str]) -> None:
    """Read a file of `save` into the same branches; see `Supernet.load`."""
    own = _tensors(branches)
    tensors, metadata = _read(Path(path))
    if metadata.get("schema") != SCHEMA:
        raise _refused(path, f"a file of schema {SCHEMA}", repr(metadata.get("schema")))
    if metadata.get("structure") != _structure_digest(partition, branches):
        differences = _differences(own, tensors)
        made = dict.fromkeys(name.partition("@")[0] for name in tensors)
        fix = (
            "expand the same model with the same gamma and kinds; the file has weights of "
            f"{', '.join(made)}"
        )
        if not differences:
            theirs, here = example_inputs_of(path), _example_inputs(partition)
            fix += ", from the same example inputs"
            differences = (
                f"captured with {', '.join(theirs)} instead of {', '.join(here)}"
                if theirs and theirs != here
                else "same names, other operators"
            )
        got = f"branches of another supernet: {differences}"
        raise _refused(path, "the branches of this supernet", got, fix)
    differences = _differences(own, tensors)
    if differences or metadata.get("content") != _content(tensors.items()):
        raise _refused(path, "an unchanged file", differences or "other bytes")
    if metadata.get("model") != _content(_model_tensors(branches)):
        logger.warning(
            "%s was saved beside other weights of the model: its branches learned to mimic those "
            "weights, and may be of little use beside the present ones",
            path,
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])


def _structure_digest(partition: BlockGraph, branches: _Branches) -> str:
    """A digest of the blocks, the branches and the shapes of their weights."""
    # Names of inputs don't change the branches.
    signature = dataclasses.replace(partition.signature, names=partition.signature.inputs)
    text = to_text(dataclasses.replace(partition, signature=signature))
    lines = [text, *(repr(branch.spec) for branch in branches.values())]
    lines += [repr(kept) for branch in branches.values() for kept in branch.spec.cache]
    lines += [f"{k} {v.dtype} {tuple(v.shape)}" for k, v in _tensors(branches).items()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _example_inputs(partition: BlockGraph) -> list[str]:
    """See `example_inputs_of`."""
    names = partition.signature.captured
    if len(names) != len(partition.example):
        return []
    texts = []
    for name, value in zip(names, partition.example, strict=True):
        dtype = str(value.dtype).removeprefix("torch.")
        kind = "" if dtype == "float32" else f"{dtype}:"
        texts.append(f"{name}={kind}{'x'.join(map(str, value.shape))}")
    return texts


def _tensors(branches: _Branches) -> dict[str, Tensor]:
    """The parameters and buffers of the new branches, by branch and name.

    What branches share is under the name of the first of them.
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for branch in branches.values():
        if branch.frozen:
            continue
        own = branch.module.state_dict(keep_vars=True)
        found |= {f"{branch.id}/{name_of(k)}": v for k, v in own.items() if id(v) not in seen}
        seen.update(map(id, own.values()))
    return found


def _model_tensors(branches: _Branches) -> Iterable[tuple[str, Tensor]]:
    for branch in branches.values():
        if branch.frozen:
            yield from branch.module.state_dict().items()


def _content(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise _refused(path, "a file of supernet.save", "no file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = loads((file.metadata() or {}).get(_ENTRY, "{}").encode())
            return {k: file.get_tensor(k) for k in file.keys()}, dict(metadata)  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError) as e:
        raise _refused(path, "a complete safetensors file", str(e)) from e


def _differences(own: dict[str, Tensor], found: dict[str, Tensor]) -> str:
    for name, value in own.items():
        if name not in found:
            return f"it has no {name}"
        other = found[name]
        if (other.dtype, other.shape) != (value.dtype, value.shape):
            return (
                f"{name} is {other.dtype} {list(other.shape)}, "
                f"not {value.dtype} {list(value.shape)}"
            )
    extra = [name for name in found if name not in own]
    return f"it also has {extra[0]}" if extra else ""


def _refused(path: object, expected: str, got: str, fix: str | None = None) -> UsageError:
    what = f"{path} can't be loaded into this supernet"
    return UsageError(what, expected=expected, got=got, fix=fix)
