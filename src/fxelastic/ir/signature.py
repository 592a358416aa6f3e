"""The mapping between a captured graph's flat tensors and the user model's arguments and result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from fxelastic.errors import UsageError
from fxelastic.ir import trees
from fxelastic.ir.copyable import Copyable
from fxelastic.ir.graph_symbols import GraphSymbol, named, shape_in_words
from fxelastic.spec.cache import KeptCache
from fxelastic.spec.input_sizes import input_sizes
from fxelastic.spec.symbols import Symbol


@dataclass(frozen=True)
class Signature:
    """The calling convention of the captured model.

    Attributes:
        arguments: Structure of ``(args, kwargs)``.
        result: Structure of the result.
        inputs: Names of the graph's placeholders, one for each tensor of the arguments.
        parameters: Names of the parameters of the model's ``forward`` that take positional
            arguments, in order.
        names: The user's own names of the same tensors, for people and devices. A graph may need
            another name (``input`` becomes ``input_1``). The same as ``inputs`` by default.
    """

    arguments: trees.Tree
    result: trees.Tree
    inputs: tuple[str, ...]
    parameters: tuple[str, ...] = field(default=())
    names: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        """Set the default of ``names``."""
        if not self.names:
            object.__setattr__(self, "names", self.inputs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Signature:
        """Return the signature itself, since some constants equal only themselves."""
        return self

    @property
    def captured(self) -> tuple[str, ...]:
        """Names of the arguments that the model was captured with."""
        return self.arguments.keys if isinstance(self.arguments, trees.Node) else ()

    @property
    def taken(self) -> tuple[str, ...]:
        """The arguments of ``forward`` in order, up to the last one that the capture has."""
        last = max((i for i, p in enumerate(self.parameters) if p in self.captured), default=-1)
        return tuple(dict.fromkeys((*self.parameters[: last + 1], *self.captured)))

    @property
    def keywords(self) -> tuple[str, ...]:
        """Known names by which an argument may be passed."""
        return tuple(dict.fromkeys((*self.parameters, *self.captured)))

    @property
    def dict_keys(self) -> tuple[str, ...]:
        """Keys of the model's only argument, where that is a dict; else empty."""
        arguments = self.arguments.children if isinstance(self.arguments, trees.Node) else ()
        only = arguments[0] if len(arguments) == 1 else None
        return only.keys if isinstance(only, trees.Node) and only.kind == "dict" else ()

    def flatten_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """The tensors of a call, in the order of ``inputs``.

        Raises:
            UsageError: The call has another structure than the example inputs.
        """
        leaves, tree = trees.flatten(self.normalise(args, kwargs))
        if tree != self.arguments:
            raise UsageError(
                "the arguments have another structure than the example inputs",
                expected=trees.describe(self.arguments),
                got=trees.describe(tree),
                fix="pass arguments like the example inputs, or capture again with these",
            )
        return leaves

    def normalise(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments by name, in the order of the capture, however the call passes them."""
        bound = normalise_arguments(self.parameters, args, kwargs)
        ordered = [name for name in self.captured if name in bound]
        return {name: bound[name] for name in dict.fromkeys((*ordered, *bound))}

    def unflatten_result(self, outputs: list[Any]) -> Any:
        """The model's own result structure from the graph's flat outputs."""
        return trees.unflatten(self.result, outputs)


def normalise_arguments(
    parameters: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Bind a call's arguments to names; further positional arguments get a number as name."""
    named = dict(zip(parameters, args, strict=False))
    for i, value in enumerate(args[len(parameters) :]):
        name = f"args_{i}"
        while name in named or name in kwargs:
            name = f"{name}_"
        named[name] = value
    for name in kwargs:
        if name in named:
            raise UsageError(
                f"argument {name!r} is given twice",
                expected="each argument once",
                got=f"{name!r} by position and by name",
                fix="pass it one way",
            )
    bound = named | kwargs
    ordered = [name for name in parameters if name in bound]
    rest = [name for name in bound if name not in parameters]
    return {name: bound[name] for name in ordered + rest}


def batch_dims(value: Any) -> tuple[int, ...]:
    """Dimensions of a captured value whose size varies: with the batch, another symbol or data."""
    if not isinstance(value, torch.Tensor):
        return ()
    sizes: Sequence[Any] = value.shape
    # A size that export found to be fixed is a SymInt with a constant expression.
    return tuple(
        i
        for i, size in enumerate(sizes)
        if isinstance(size, torch.SymInt) and not size.node.expr.is_number
    )


@dataclass(frozen=True)
class InputChecks(Copyable):
    """What the inputs of a captured model must be.

    Attributes:
        inputs: For each input the user's name, its dtype, and its shape: integers, and expressions
            of symbols.
        symbols: The symbols by name, without the batch.
    """

    inputs: tuple[tuple[str, torch.dtype, tuple[int | str, ...]], ...]
    symbols: Mapping[str, Symbol]

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        captured: Sequence[fx.Node],
        symbols: Sequence[GraphSymbol],
    ) -> InputChecks:
        """The checks of a graph.

        Args:
            names: The user's names of the inputs.
            captured: The graph's placeholders, with ``meta["val"]``.
            symbols: The graph's symbols.
        """
        known = named(symbols)
        likes = (node.meta["val"] for node in captured)
        inputs = (
            (name, like.dtype, shape_in_words(like, known))
            for name, like in zip(names, likes, strict=True)
        )
        # torch takes batches without samples, too.
        others = {s.symbol.name: s.symbol for s in symbols if not s.is_batch}
        return cls(tuple(inputs), others)

    def with_cache(self, cache: Mapping[str, KeptCache]) -> InputChecks:
        """The checks of a subnet that keeps parts of caches, by the names of their pasts."""
        inputs = (
            (name, dtype, cache[name].shape(dims) if name in cache else dims)
            for name, dtype, dims in self.inputs
        )
        return replace(self, inputs=tuple(inputs)) if cache else self

    def check(self, values: Sequence[Any]) -> None:
        """Check that inputs differ from the captured inputs only in sizes that may vary.

        Args:
            values: The inputs of a call, in order.

        Raises:
            UsageError: An input is not a tensor, or has another dtype or another fixed size; a size
                is out of range; or two inputs have different sizes for one symbol.
        """
        for (name, *_), value in zip(self.inputs, values, strict=True):
            if not isinstance(value, torch.Tensor):
                raise UsageError(
                    f"input {name!r} is not a tensor",
                    expected="a torch.Tensor",
                    got=type(value).__name__,
                    fix="convert it with torch.as_tensor(...)",
                )

        def refuse(i: int, _: str) -> UsageError:
            name, dtype, dims = self.inputs[i]
            return UsageError(
                f"input {name!r} has another shape or dtype than the captured input",
                expected=_describe(dtype, dims),
                got=_describe(values[i].dtype, values[i].shape),
                fix="capture again with example_inputs like these",
            )

        input_sizes(self.inputs, values, self.symbols, refuse)


def _describe(dtype: torch.dtype, dims: Sequence[int | str]) -> str:
    return f"{str(dtype).removeprefix('torch.')}[{', '.join(map(str, dims))}]"
