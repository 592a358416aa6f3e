"""Shapes, dtypes and FLOPs of a changed graph, without running it on data."""

from __future__ import annotations

import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._sympy.symbol import SymT, symbol_is_type

from fxelastic.ir.flops import node_flops
from fxelastic.ir.graph_symbols import GraphSymbol, concrete_shape, one_sample, size_at
from fxelastic.ir.operators import ACTIVATIONS, operator_name
from fxelastic.spec.symbols import Symbol

logger = logging.getLogger(__name__)

#: Batch sizes for trying a changed graph; the last one gives the FLOPs of one sample. The first
#: differs from 3, the batch size of pruning's analysis, so that a size left over from there shows.
BATCH_SIZES = (5, 1)


def misfit(
    module: fx.GraphModule,
    operands: Sequence[torch.Tensor],
    results: Sequence[torch.Tensor],
    symbols: Sequence[GraphSymbol],
    batch_sizes: Sequence[int] = BATCH_SIZES,
) -> str:
    """The reason why a graph does not give certain shapes and dtypes; empty if it does.

    The graph runs on tensors without data, with numbers for symbolic sizes: on the partition's
    fake tensors, some operators would fix the batch size for good.

    Args:
        module: The graph. Its nodes get new ``meta["val"]``.
        operands: Fake tensors, one for each placeholder; sizes may be symbolic.
        results: Fake tensors of the right results.
        symbols: The partition's symbols. Those that don't count samples have the example's sizes
            in the last try, and others before.
        batch_sizes: Batch sizes to try; the nodes keep the values of the last one.
    """
    variables = _variables((*operands, *results))
    *first, last = batch_sizes
    tries = [(n, sizes) for n in first for sizes in _tried_sizes(symbols)]
    for batch_size, sizes in [*tries, (last, {})] if variables else [(0, {})]:
        numbers = _Sizes(variables, symbols, batch_size, sizes)
        try:
            found = _run(module, operands, numbers)
        except Exception as e:  # noqa: BLE001  # operators raise errors of all types
            return f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"
        given = found if isinstance(found, tuple) else (found,)
        for value, result in zip(given, results, strict=True):
            if not isinstance(value, torch.Tensor):
                return f"it gives a {type(value).__name__}"
            wanted = numbers.of(result.shape)
            if value.dtype != result.dtype or list(value.shape) != wanted:
                kinds = _kind(value.dtype, value.shape), _kind(result.dtype, wanted)
                return "it gives {} instead of {}".format(*kinds)
    return ""


def shapes_at(
    module: fx.GraphModule, operands: Sequence[Any], tries: Sequence[Mapping[Any, int]]
) -> dict[fx.Node, list[tuple[int, ...]]]:
    """The shapes of a graph's values for several sizes; the nodes' ``meta["val"]`` stays.

    Args:
        module: The graph.
        operands: Fake tensors, one for each placeholder; sizes may be symbolic.
        tries: Values of torch's symbols; 1 for those without an entry.

    Returns:
        The shape of each node that is a tensor, for each of the tries; empty if the graph does not
        run with some of them.
    """
    nodes = list(module.graph.nodes)
    before = [node.meta.get("val") for node in nodes]
    shapes: dict[fx.Node, list[tuple[int, ...]]] = {node: [] for node in nodes}
    try:
        for numbers in tries:
            _run(module, operands, _Numbers(numbers))
            for node in nodes:
                value = node.meta.get("val")
                shapes[node] += [tuple(value.shape)] if isinstance(value, torch.Tensor) else []
    except Exception as e:  # noqa: BLE001  # operators raise errors of all types
        logger.debug("no shapes at other sizes: %s", e)
        return {}
    finally:
        for node, value in zip(nodes, before, strict=True):
            node.meta["val"] = value
    return shapes


def _run(module: fx.GraphModule, operands: Sequence[Any], numbers: _Numbers) -> Any:
    try:
        return _on_meta(module, operands, numbers)
    except Exception:  # noqa: BLE001  # fakes of the real device may work
        return _on_fakes(module, operands, numbers)


def _on_meta(module: fx.GraphModule, operands: Sequence[Any], numbers: _Numbers) -> Any:
    """Run on tensors without storage, mostly ten times as fast as on fakes."""
    with torch.no_grad():
        given = [_concrete(value, numbers, torch.device("meta")) for value in operands]
        return _MetaRun(module).run(*given)


def _on_fakes(module: fx.GraphModule, operands: Sequence[Any], numbers: _Numbers) -> Any:
    """Run on fakes, which know their device."""
    mode = FakeTensorMode()
    with mode, torch.no_grad(), _no_log():
        given = [_concrete(value, numbers) for value in operands]
        return _FakeRun(module, mode).run(*given)


