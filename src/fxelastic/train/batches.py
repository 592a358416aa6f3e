"""From the batches of a loader to the model's arguments and the target."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fxelastic.errors import UsageError
from fxelastic.ir import trees
from fxelastic.ir.supernet import Supernet
from fxelastic.processes import Processes
from fxelastic.randomness import derived_seed, preserved, seed_all, seed_loader

#: Splits a batch of the loader: positional arguments, keyword arguments, target or None.
Split = Callable[[Any], tuple[tuple[Any, ...], dict[str, Any], Any]]

#: In a batch that is a dict, the key of the target; a key that the model takes is an input.
TARGET_KEYS = ("target", "targets", "label", "labels")


@dataclass(frozen=True)
class Batch:
    """The model's arguments and the target of one batch.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
        target: The loss compares the result with it; None in a batch without labels.
        number: The number of the batch in the epoch, from 0.
        size: Samples.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Any
    number: int
    size: int = 1

    def not_finite(self, *, masks: bool = True) -> str:
        """Where the batch holds NaN or infinity, as a sentence; empty where it is finite.

        Args:
            masks: Let minus infinity pass, as in a mask that is added to attention scores.
        """
        for name, part in (("input", (self.args, self.kwargs)), ("target", self.target)):
            leaves, tree = trees.flatten(part)
            for where, leaf in zip(trees.leaf_names(tree, name), leaves, strict=True):
                bad = count_not_finite(leaf, masks=masks)
                if bad:
                    label = name if len(leaves) == 1 else where
                    values = f"{bad} of {leaf.numel()} values of {label}"
                    return f"{values} in batch {self.number} are NaN or infinite"
        return ""


def count_not_finite(value: Any, *, masks: bool) -> int:
    """How many values are NaN or infinite; with ``masks``, minus infinity does not count."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return 0
    bad = ~torch.isfinite(value)
    if masks:
        bad &= value != -torch.inf
    return int(bad.sum())


@dataclass(frozen=True)
class BatchReader:
    """Reads the batches of a loader for a supernet.

    Without ``split``, a batch is one of

    - a tensor: the model's only input, no target;
    - a tuple or list of as many tensors as the model has inputs, without a target, or of one more:
      the last is the target;
    - a pair ``(inputs, target)``, where ``inputs`` has the forms that example inputs have: a
      tensor, a tuple of positional inputs, a dict of keyword inputs, or a pair of both; the target
      is anything, and None where there are no labels;
    - a dict of keyword inputs, with the target under ``target``, ``targets``, ``label`` or
      ``labels`` unless the model takes an input of that name.

    A dict of inputs with the keys of the model's only argument, itself a dict, is that argument.

    Attributes:
        supernet: The supernet; batches are moved to its device.
        split: Takes a batch apart instead of the rules above.
    """

    supernet: Supernet
    split: Split | None = None

    def read(self, raw: Any, number: int) -> Batch:
        """Split one batch and move it to the supernet's device.

        Args:
            raw: The loader's batch.
            number: The number of the batch in the epoch.

        Raises:
            UsageError: The form of the batch is not understood.
        """
        parts = self._parts(raw, number) if self.split is None else _split(self.split, raw, number)
        device = device_of(self.supernet)
        args, kwargs, target = (_move(part, device) for part in parts)
        return Batch(args, kwargs, target, number, self._size(args, kwargs))

    def _size(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """Samples of a batch, from the first input that holds samples; 1 if none does."""
        partition = self.supernet.partition
        leaves, _ = trees.flatten(partition.signature.normalise(args, kwargs))
        names = partition.signature.names
        if not partition.batched or len(names) != len(leaves):
            return 1
        name, dim = next(iter(partition.batch_dims.items()))
        first = leaves[names.index(name)]
        return int(first.shape[dim]) if isinstance(first, torch.Tensor) and first.dim() > dim else 1

    def bind(self, batch: Batch) -> dict[str, Any]:
        """The inputs of a pass through the supernet, by name.

        Raises:
            UsageError: The inputs differ in structure, shapes or dtypes from those captured.
        """
        try:
            return self.supernet.bind(batch.args, batch.kwargs)
        except UsageError as e:
            raise UsageError(
                f"batch {batch.number} of the loader: {e.what}",
                expected=e.expected,
                got=e.got,
                fix=e.fix or "pass split= to separate the inputs of a batch from its target",
            ) from e

    def _parts(self, raw: Any, number: int) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        signature = self.supernet.partition.signature
        if isinstance(raw, (torch.Tensor, np.ndarray)):
            return (raw,), {}, None
        if isinstance(raw, Mapping):
            names = (*signature.keywords, *signature.dict_keys)
            keys = [key for key in TARGET_KEYS if key in raw and key not in names]
            values = {key: value for key, value in raw.items() if key not in keys}
            return *self._named(values), raw[keys[0]] if keys else None
        if isinstance(raw, (tuple, list)):
            n_inputs = len(signature.inputs)
            if all(isinstance(part, (torch.Tensor, np.ndarray)) for part in raw):
                if len(raw) == n_inputs:
                    return tuple(raw), {}, None
                if len(raw) == n_inputs + 1:
                    return tuple(raw[:-1]), {}, raw[-1]
            elif len(raw) == 2:
                inputs, target = raw
                if isinstance(inputs, Mapping):
                    return *self._named(inputs), target
                return *_inputs(inputs), target
        raise UsageError(
            f"the form of batch {number} of the loader is not understood",
            expected=f"the model's inputs ({', '.join(signature.names)}), alone or before a "
            "target, (inputs, target), or a dict of keyword inputs",
            got=_describe(raw),
            fix="pass split=: a function of a batch that returns (args, kwargs, target)",
        )

    def _named(self, values: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments from inputs by name."""
        keys = self.supernet.partition.signature.dict_keys
        if keys and set(keys) == set(values):
            return ({key: values[key] for key in keys},), {}
        return (), dict(values)


