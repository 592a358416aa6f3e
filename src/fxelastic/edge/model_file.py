"""Write an ONNX model atomically: a crash leaves the old file or the new one."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from pathlib import Path

import onnx
from onnx.external_data_helper import convert_model_to_external_data

from fxelastic.errors import BundleError, UsageError
from fxelastic.files import sibling, sweep, sync

#: Weights of larger models go to a separate file, because protobuf has a limit of 2 GiB.
MAX_FILE_BYTES = 2**31 - 2**24


def write_model(
    model: onnx.ModelProto, path: Path, what: str, max_file_bytes: int = MAX_FILE_BYTES
) -> Path:
    """Check a model and write it.

    Args:
        model: The model; its weights may be moved out of it.
        path: The file; an existing file is replaced atomically.
        what: A name for the model, for messages.
        max_file_bytes: The largest file without external data.

    Returns:
        The path.

    Raises:
        BundleError: The model is not valid.
        UsageError: The file can't be written.
    """
    folder = sibling(path, "new")
    try:
        sweep(path)
        folder.mkdir(mode=0o700)
    except OSError as e:
        raise _unwritable(path, e) from e
    try:
        temporary = folder / path.name
        data = _serialised(model, max_file_bytes)
        if data is not None:
            _check(data, what)
            temporary.write_bytes(data)
        else:
            _write_outside(model, temporary)
            _check(os.fspath(temporary), what)
        # Move the model last: it refers to the file of weights, whose name contains their digest.
        for file in sorted(folder.iterdir(), key=lambda file: file == temporary):
            sync(file)
            file.replace(path.parent / file.name)
        sync(path.parent)
    except OSError as e:
        raise _unwritable(path, e) from e
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return path


def _serialised(model: onnx.ModelProto, most: int) -> bytes | None:
    """The bytes of a model; None if there are more than ``most``."""
    # Weights alone may be more than protobuf can serialise, and each serialisation copies them.
    if sum(_size(tensor) for tensor in model.graph.initializer) > most:
        return None
    data: bytes = model.SerializeToString(deterministic=True)
    return data if len(data) <= most else None


def _size(tensor: onnx.TensorProto) -> int:
    """The bytes of a tensor's elements."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return int(math.prod(tensor.dims) * dtype.itemsize)


def _write_outside(model: onnx.ModelProto, path: Path) -> None:
    digest = hashlib.sha256()
    for tensor in model.graph.initializer:
        digest.update(tensor.raw_data)
    location = f"{path.name}.{digest.hexdigest()[:16]}.data"
    convert_model_to_external_data(model, all_tensors_to_one_file=True, location=location)
    onnx.save_model(model, os.fspath(path))


def _check(model: bytes | str, what: str) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as e:
        raise BundleError(
            f"{what} is not a valid ONNX model",
            expected="a model that onnx.checker accepts",
            got=str(e),
            fix="please report it, with the bundle's manifest.json",
        ) from e


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(
        f"can't write {path}",
        expected="a path in an existing, writable folder, on a disk with free space",
        got=f"{type(error).__name__}: {error.strerror or error}",
        fix="check the path",
    )
