"""Control flow over a model's own buffers, whose values are known at the capture.

A flag such as "initialised", or a list of the columns that hold categories, is often a buffer, and
an ``if`` reads it. `torch.export` takes buffers for inputs and refuses. A model for inference does
not change its buffers, so that their values, and what is computed from them alone, can answer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from fxelastic.ir import trees

# Control flow reads small tensors; larger ones are data.
_MOST_ELEMENTS = 4096

# Functions that return numbers of Python.
_READS = frozenset(
    (
        *("__bool__", "__int__", "__float__", "__complex__", "__index__", "__contains__"),
        *("item", "tolist", "is_nonzero", "equal", "allclose"),
    )
)

_OPERATORS = (
    *("eq", "ne", "lt", "le", "gt", "ge", "and", "or", "xor", "invert", "neg", "abs", "getitem"),
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "floordiv", "mod", "pow"),
)

# Functions of tensors whose results are known if the arguments are: the usual ways from a buffer to
# a condition. They draw no random numbers.
_STEPS = frozenset(
    (
        *(f"__{name}__" for name in _OPERATORS),
        *("eq", "ne", "lt", "le", "gt", "ge", "isclose", "isfinite", "isinf", "isnan"),
        *("logical_and", "logical_or", "logical_xor", "logical_not", "any", "all", "where"),
        *("add", "sub", "mul", "div", "pow", "neg", "abs", "clamp", "round", "floor", "ceil"),
        *("exp", "log", "sqrt", "sum", "prod", "mean", "max", "min", "amax", "amin", "cumsum"),
        *("argmax", "argmin", "sort", "count_nonzero", "unbind", "split", "chunk", "cat", "stack"),
        *("select", "narrow", "view", "reshape", "flatten", "squeeze", "unsqueeze", "transpose"),
        *("permute", "clone", "detach", "contiguous", "cpu", "to", "type"),
        *("bool", "int", "long", "half", "float", "double"),
    )
)


@contextlib.contextmanager
def known_buffers(model: nn.Module) -> Iterator[None]:
    """Let the model's control flow read its buffers while it is exported.

    Tensors that are attributes of modules, but not buffers, are read as well; parameters are not,
    since training changes them.

    Args:
        model: The model; its ``forward`` is replaced meanwhile.
    """
    own = vars(model).get("forward")
    forward = model.forward
    values = {
        name: buffer.detach().clone()
        for name, buffer in model.named_buffers()
        if buffer.numel() <= _MOST_ELEMENTS
    }

    def answered(*args: Any, **kwargs: Any) -> Any:
        # Meanwhile the exporter's tensors stand for the buffers.
        stands = dict(model.named_buffers())
        with _Answers([(stands[name], value) for name, value in values.items()]):
            return forward(*args, **kwargs)

    model.forward = answered
    try:
        yield
    finally:
        del model.forward
        if own is not None:
            model.forward = own


class _Answers(TorchFunctionMode):
    """Answers what Python asks of tensors whose values are known.

    Args:
        known: Tensors of the exporter, and their values.
    """

    def __init__(self, known: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        super().__init__()
        # The tensors are kept, so that no other gets the id of one.
        self._known = {id(tensor): (tensor, value) for tensor, value in known}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer, or call the function and note what is known of its result."""
        __tracebackhide__ = True
        given = (tuple(args), dict(kwargs or {}))
        name = getattr(func, "__name__", "")
        values = self._values(given) if name in _READS or name in _STEPS else None
        if values is None:
            if self._writes(name, *given):
                self._known.clear()
            return func(*given[0], **given[1])
        with torch._C.DisableTorchFunction(), _disable_current_modes(), torch.no_grad():
            real = func(*values[0], **values[1])
        if name in _READS:
            return real
        found = func(*given[0], **given[1])
        pairs = zip(trees.flatten(found)[0], trees.flatten(real)[0], strict=True)
        self._known |= {
            id(tensor): (tensor, value)
            for tensor, value in pairs
            if isinstance(tensor, torch.Tensor) and value.numel() <= _MOST_ELEMENTS
        }
        return found

    def _writes(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a function writes to a tensor whose value is known."""
        in_place = name.endswith("_") and not name.endswith("__")
        if in_place or name == "__setitem__" or name.startswith("__i"):
            written = args[:1]
        else:
            written = (kwargs.get("out"),)
        return any(id(tensor) in self._known for tensor in written)

    def _values(self, given: Any) -> Any:
        """The arguments with values for tensors; None if one is not known, or there are none."""
        leaves, tree = trees.flatten(given)
        values = [self._value(leaf) for leaf in leaves]
        if not values or any(value is None for value in values):
            return None
        return trees.unflatten(tree, values)

    def _value(self, leaf: object) -> torch.Tensor | None:
        if id(leaf) in self._known:
            return self._known[id(leaf)][1]
        # A tensor that is a plain attribute is not replaced by the exporter.
        return leaf if type(leaf) is torch.Tensor else None
