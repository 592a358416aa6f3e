"""Run ONNX files on torch's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from fxelastic.errors import ExportError


def open_session(model: Path | bytes, threads: int = 1) -> onnxruntime.InferenceSession:
    """A session on CPU that writes nothing to stderr.

    Raises:
        ExportError: onnxruntime refuses the model; the message has its reason.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as e:  # its error types derive from Exception one by one
        raise ExportError(
            "onnxruntime can't run a converted model",
            expected="operators and dtypes that it has kernels for",
            got=_first_line(e),
            fix="for a dtype, convert the model first, e.g. with model.float()",
        ) from e


def run(
    session: onnxruntime.InferenceSession, values: Mapping[str, Any]
) -> dict[str, np.ndarray[Any, Any]]:
    """Run a session on the values that it reads.

    Args:
        session: From `open_session`.
        values: Tensors by name; more than are read may be there.

    Returns:
        Its outputs by name.

    Raises:
        ExportError: onnxruntime fails.
    """
    names = [output.name for output in session.get_outputs()]
    try:
        feeds = {info.name: _array(values[info.name]) for info in session.get_inputs()}
        return dict(zip(names, session.run(names, feeds), strict=True))
    except Exception as e:  # as above
        raise ExportError("onnxruntime fails on a converted model", got=_first_line(e)) from e


def _array(value: torch.Tensor) -> np.ndarray[Any, Any]:
    return value.detach().cpu().resolve_conj().numpy()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:500]}"
