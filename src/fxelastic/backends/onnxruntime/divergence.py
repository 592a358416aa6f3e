"""Find the first operator whose results differ between a file and its module.

The exporter folds and rewrites operators, so values are compared by their elements, not by names.
If the result of an operator is not in the file but the result of a later one is, the exporter has
folded it. The diverging operator has no such successor.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import fx, nn

from fxelastic.backends.onnxruntime.comparison import compare
from fxelastic.backends.onnxruntime.conversion import quiet_exporter
from fxelastic.backends.onnxruntime.running import open_session, run

logger = logging.getLogger(__name__)


def diverging_operator(
    path: Path,
    module: nn.Module,
    operands: Mapping[str, torch.Tensor],
    tolerances: Mapping[str, float],
) -> str | None:
    """The first operator whose result, like all results that depend on it, is not in the file.

    Args:
        path: The ONNX file.
        module: The module that it was made from.
        operands: The module's operands in order, by the names of the file's inputs.
        tolerances: As for `compare`.

    Returns:
        An ATen operator, ``aten.relu.default``; None if none is found.
    """
    try:
        nodes = _torch_values(module, list(operands.values()))
        arrays = _file_values(path, operands)
    except Exception as e:  # noqa: BLE001 - this explains a failure; it must not hide it
        logger.debug("the operators of %s can't be compared one by one: %s", path.name, e)
        return None
    found = {node for node, value in nodes.items() if _is_among(value, arrays.values(), tolerances)}
    # In reverse order: whether a result that depends on a node is in the file.
    reached: set[fx.Node] = set(found)
    for node in reversed(nodes):
        if any(user in reached for user in node.users):
            reached.add(node)
    for node in nodes:
        if node not in reached:
            # One of several results belongs to the operator.
            source = node.args[0] if node.target is operator.getitem else node
            return str(source.target) if isinstance(source, fx.Node) else None
    return None


def _torch_values(module: nn.Module, operands: Sequence[torch.Tensor]) -> dict[fx.Node, Any]:
    """Every tensor that the module's operators compute, in order."""
    with quiet_exporter():
        graph_module = torch.export.export(module, tuple(operands), strict=False).module()
    assert isinstance(graph_module, fx.GraphModule)
    values: dict[fx.Node, Any] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            result = super().run_node(node)
            if node.op == "call_function" and isinstance(result, torch.Tensor):
                values[node] = result.clone()
            return result

    with torch.no_grad():
        Recorder(graph_module).run(*operands)
    return values


def _file_values(
    path: Path, operands: Mapping[str, torch.Tensor]
) -> dict[str, np.ndarray[Any, Any]]:
    """Every array that the file computes; as outputs, they prevent optimisations."""
    model = onnx.load(str(path))
    outputs = {value.name for value in model.graph.output}
    for node in model.graph.node:
        for name in node.output:
            if name and name not in outputs:
                outputs.add(name)
                model.graph.output.append(onnx.ValueInfoProto(name=name))
    values = run(open_session(model.SerializeToString()), operands)
    # Loops and splits pass sequences, which no operator of torch gives.
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


def _is_among(value: torch.Tensor, arrays: Any, tolerances: Mapping[str, float]) -> bool:
    return any(
        tuple(array.shape) == tuple(value.shape) and compare("", array, value, tolerances) is None
        for array in arrays
    )
