"""Compare a captured graph with its model by running both."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
import threading
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import fx, nn

from fxelastic.errors import CaptureError, listed, said
from fxelastic.ir import trees
from fxelastic.ir.causes import is_library, quoted
from fxelastic.ir.graph_symbols import concrete_shape
from fxelastic.ir.operators import operator_name
from fxelastic.ir.traced import Traced
from fxelastic.passes.caches import find_caches
from fxelastic.passes.checks import refuse_state
from fxelastic.passes.dynamic_shapes import DynamicShapes, resized

logger = logging.getLogger(__name__)

_Results: TypeAlias = "tuple[list[Any], trees.Tree]"

_watching = threading.RLock()

# Errors that a graph's operators raise for unsupported sizes.
_FAILURES = (RuntimeError, IndexError, ValueError)

#: Largest relative difference that counts as rounding.
_TOLERANCE = 1e-3

# The largest size that is tried, in multiples of the example's.
_LARGE = 4


class SizeFixedError(Exception):
    """The captured graph is right for the example's size only.

    Attributes:
        symbol: The size's name.
    """

    def __init__(self, symbol: str, why: str) -> None:
        super().__init__(why)
        self.symbol = symbol


def check_capture(
    traced: Traced,
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    shapes: DynamicShapes,
) -> Traced:
    """Run the model and its capture on the example inputs and at other sizes, and compare.

    Args:
        traced: The capture.
        model: The clone for the capture.
        args: Positional example inputs.
        kwargs: Keyword example inputs.
        shapes: The dimensions that vary.

    Returns:
        The same capture, with a warning if the results agree only approximately.

    Raises:
        CaptureError: The results differ on the example inputs.
        SizeFixedError: They differ at another size, or the capture does not run there.
    """
    leaves, tree = trees.flatten((args, kwargs))
    found = list(traced.warnings)
    functions: set[str] = set()
    with _noted_functions(functions):
        expected = _results(model, tree, leaves)
    try:
        captured = _results(traced, tree, leaves)
        worst = _farthest(expected, captured)
    except _FAILURES as e:
        raise _unlike(traced, shapes, said(e)) from e
    again = _results(model, tree, leaves)
    if _farthest(expected, again) > _TOLERANCE:
        refuse_state(model, args, kwargs)
        found.append(f"{_unsteady(expected, again)}: the capture can't be compared")
        return dataclasses.replace(traced, warnings=tuple(found))
    if worst > _TOLERANCE:
        raise _unlike(traced, shapes, _difference_in_words(expected, captured, worst))
    for sizes in _other_sizes(shapes):
        worst = max(worst, _difference_at(traced, model, tree, leaves, shapes, sizes))
    if shapes.batch:
        found += _alone(traced, model, tree, leaves, shapes)
    if _farthest(expected, _results(model, tree, leaves, seed=1)) > _TOLERANCE:
        found.append(
            "the model draws random numbers in eval mode, so an export can't be compared with it"
        )
    if functions:
        found.append(
            f"the backward of {listed(sorted(functions))} is not captured: training takes the "
            "gradients of the operators in forward"
        )
    if worst:
        found.append(f"the capture agrees with the model to {worst:.0e}, not bit for bit")
    return dataclasses.replace(traced, warnings=tuple(found))


def with_empty_caches(
    traced: Traced,
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    shapes: DynamicShapes,
) -> Traced:
    """Let the lengths of caches be 0 if the model takes that, as in the first step of a decoder.

    Args:
        traced: The capture.
        model: The clone for the capture.
        args: Positional example inputs.
        kwargs: Keyword example inputs.
        shapes: The dimensions that vary.

    Returns:
        The same capture with wider ranges, if it computes what the model does at these lengths.
    """
    leaves, tree = trees.flatten((args, kwargs))
    inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
    others = {s.name: s.min for name, s in shapes.symbols.items() if name != shapes.batch}
    for cache in find_caches(traced.graph):
        size = shapes.dims[inputs.index(cache.past)].get(cache.dim)
        if size is None or str(size) not in shapes.from_zero or not others.get(size.symbol):
            continue
        for sizes in ({size.symbol: 0}, {**others, size.symbol: 0}):
            example = resized(leaves, shapes, sizes)
            expected = _results_if_any(model, tree, example)
            try:
                same = expected and _difference(traced, expected, tree, example) <= _TOLERANCE
            except _FAILURES:
                same = False
            if not same:
                break
        else:
            others[size.symbol] = 0
    symbols = tuple(
        dataclasses.replace(s, symbol=dataclasses.replace(s.symbol, min=0))
        if others.get(s.symbol.name) == 0
        else s
        for s in traced.symbols
    )
    return dataclasses.replace(traced, symbols=symbols)


def _difference_at(
    traced: Traced,
    model: nn.Module,
    tree: trees.Tree,
    leaves: list[Any],
    shapes: DynamicShapes,
    sizes: Mapping[str, int],
) -> float:
    """The largest relative difference at other sizes; 0 if the model does not run there."""
    example = resized(leaves, shapes, sizes)
    expected = _results_if_any(model, tree, example)
    if expected is None:
        return 0.0
    symbol = next(iter(sizes))
    named = ", ".join(f"{name} = {size}" for name, size in sizes.items())
    where = f"at batch size {sizes[symbol]}" if symbol == shapes.batch else f"at {named}"
    try:
        difference = _difference(traced, expected, tree, example)
    except _FAILURES as e:
        operator = _deciding_operator(traced, tree, example, sizes)
        raise SizeFixedError(symbol, f"{where}, {operator}{said(e)}") from e
    if difference > _TOLERANCE:
        operator = _deciding_operator(traced, tree, example, sizes)
        raise SizeFixedError(symbol, f"{where}, {operator}the capture computes another result")
    return difference


def agrees_at(
    traced: Traced,
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    shapes: DynamicShapes,
    sizes: Mapping[str, int],
) -> bool | None:
    """Whether a capture agrees with its model at other sizes; None if the model does not run.

    Args:
        traced: The capture.
        model: The clone for the capture.
        args: Positional example inputs.
        kwargs: Keyword example inputs.
        shapes: The dimensions that vary.
        sizes: Values of symbols.
    """
    leaves, tree = trees.flatten((args, kwargs))
    example = resized(leaves, shapes, sizes)
    expected = _results_if_any(model, tree, example)
    if expected is None:
        return None
    try:
        return _difference(traced, expected, tree, example) <= _TOLERANCE
    except _FAILURES:
        return False


def _other_sizes(shapes: DynamicShapes) -> list[dict[str, int]]:
    """Sizes at which the capture is compared with the model, besides the example's."""
    found: list[dict[str, int]] = []
    others = [s for name, s in shapes.symbols.items() if name != shapes.batch]
    if shapes.batch:
        # One more sample, and a number with other divisors, since a graph may hold a guess at
        # either.
        size = shapes.symbols[shapes.batch].example
        found += [{shapes.batch: size + 1}, {shapes.batch: size + 4}]
    for symbol in others:
        size, step = symbol.example, symbol.step
        tried = (size + step, size + 4 * step, size - step, symbol.large(_LARGE), symbol.min)
        found += [{symbol.name: n} for n in dict.fromkeys(tried) if symbol.holds(n) and n != size]
    if len(others) > 1:
        found.append({symbol.name: symbol.min for symbol in others})
        found.append({symbol.name: symbol.large(_LARGE) for symbol in others})
    return found


