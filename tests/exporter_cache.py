"""What torch's exporter computes anew for each export, with the same result, is kept.

That is three quarters of the time of exporting a small model: tables that are the same for each
model. Operators that a test registers in between are found as before.
"""

from __future__ import annotations

import contextlib
import functools
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from onnxscript.rewriter import _basics, _matcher
from torch._export import utils
from torch._subclasses import fake_impls
from torch.export import decomp_utils, exported_program
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.fx.experimental.sym_node import SymNode
from torch.onnx._internal._lazy_import import onnxscript_apis
from torch.onnx._internal.exporter import _schemas


@functools.cache
def _functions() -> tuple[Any, ...]:
    """The 500 functions that translate operators; the exporter parses their sources."""
    return tuple(onnxscript_apis.__getattr__("get_torchlib_ops")())


def _only_new(load: Callable[[], None]) -> Callable[[], None]:
    """Load the composite operators, unless all of them are loaded already.

    The exporter does it for each of 30 namespaces, twice in each export.
    """
    loaded: set[str] = set()

    def load_new() -> None:
        names = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
        if not loaded.issuperset(names):
            load()
            loaded.update(names)

    return load_new


def _unless_known(collect: Callable[[], set[Any]]) -> Callable[[], set[Any]]:
    """Collect the composite operators again only if others are registered."""
    known: list[Any] = []

    def collected() -> set[Any]:
        names = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
        if not known or known[0] != names:
            known[:] = names, collect()
        return set(known[1])

    return collected


def _remembering(
    override: Callable[[Mapping[Any, Any]], AbstractContextManager[None]],
) -> Callable[[Mapping[Any, Any]], AbstractContextManager[None]]:
    """Override composite operators with the kernels of last time.

    There are 800 operators with 20 kernels each. Only one of the kernels differs between calls: the
    one that is passed.
    """
    composite = torch._C.DispatchKey.CompositeImplicitAutograd
    rules = fake_impls.op_implementations_dict
    # Kernels before and after, and the rule for fake tensors, of each operator.
    known: dict[Any, tuple[dict[Any, Any], dict[Any, Any], Any]] = {}

    @contextlib.contextmanager
    def overridden(kernels: Mapping[Any, Any]) -> Iterator[None]:
        as_last_time = [op for op in kernels if op in known and op.py_kernels == known[op][0]]
        new = {op: kernels[op] for op in kernels.keys() - set(as_last_time)}
        before = {op: dict(op.py_kernels) for op in new}
        with override(new):
            known.update({op: (before[op], dict(op.py_kernels), rules[op]) for op in new})
            try:
                for op in as_last_time:
                    op.py_kernels.update(known[op][1])
                    op.py_kernels[composite] = kernels[op]
                    op._dispatch_cache.clear()
                    rules.setdefault(op, known[op][2])
                yield
            finally:
                for op in as_last_time:
                    op.py_kernels.clear()
                    op.py_kernels.update(known[op][0])
                    op._dispatch_cache.clear()
                    rules.pop(op, None)

    return overridden


def _by_operator(match: Callable[..., Any]) -> Callable[..., Any]:
    """Match a pattern only with nodes of its last operator: 40 patterns are tried on each node."""
    refused = _basics.MatchResult().fail("another operator")

    def matched(self: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        wanted = self.pattern.output_nodes[0].op_identifier()
        if wanted is not None and wanted != node.op_identifier():
            return refused
        return match(self, model, graph, node, **options)

    return matched


def _once(compute: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Combine two sizes that vary once in each export; torch does it again for each tensor.

    Each result is an object of its own, since torch tells sizes apart by their objects.
    """

    def combined(self: Any, other: Any) -> Any:
        if get_proxy_mode() or not isinstance(other, SymNode):
            return compute(self, other)
        known = self.shape_env.__dict__.setdefault("_combined_sizes", {})
        key = (compute, *_parts(self), *_parts(other))
        if key not in known:
            known[key] = compute(self, other)
        found = known[key]
        return SymNode(
            found._expr,
            found.shape_env,
            found.pytype,
            found._hint,
            fx_node=found.fx_node,
            optimized_summation=found._optimized_summation,
        )

    return combined


def _parts(size: SymNode) -> tuple[object, ...]:
    return size.expr, size.pytype, size.hint, size._optimized_summation


def _replace(module: Any, name: str, made: Callable[[Any], object]) -> None:
    """Replace a function; without it, as in other versions of torch, exports take longer."""
    if hasattr(module, name):
        setattr(module, name, made(getattr(module, name)))


onnxscript_apis.get_torchlib_ops = _functions
_replace(utils, "_materialize_cpp_cia_ops", _only_new)
for _module in (utils, exported_program, decomp_utils):
    _replace(_module, "_collect_all_valid_cia_ops", _unless_known)
_replace(exported_program, "_override_composite_implicit_decomp", _remembering)
for _name in ("_add", "_sub", "_mul", "_eq", "_ne", "_ge", "_gt", "_le", "_lt"):
    _replace(SymNode, _name, _once)
_replace(_matcher.SimplePatternMatcher, "match", _by_operator)
_replace(_schemas, "op_signature_from_function", functools.cache)
_replace(exported_program, "autograd_not_implemented", functools.cache)
# Annotations of a function that is defined 10,000 times in each export. The expressions of this
# one are cached, and mean the same as those of `collections.abc.Callable`.
_replace(torch._ops, "Callable", lambda _: typing.Callable)