def _split(split: Split, raw: Any, number: int) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """The user's own parts of a batch."""
    parts: object = split(raw)
    if isinstance(parts, (tuple, list)) and len(parts) == 3:
        args, kwargs, target = parts
        if isinstance(args, (tuple, list)) and isinstance(kwargs, Mapping):
            return tuple(args), dict(kwargs), target
    raise UsageError(
        f"split gives no arguments for batch {number} of the loader",
        expected="(args, kwargs, target): a tuple, a dict, and a target or None",
        got=_describe(parts),
        fix="return for example (x,), {}, y",
    )


def numbered(loader: Any, what: str) -> Iterator[tuple[int, Any]]:
    """The batches of a loader with their numbers.

    Raises:
        UsageError: The loader can't be iterated over, or yields nothing.
    """
    try:
        batches = iter(loader)
    except TypeError as e:
        raise UsageError(
            f"{what} can't be iterated over",
            expected="a DataLoader, or any iterable of batches",
            got=type(loader).__name__,
        ) from e
    number = -1
    for number, raw in enumerate(batches):
        yield number, raw
    if number < 0:
        exhausted = batches is loader
        raise UsageError(
            f"{what} yields no batch",
            expected="at least one batch in every pass over it",
            got="an iterator that is exhausted" if exhausted else f"an empty {_name(loader)}",
            fix="pass an iterable that can be iterated over again, like a list or a DataLoader"
            if exhausted
            else "check the data set; drop_last=True drops a single batch that is not full",
        )


def no_labels(batch: Batch, what: str) -> UsageError:
    """The error for a batch without a target, where one is needed."""
    return UsageError(
        f"batch {batch.number} of {what} has no target",
        expected="labelled batches: (inputs, target), or a dict with the target under "
        + ", ".join(map(repr, TARGET_KEYS)),
        got="inputs alone",
        fix="add the labels, or pass split= to say where a batch holds them",
    )


def first_batches(
    source: Iterable[Any],
    what: str,
    reader: BatchReader,
    n: int,
    seed: int,
    processes: Processes,
) -> list[Batch]:
    """Read the first batches; the loader's generators and the global ones stay as they are.

    Args:
        source: The loader.
        what: Its name in messages.
        reader: Reads the batches.
        n: How many batches to read; fewer where there are fewer.
        seed: Decides the order of the data.
        processes: All of them get as many batches.

    Raises:
        UsageError: The loader is empty, or the form of a batch is not understood.
    """
    if not n:
        return []
    with preserved(source):
        seed_all(derived_seed(seed, "rank", processes.rank))
        seed_loader(source, seed)
        batches = [reader.read(raw, i) for i, raw in itertools.islice(numbered(source, what), n)]
    return batches[: int(processes.least(len(batches)))]


def device_of(supernet: Supernet) -> torch.device:
    """The device of the supernet's weights; the CPU where it has none."""
    first = next(itertools.chain(supernet.parameters(), supernet.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def _inputs(value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(value, (tuple, list)):
        if len(value) == 2 and isinstance(value[0], (tuple, list)) and isinstance(value[1], dict):
            return tuple(value[0]), dict(value[1])
        return tuple(value), {}
    return (value,), {}


def _move(value: Any, device: torch.device) -> Any:
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, (tuple, list)) and type(value) in (tuple, list):
        return type(value)(_move(part, device) for part in value)
    if type(value) is dict:
        return {key: _move(part, device) for key, part in value.items()}
    leaves, tree = trees.flatten(value)
    moved = [
        leaf.to(device, non_blocking=True) if isinstance(leaf, torch.Tensor) else leaf
        for leaf in leaves
    ]
    return trees.unflatten(tree, moved)


def _name(value: Any) -> str:
    return type(value).__name__


def _describe(raw: Any) -> str:
    if isinstance(raw, (tuple, list)):
        return f"a {_name(raw)} of {', '.join(_name(part) for part in raw) or 'nothing'}"
    return f"a {_name(raw)}"
