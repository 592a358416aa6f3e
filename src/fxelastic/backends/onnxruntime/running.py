"""Run ONNX files on torch's tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from fxelastic.errors import ExportError

# Prefixes of onnxruntime's messages.
_PREAMBLE = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from .*? failed:\s*|"
    r"Non-zero status code returned while |This is an invalid model\. "
)


# Names of the floating-point dtype for which onnxruntime has all operators.
_COMMON = ("float", "float32")


class RefusedError(ExportError):
    """onnxruntime can't load a converted file, or fails when it runs the file.

    Attributes:
        loads: Whether the file could be loaded.
    """

    def __init__(self, what: str, *, loads: bool = False, **parts: str | None) -> None:
        """Build the error from the parts of its message; ``loads`` as in the attributes."""
        super().__init__(what, **parts)
        self.loads = loads


def open_session(model: Path | bytes, threads: int = 1) -> onnxruntime.InferenceSession:
    """A session on CPU that writes nothing to stderr.

    Raises:
        RefusedError: onnxruntime can't load the model; the message has its reason.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as e:  # its error types have no common base class
        raise _refused(model, e, loads=False) from e


def run(
    session: onnxruntime.InferenceSession, values: Mapping[str, Any]
) -> dict[str, np.ndarray[Any, Any]]:
    """Run a session.

    Args:
        session: The session, from `open_session`.
        values: Tensors by name, including all that it reads.

    Returns:
        Its outputs by name.

    Raises:
        RefusedError: onnxruntime fails.
    """
    names = [output.name for output in session.get_outputs()]
    feeds = {info.name: _array(values[info.name]) for info in session.get_inputs()}
    try:
        return dict(zip(names, session.run(names, feeds), strict=True))
    except Exception as e:  # as above
        raise _refused(None, e, loads=True) from e


def _array(value: torch.Tensor) -> np.ndarray[Any, Any]:
    try:
        return value.detach().cpu().resolve_conj().numpy()
    except TypeError as e:  # bfloat16 and narrower
        raise RefusedError(
            "onnxruntime can't take inputs of this dtype",
            loads=True,
            expected="dtypes of numpy",
            got=str(value.dtype),
            fix="compute it in float32, e.g. after model.float()",
        ) from e


def _refused(model: Path | bytes | None, error: Exception, loads: bool) -> RefusedError:
    """The error for onnxruntime's message, with the operator and its dtypes if it names a node."""
    said = _PREAMBLE.sub("", str(error).strip().splitlines()[0])
    what = f"onnxruntime fails to {'run' if loads else 'load'} the converted model"
    kernel = re.search(r"Could not find an implementation for (\w+)\(\d+\) .*'(.*)'", said)
    typed = re.search(r"Type '(?:tensor\()?(\w+)\)?' of input .* of operator \((\w+)\)", said)
    named = re.search(r"Op \((\w+)\)|running (\w+) node", said)
    if kernel is not None:
        operator, dtypes = kernel[1], _dtypes(model, kernel[2])
        said = f"it has no kernel for {operator}" + (f" of {' and '.join(dtypes)}" * bool(dtypes))
    elif typed is not None:
        operator, dtypes = typed[2], [typed[1]]
    else:
        operator, dtypes = (named[1] or named[2]) if named else "", []
    if any("float" in dtype or dtype == "double" for dtype in dtypes if dtype not in _COMMON):
        fix = f"compute the operator that becomes {operator} in float32, e.g. after model.float()"
    elif dtypes:
        fix = f"replace the operator that becomes {operator}, or compute it in another dtype"
    elif operator:
        fix = f"replace the operator that becomes {operator}, and report its conversion"
    else:
        fix = "report it, with the model"
    expected = "operators and dtypes for which onnxruntime has kernels"
    return RefusedError(what, loads=loads, expected=expected, got=said[:300], fix=fix)


def _dtypes(model: Path | bytes | None, node_name: str) -> list[str]:
    """The dtypes that a node reads; the model's if the node is inside a function."""
    try:
        proto = (
            onnx.load_model_from_string(model)
            if isinstance(model, bytes)
            else onnx.load(str(model), load_external_data=False)
        )
        graph = onnx.shape_inference.infer_shapes(proto).graph
    except Exception:  # noqa: BLE001 - this explains a failure; it must not hide it
        return []
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        types[value.name] = value.type.tensor_type.elem_type
    reads = [node.input for node in graph.node if node.name == node_name]
    reads = reads or [[value.name for value in graph.input]]
    found = [types[name] for names in reads for name in names if types.get(name)]
    return [onnx.helper.tensor_dtype_to_np_dtype(kind).name for kind in dict.fromkeys(found)]
