"""Which dimensions of a model's inputs to vary, found by running the model."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.public_model_cases import Case

#: Kinds of models by what varies: the length of token ids, the height and width of images or
#: volumes, the length of other sequences.
KINDS = ("text", "image", "sequence")

# Added to the example's sizes; a model may take only multiples of a patch or a window.
_MORE_PIXELS = (1, 8, 32, 64, 224)
_MORE_TOKENS = (1, 5, 16, 48, -4, -8)


@dataclass(frozen=True)
class Varying:
    """Dimensions that may vary.

    Attributes:
        kind: One of `KINDS`.
        dims: For each input by name, its dimensions with the names of their sizes.
        refusal: The model's error at other sizes; empty if it takes them.
    """

    kind: str
    dims: Mapping[str, Mapping[int, str]]
    refusal: str = ""


def named_inputs(case: Case) -> dict[str, Any]:
    """The inputs by the names of parameters; those of ``*args`` are ``args_0``, ``args_1``."""
    bound = inspect.signature(case.model.forward).bind(*case.args, **case.kwargs)
    found: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if _is(bound, name, inspect.Parameter.VAR_POSITIONAL):
            found |= {f"args_{i}": item for i, item in enumerate(value)}
        else:
            found |= value if _is(bound, name, inspect.Parameter.VAR_KEYWORD) else {name: value}
    return found


def call(case: Case, inputs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of ``forward`` for inputs by name."""
    bound = inspect.signature(case.model.forward).bind(*case.args, **case.kwargs)
    for name, value in bound.arguments.items():
        if _is(bound, name, inspect.Parameter.VAR_POSITIONAL):
            bound.arguments[name] = tuple(inputs[f"args_{i}"] for i in range(len(value)))
        elif _is(bound, name, inspect.Parameter.VAR_KEYWORD):
            bound.arguments[name] = {key: inputs[key] for key in value}
        else:
            bound.arguments[name] = inputs[name]
    return bound.args, bound.kwargs


def _is(bound: inspect.BoundArguments, name: str, kind: Any) -> bool:
    return bound.signature.parameters[name].kind is kind


def smaller(case: Case) -> Case:
    """The same with smaller images or clips, if the model takes them as its only input."""
    images = [value for value in case.args if isinstance(value, Tensor) and value.dim() in (4, 5)]
    if case.kwargs or len(images) != len(case.args):
        return case
    for side in (64, 96, 128):
        if side >= images[0].shape[-1]:
            break
        args = tuple(image[..., :side, :side].contiguous() for image in images)
        if not error(case, dict(zip(named_inputs(case), args, strict=True))):
            return Case(case.model, args, {})
    return case


def varying(case: Case) -> Varying | None:
    """The dimensions to vary; None if no input is a text, an image or a sequence."""
    inputs = {name: x for name, x in named_inputs(case).items() if isinstance(x, Tensor)}
    last: Varying | None = None
    for kind, dims in _candidates(inputs):
        refusal = _refusal(case, kind, dims)
        if not refusal:
            return Varying(kind, dims)
        last = last or Varying(kind, dims, refusal)
    return last


def resized(
    inputs: Mapping[str, Any],
    dims: Mapping[str, Mapping[int, str]],
    sizes: Mapping[str, int],
    n_samples: int | None = None,
    batched: Sequence[str] = (),
) -> dict[str, Any]:
    """Inputs of other sizes, which repeat or drop values of the example.

    Args:
        inputs: The example's inputs by name.
        dims: As in `Varying`.
        sizes: Sizes by name.
        n_samples: Number of samples; the example's if None.
        batched: Names of the inputs with samples.
    """
    found = dict(inputs)
    for name, value in inputs.items():
        wanted = {d: sizes[size] for d, size in dims.get(name, {}).items() if size in sizes}
        if n_samples is not None and name in batched:
            wanted[0] = n_samples
        for d, n in wanted.items():
            value = value.index_select(d, torch.arange(n) % value.shape[d])
        found[name] = value
    return found


def error(case: Case, inputs: Mapping[str, Any]) -> str:
    """The error of the model on some inputs; empty if there is none."""
    try:
        args, kwargs = call(case, _copies(inputs))
        with torch.no_grad():
            case.model(*args, **kwargs)
    except Exception as e:  # noqa: BLE001 - any error is a result
        return f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"
    return ""


def _copies(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in inputs.items()}


def _candidates(
    inputs: Mapping[str, Tensor],
) -> Iterator[tuple[str, dict[str, dict[int, str]]]]:
    """Kinds with the dimensions that they would vary, the most likely first."""
    tokens = {n: x for n, x in inputs.items() if not x.is_floating_point() and x.dim() >= 2}
    images = {n: x for n, x in inputs.items() if x.is_floating_point() and x.dim() in (4, 5)}
    if tokens:
        lengths = {x.shape[1] for x in tokens.values()}
        alike = {n: x for n, x in inputs.items() if x.dim() > 1 and x.shape[1] in lengths}
        yield "text", _lengths(alike, 1)
        yield "text", _lengths(tokens, 1)
    elif images:
        first = next(iter(images.values())).shape[-2:]
        ranks = {n: x.dim() for n, x in images.items() if x.shape[-2:] == first}
        yield "image", {n: {rank - 2: "H", rank - 1: "W"} for n, rank in ranks.items()}
    else:
        for rank, dim in ((3, 1), (3, 2), (2, 1)):
            found = {n: x for n, x in inputs.items() if x.dim() == rank}
            if found:
                yield "sequence", _lengths(found, dim)


def _lengths(inputs: Mapping[str, Tensor], dim: int) -> dict[str, dict[int, str]]:
    """A name for each length in one dimension; equal lengths have one name."""
    names: dict[int, str] = {}
    found = {}
    for name, x in inputs.items():
        if x.dim() > dim:
            n = int(x.shape[dim])
            names.setdefault(n, "seq" if not names else f"seq{len(names) + 1}")
            found[name] = {dim: names[n]}
    return found


def _refusal(case: Case, kind: str, dims: Mapping[str, Mapping[int, str]]) -> str:
    """The model's error for each size that it does not take at least two other values of."""
    inputs, first = named_inputs(case), ""
    example = {s: int(inputs[n].shape[d]) for n, own in dims.items() for d, s in own.items()}
    more = _MORE_PIXELS if kind == "image" else _MORE_TOKENS
    for size, n in example.items():
        taken = 0
        others = dict.fromkeys((*(n + added for added in more), 2 * n, 3 * n))
        for m in (m for m in others if m > 0):
            why = error(case, resized(inputs, dims, {size: m}))
            first = first or why
            taken += not why
            if taken == 2:
                break
        if taken < 2:
            return f"{size}: {first}"
    return ""