@contextlib.contextmanager
def _no_log() -> Iterator[None]:
    """Silence torch, which logs an operator's failure that is an answer here."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _kind(dtype: torch.dtype, shape: Sequence[int]) -> str:
    return f"{str(dtype).removeprefix('torch.')}{list(shape)}"


def graph_flops(module: fx.GraphModule, sizes: Mapping[Any, int] | None = None) -> int:
    """Floating point operations of one sample, by the nodes' ``meta["val"]``.

    Args:
        module: The graph.
        sizes: Values of torch's symbols; 1 for those without an entry.
    """
    return sum(node_flops(node, sizes) for node in module.graph.nodes)


def computes_nothing(module: fx.GraphModule, symbols: Sequence[GraphSymbol]) -> bool:
    """Whether a branch has no FLOPs: at most norms, activations and views.

    An opaque module may compute anything, so a branch with one has FLOPs.
    """
    called = (
        module.get_submodule(str(node.target))
        for node in module.graph.nodes
        if node.op == "call_module"
    )
    opaque = any(not isinstance(part, nn.modules.batchnorm._BatchNorm) for part in called)
    return not opaque and not graph_flops(module, one_sample(symbols))


def same_kind(one: Any, other: Any) -> bool:
    """Whether two fake tensors have the same shape, symbolic sizes included, and dtype."""
    return (
        isinstance(one, torch.Tensor)
        and isinstance(other, torch.Tensor)
        and one.dtype == other.dtype
        and sizes(one) == sizes(other)
    )


def is_feature(value: Any) -> bool:
    """Whether another value of the same shape may replace it, unlike indices and flags.

    An index into 8,400 boxes is useless for 300 boxes, though both are numbers of one shape.
    """
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())


def sizes(value: torch.Tensor) -> tuple[int | str, ...]:
    """The sizes of a fake tensor; symbolic sizes as texts, which compare without a guard."""
    return tuple(
        str(size.node.expr) if isinstance(size, torch.SymInt) else int(size) for size in value.shape
    )


def example_shapes(value: torch.Tensor, symbols: Sequence[GraphSymbol]) -> list[tuple[int, ...]]:
    """The shapes of a fake tensor at the example's sizes, and at others if sizes vary.

    Args:
        value: The tensor. Sizes that data choose count as 1.
        symbols: The partition's symbols.
    """
    others = [sizes for sizes in _tried_sizes(symbols) if sizes]
    return [concrete_shape(value, symbols, sizes) for sizes in ({}, *others)]


def _tried_sizes(symbols: Sequence[GraphSymbol]) -> list[dict[str, int]]:
    """Other sizes than the example's: three next to it, which divide unlike it, and a far one.

    Two sizes are both odd, both even, and one of each, so that a product of them is odd, too.
    A single empty entry if no size besides the batch varies.
    """
    others = [s.symbol for s in symbols if not s.is_batch]
    if not others:
        return [{}]
    steps = ((1, 2), (2, 2), (3, 1))
    near = [{s.name: _near(s, n + i * more) for i, s in enumerate(others)} for n, more in steps]
    return [*near, {s.name: s.large(2 + i) for i, s in enumerate(others)}]


def _near(symbol: Symbol, n: int) -> int:
    """The size ``n`` steps above the example's, or below it if that is out of range."""
    around = (symbol.example + n * symbol.step, symbol.example - n * symbol.step)
    return next((size for size in around if symbol.holds(size)), symbol.example)


def _concrete(value: Any, numbers: _Numbers, device: torch.device | None = None) -> Any:
    """A tensor of the same shape and dtype with numbers for its sizes."""
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty(numbers.of(value.shape), dtype=value.dtype, device=device or value.device)


def _variables(values: Sequence[Any]) -> list[Any]:
    """The symbols in the sizes of fake tensors: the batch first, then sizes that depend on data."""
    found: set[Any] = set()
    for value in values:
        shape: Sequence[Any] = value.shape if isinstance(value, torch.Tensor) else ()
        for size in shape:
            found |= size.node.expr.free_symbols if isinstance(size, torch.SymInt) else set()
    return sorted(
        found, key=lambda symbol: (symbol_is_type(symbol, SymT.UNBACKED_INT), str(symbol))
    )


class _Numbers:
    """Numbers for symbolic sizes; 1 for those without an entry."""

    def __init__(self, numbers: Mapping[Any, int]) -> None:
        self._numbers = numbers

    def of(self, shape: Sequence[int | torch.SymInt]) -> list[int]:
        return [size_at(size, self._numbers) for size in shape]


class _Sizes(_Numbers):
    """Numbers for symbolic sizes, different for each symbol except in a batch of 1.

    Rows that data choose are not the samples of the batch, though there may be as many of them.
    """

    def __init__(
        self,
        variables: Sequence[Any],
        symbols: Sequence[GraphSymbol],
        batch_size: int,
        sizes: Mapping[str, int],
    ) -> None:
        numbers: dict[Any, int] = {
            s.variable: s.value(sizes.get(s.symbol.name, s.symbol.example))
            for s in symbols
            if not s.is_batch
        }
        rest = [v for v in variables if v not in numbers]
        numbers |= {v: batch_size + i * (batch_size - 1) for i, v in enumerate(rest)}
        super().__init__(numbers)


class _ShapeRun(fx.Interpreter, ABC):
    """Runs a graph over weights without data."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta["val"] = result
        return result

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._fake(super().get_attr(target, args, kwargs))

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module: nn.Module = self.fetch_attr(str(target))
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return torch.empty_like(args[0])
        weights = {name: self._fake(p) for name, p in module.named_parameters()}
        weights |= {name: self._fake(b) for name, b in module.named_buffers()}
        return torch.func.functional_call(module, weights, args, kwargs)

    @abstractmethod
    def _fake(self, value: Any) -> Any:
        """A tensor without data for a weight; other values stay."""


class _MetaRun(_ShapeRun):
    def run_node(self, n: fx.Node) -> Any:
        # Several of these are written in Python for this device, and take as long as on fakes.
        if operator_name(n) in ACTIVATIONS:
            operand = self.fetch_args_kwargs_from_env(n)[0][0]
            if operand.is_floating_point():
                n.meta["val"] = torch.empty_like(operand)
                return n.meta["val"]
        return super().run_node(n)

    def _fake(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return torch.empty_like(value, device="meta")


class _FakeRun(_ShapeRun):
    def __init__(self, module: fx.GraphModule, mode: FakeTensorMode) -> None:
        super().__init__(module)
        self._mode = mode

    def _fake(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or isinstance(value, FakeTensor):
            return value
        return self._mode.from_tensor(value, static_shapes=True)