def _alone(
    traced: Traced, model: nn.Module, tree: trees.Tree, leaves: list[Any], shapes: DynamicShapes
) -> list[str]:
    """Warnings if the capture treats a single sample unlike a batch.

    A model that squeezes all dimensions of size 1 does so; other batch sizes are as useful.
    """
    example = resized(leaves, shapes, {shapes.batch: 1})
    expected = _results_if_any(model, tree, example)
    if expected is None:
        return []
    try:
        difference = _difference(traced, expected, tree, example)
    except _FAILURES as e:
        return [f"at batch size 1 the capture can't be run, but the model can: {said(e)}"]
    if difference > _TOLERANCE:
        return ["at batch size 1 the capture computes another result than the model"]
    return []


def _results_if_any(model: nn.Module, tree: trees.Tree, leaves: list[Any]) -> _Results | None:
    """The model's results; None if it does not run on these inputs."""
    try:
        return _results(model, tree, leaves)
    except Exception as e:  # noqa: BLE001  # the user's own code
        logger.debug("the model itself does not run on other inputs: %s", e)
        return None


def _unlike(traced: Traced, shapes: DynamicShapes, got: str) -> Exception:
    if shapes.batch:
        # A model may treat a single sample unlike a batch; the capture has a batch.
        return SizeFixedError(shapes.batch, f"at the example's batch size, {got}")
    return CaptureError(
        f"the captured graph of {traced.model_name} computes another result",
        expected="the model's own result on the example inputs",
        got=got,
        fix="look for Python code in forward() that depends on values, on state, or on whether "
        "torch compiles it (torch.compiler.is_compiling)",
    )


def _results(
    function: Any, tree: trees.Tree, leaves: list[Any], seed: int | None = None
) -> _Results:
    args, kwargs = trees.unflatten(tree, _copies(leaves))
    return _run(function, args, kwargs, seed)


def _difference(traced: Traced, expected: _Results, tree: trees.Tree, leaves: list[Any]) -> float:
    return _farthest(expected, _results(traced, tree, leaves))


