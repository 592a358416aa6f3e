"""Choose the score of a search: the caller's, or one that suits the model and the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.searching.scores import METRICS, Array, Metric, Score, metric
from fxelastic.errors import UsageError
from fxelastic.spec.value_info import ValueInfo

_LOGITS = "logits"
_COMPARED = ("agreement", "cosine", "spearman")
#: Operators at the end of a layer of class scores.
_LINEAR = (
    *("Gemm", "MatMul", "Conv", "MatMulNBits"),
    *("QGemm", "QLinearMatMul", "QLinearConv", "MatMulInteger", "ConvInteger"),
)
#: Operators that keep the order of class scores, or move them in memory.
_AFTER = (
    *("Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Softmax", "LogSoftmax"),
    *("Sigmoid", "Add", "Sub", "Mul", "Div", "QuantizeLinear", "DequantizeLinear"),
)


def chosen_metric(bundle: Bundle, score: str | Score | None, *, labelled: bool) -> Metric:
    """The metric of a search.

    Args:
        bundle: The bundle, which lists the model's results.
        score: A function; the name of a built-in score, followed by ``:RESULT`` to choose one of
            several results by name or number; None for ``top1`` with targets, otherwise
            ``agreement`` for class scores and ``cosine`` for other results.
        labelled: Whether the data has targets.

    Returns:
        The metric, whose argument is all flat results of the model.

    Raises:
        UsageError: The score or the result does not exist, or no score is suitable.
    """
    if score is None:
        score = "top1" if labelled else _fitting(bundle)
    if callable(score):
        return _by_sample(metric(score), bundle)
    name, _, result = str(score).partition(":")
    found = metric(name)
    if name == "top1" and not labelled:
        found = METRICS["agreement"]
    if result:
        index = _index(bundle, result)
        found = replace(found, name=f"{found.name}:{result}")
    else:
        index = default_result(bundle) if found.name in _COMPARED else 0
    if index >= len(bundle.outputs):
        raise _no_results()
    return _by_sample(_of_result(found, index, bundle.outputs[index]), bundle)


def default_result(bundle: Bundle) -> int:
    """The flat result that ``agreement``, ``cosine`` and ``spearman`` compare.

    The one named ``logits``, or the first.
    """
    names = [result.name for result in bundle.manifest.results]
    return names.index(_LOGITS) if _LOGITS in names else 0


def _index(bundle: Bundle, result: str) -> int:
    names = [found.name for found in bundle.manifest.results]
    if result in names:
        return names.index(result)
    if result.isdecimal() and int(result) < len(names):
        return int(result)
    raise UsageError(
        f"the model has no result {result!r}",
        expected="one of " + (", ".join(names) or "none") + ", or its number from 0",
        got=repr(result),
        fix="name one of these after the score, or leave the result out",
    )


def _of_result(found: Metric, index: int, info: ValueInfo) -> Metric:
    """A metric that looks at one of the results."""
    # Margins are defined where each sample has one class.
    plain = info.dtype.startswith("float") and len(info.dims) == 2
    margins = found.margins if plain or found.name == "top1" else None
    if index == 0:
        return replace(found, margins=margins)
    score, answers = found.score, found.answers
    return replace(
        found,
        score=lambda outputs, targets: score(outputs[index:], targets),
        margins=margins and (lambda outputs, targets: margins(outputs[index:], targets)),
        answers=lambda outputs: answers(outputs[index:]),
    )


def _by_sample(found: Metric, bundle: Bundle) -> Metric:
    """A metric that gets results with the samples in dimension 0."""
    dims = [bundle.manifest.batch_dims.get(info.name, 0) for info in bundle.outputs]
    if not any(dims):
        return found

    def moved(outputs: Sequence[Array]) -> Sequence[Array]:
        pairs = zip(outputs, dims, strict=True)
        return [np.moveaxis(array, dim, 0) if dim else array for array, dim in pairs]

    score, margins, answers = found.score, found.margins, found.answers
    return replace(
        found,
        score=lambda outputs, targets: score(moved(outputs), targets),
        margins=margins and (lambda outputs, targets: margins(moved(outputs), targets)),
        answers=lambda outputs: answers(moved(outputs)),
    )


def _no_results() -> UsageError:
    return UsageError(
        "the model returns no results",
        expected="a result to score",
        got="no tensors",
        fix="export a model that returns tensors",
    )


def _fitting(bundle: Bundle) -> str:
    """The name of the score that compares a model's results with the original's own."""
    if not bundle.outputs:
        raise _no_results()
    index = default_result(bundle)
    info = bundle.outputs[index]
    if not info.dtype.startswith("float"):
        return "agreement"
    batch = bundle.manifest.batch_dims.get(info.name, 0)
    others = [dim for i, dim in enumerate(info.dims) if i != batch]
    if others and others[0] != 1 and bundle.manifest.results[index].name == _LOGITS:
        return "agreement"
    if len(others) == 1 and others[0] != 1 and _is_linear(bundle, info):
        return "agreement"
    if all(dim == 1 for dim in others):
        raise UsageError(
            "results of one number for each sample need targets or a score of your own",
            expected="targets, or score= a function",
            got=str(info),
            fix="pass score=function of (outputs, targets); without targets, it gets the "
            "original's own results",
        )
    return "cosine"


def _is_linear(bundle: Bundle, info: ValueInfo) -> bool:
    """Whether a value looks like class scores: the result of a linear layer.

    Embeddings usually come from means or norms; their largest element has no meaning.
    """
    name, block = info.name, info.produced
    while block >= 0:
        branch = bundle.space.original.branches[block]
        graph = onnx.ModelProto.FromString(bundle.read(branch)).graph
        made = {output: node for node in graph.node for output in node.output}
        weights = {tensor.name for tensor in graph.initializer}
        weights |= {o for node in graph.node if node.op_type == "Constant" for o in node.output}
        while name in made:
            node = made[name]
            if node.op_type in _LINEAR:
                return True
            read = [value for value in node.input if value and value not in weights]
            if node.op_type not in _AFTER or len(read) != 1:
                return False
            name = read[0]
        if name not in bundle.values or bundle.values[name].produced >= block:
            return False
        block = bundle.values[name].produced
    return False