def _deciding_operator(
    traced: Traced, tree: trees.Tree, leaves: list[Any], sizes: Mapping[str, int]
) -> str:
    """The first operator that fails, or gives another shape than it was captured with.

    Returns:
        It and the model's line, as ``aten.reshape at net.py:12: x.reshape(…); ``; empty if there is
        none.
    """
    args, kwargs = trees.unflatten(tree, _copies(leaves))
    watched = _Watched(traced, sizes)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), contextlib.suppress(*_FAILURES):
        watched.run(*traced.signature.flatten_arguments(args, kwargs))
        return ""
    node = watched.last
    if node.op == "placeholder":
        return ""
    calls = re.findall(r'File "(.+)", line (\d+)', node.meta.get("stack_trace") or "")
    own = [quoted(file, int(line)) for file, line in calls if not is_library(file)]
    return f"{operator_name(node)} at {own[-1]}; " if own else f"{operator_name(node)}; "


class _Watched(fx.Interpreter):
    """Runs a capture up to the first value of another shape than captured; knows its node."""

    last: fx.Node

    def __init__(self, traced: Traced, sizes: Mapping[str, int]) -> None:
        super().__init__(traced.graph_module)
        self._symbols, self._sizes = traced.symbols, sizes

    def run_node(self, n: fx.Node) -> Any:
        self.last = n
        result, like = super().run_node(n), n.meta.get("val")
        if isinstance(result, torch.Tensor) and isinstance(like, torch.Tensor):
            shape = concrete_shape(like, self._symbols, self._sizes)
            known = [i for i, size in enumerate(like.shape) if self._follows(size)]
            if result.dim() != len(shape) or any(result.shape[i] != shape[i] for i in known):
                raise ValueError("another shape")
        return result

    def _follows(self, size: Any) -> bool:
        """Whether a size follows from the symbols; data may choose others."""
        known = {symbol.variable for symbol in self._symbols}
        return not isinstance(size, torch.SymInt) or size.node.expr.free_symbols <= known


def _farthest(a: _Results, b: _Results) -> float:
    """The largest relative difference of the results."""
    if a[1] != b[1]:
        return float("inf")
    return max((_relative(x, y) for x, y in zip(a[0], b[0], strict=True)), default=0.0)


def _unsteady(expected: _Results, again: _Results) -> str:
    """The reason why a model gives other results for the same inputs."""
    if expected[1] != again[1] and _farthest((expected[0], again[1]), again) <= _TOLERANCE:
        return "a result that is not a tensor differs in each call"
    return "the model is random in eval mode, or keeps state"


def _difference_in_words(expected: _Results, found: _Results, worst: float) -> str:
    if expected[1] == found[1]:
        for a, b in zip(expected[0], found[0], strict=True):
            if isinstance(a, torch.Tensor) and a.shape != b.shape:
                return f"a result of shape {tuple(b.shape)} instead of {tuple(a.shape)}"
        return f"a relative difference of {worst:.1e}"
    shapes = [trees.describe(tree) for _, tree in (found, expected)]
    return f"{shapes[0]} instead of {shapes[1]}" if shapes[0] != shapes[1] else "other constants"


def _run(function: Any, args: Any, kwargs: Any, seed: int | None) -> _Results:
    """Run a function, with a seed if there is one."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]), _slow_attention():
        if seed is not None:
            torch.manual_seed(seed)
        return trees.flatten(function(*args, **kwargs))


@contextlib.contextmanager
def _noted_functions(names: set[str]) -> Iterator[None]:
    """Record the called autograd functions that are not torch's."""
    # One at a time: two threads would restore each other's patched function.
    with _watching:
        usual = vars(torch.autograd.Function)["apply"]

        def apply(cls: type, *args: Any, **kwargs: Any) -> Any:
            if not cls.__module__.startswith("torch."):
                names.add(cls.__name__)
            return usual.__get__(None, cls)(*args, **kwargs)

        setattr(torch.autograd.Function, "apply", classmethod(apply))  # noqa: B010
        try:
            yield
        finally:
            setattr(torch.autograd.Function, "apply", usual)  # noqa: B010


@contextlib.contextmanager
def _slow_attention() -> Iterator[None]:
    """Turn off nn.MultiheadAttention's inference kernel, which tracing can't record."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _copies(leaves: list[Any]) -> list[Any]:
    return [leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]


def _relative(a: Any, b: Any) -> float:
    if not isinstance(a, torch.Tensor):
        return 0.0 if a == b else float("inf")
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if torch.equal(a, b) or a.numel() == 0:
        return 0.0
    if not (a.is_floating_point() or a.is_complex()):
        return float("inf")
    if a.dtype.itemsize == 1:  # torch has no arithmetic with 8 bits
        a, b = a.float(), b.float()
    finite = a.isfinite() & b.isfinite()
    if not bool(((a == b) | (a.isnan() & b.isnan()))[~finite].all()):
        return float("inf")
    a, b = a[finite], b[finite]
    if not a.numel():
        return 0.0
    scale = max(float(a.abs().max()), 1e-12)
    return float((a - b).abs().max()) / scale
