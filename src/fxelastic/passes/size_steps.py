"""Find by how much the sizes of a model's inputs may grow."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn

from fxelastic.errors import CaptureError
from fxelastic.ir import trees
from fxelastic.ir.causes import cause_of
from fxelastic.passes.dynamic_shapes import DynamicShapes, replace_symbol, resized
from fxelastic.spec.symbols import Symbol

logger = logging.getLogger(__name__)

# Differences to try: small ones, and those of windows, strides and patches.
_STEPS = (1, 2, 3, 4, 6, 7, 8, 12, 14, 16, 24, 28, 32, 48, 56, 64, 96, 112, 128, 224, 256)

# The largest size that is tried, in multiples of the example's.
_LARGE = 4

# The steps from the least sizes to the example's, where the model does not take all least sizes.
_PARTS = 64

#: Returns the model's error at sizes by symbol; None if it takes them.
Run: TypeAlias = Callable[[DynamicShapes, Mapping[str, int]], BaseException | None]


def with_steps(
    model: nn.Module, tree: trees.Tree, leaves: Sequence[Any], shapes: DynamicShapes
) -> tuple[DynamicShapes, list[str]]:
    """Run the model at other sizes, and set the step and the range of each symbol accordingly.

    A model may take only multiples of 32 pixels, for example. Its capture then has
    expressions of ``H/32``, which are exact. It may also take few rows and few columns, but not
    both: all sizes of the ranges go together.

    Args:
        model: The clone for the capture.
        tree: Structure of the inputs.
        leaves: The flat example inputs.
        shapes: Which dimensions vary. The batch is left as it is.

    Returns:
        The same with steps and ranges; without those optional symbols at which the model takes no
        other size, and a warning for each of them.

    Raises:
        CaptureError: The model takes hardly any other size for a symbol that the user names, or
            not all of the range that the user gives.
    """
    run, warnings = partial(_error, model, tree, leaves), []
    for name, symbol in list(shapes.symbols.items()):
        if name == shapes.batch:
            continue
        found, why = _varying(symbol, partial(_error_of_one, run, shapes, name))
        if found is not None:
            shapes = replace_symbol(shapes, found)
            continue
        if why is None:
            reason = f"its range, {symbol.min} to {symbol.max}, holds no other size"
            refusal = _no_other_size(name, reason)
        else:
            reason = cause_of(why, model).reason
            refusal = cannot_vary(name, reason)
        if name not in shapes.optional:
            raise refusal from why
        warnings.append(f"{name} is fixed to the example's {symbol.example}: {reason}")
        shapes = shapes.without(name)
    return _smallest_together(run, shapes), warnings


def _smallest_together(run: Run, shapes: DynamicShapes) -> DynamicShapes:
    """Raise the least sizes towards the example's until the model takes all of them at once."""
    varying = [symbol for name, symbol in shapes.symbols.items() if name != shapes.batch]

    def least(part: int) -> dict[str, int]:
        return {s.name: s.aligned(s.min + (s.example - s.min) * part // _PARTS) for s in varying}

    if len(varying) < 2 or run(shapes, least(0)) is None:
        return shapes
    good, bad = _PARTS, 0
    while good - bad > 1:
        middle = (good + bad) // 2
        if run(shapes, least(middle)) is None:
            good = middle
        else:
            bad = middle
    for name, size in least(good).items():
        shapes = replace_symbol(shapes, replace(shapes.symbols[name], min=size))
    return shapes


def _varying(
    symbol: Symbol, error: Callable[[Sequence[int]], BaseException | None]
) -> tuple[Symbol | None, BaseException | None]:
    """The symbol with its step and range, or None and the model's error at another size."""
    step, why = _step(symbol, error)
    if not step:
        return None, why
    symbol = _with_step(symbol, step)
    smallest, too_small = _farthest(symbol, symbol.min, error)
    largest, too_large = _farthest(symbol, symbol.large(_LARGE), error)
    bounded = symbol.max is not None and too_large is not None
    if bounded or (largest - smallest) * 2 < symbol.example * (too_large is not None):
        return None, too_large or too_small
    limit = largest if too_large is not None else symbol.max
    return replace(symbol, min=smallest, max=limit), None


def coarser(symbol: Symbol, agrees: Callable[[int], bool | None]) -> Symbol | None:
    """The symbol with the smallest step at which a capture agrees with its model.

    Args:
        symbol: The symbol with the model's own step.
        agrees: Called with a size, returns whether both agree there; None if the model does not
            run.

    Returns:
        None if there is no such step.
    """
    for step in dict.fromkeys((symbol.step, *_STEPS, symbol.example)):
        if step < symbol.step or step % symbol.step:
            continue
        found = _with_step(symbol, step)
        around = [symbol.example + step * n for n in (1, 2, 3, 5, -1)]
        sizes = [size for size in around if found.holds(size)]
        answers = [answer for size in sizes if (answer := agrees(size)) is not None]
        if answers and all(answers):
            return found
    return None


def whole(symbol: Symbol) -> Symbol:
    """The symbol in multiples of the example's size, which divide as the example does."""
    found = _with_step(symbol, max(symbol.example, 1))
    return found if found.large(2) != found.example else symbol


def _farthest(
    symbol: Symbol, end: int, error: Callable[[Sequence[int]], BaseException | None]
) -> tuple[int, BaseException | None]:
    """The size nearest to an end of the range that the model takes, and its error at the end."""
    why = error([end]) if end != symbol.example else None
    if why is None:
        return end, None
    good, bad = 0, abs(end - symbol.example) // symbol.step
    sign = 1 if end > symbol.example else -1
    while bad - good > 1:
        middle = (good + bad) // 2
        if error([symbol.example + sign * middle * symbol.step]) is None:
            good = middle
        else:
            bad = middle
    return symbol.example + sign * good * symbol.step, why


def _with_step(symbol: Symbol, step: int) -> Symbol:
    found = replace(symbol, step=step)
    return replace(found, min=found.aligned(found.min))


def cannot_vary(symbol: str, reason: str) -> CaptureError:
    """The refusal of a symbol that the model fixes."""
    return CaptureError(
        f"{symbol!r} can't vary: the model fixes it",
        expected=f"a model that takes other sizes for {symbol!r}",
        got=reason,
        fix="change the model so that it takes other sizes, or leave the dimension out of "
        "dynamic_shapes",
    )


def _no_other_size(symbol: str, reason: str) -> CaptureError:
    return CaptureError(
        f"{symbol!r} can't vary: {reason}",
        expected="a range with more than the example's size",
        got=reason,
        fix="widen its range, or leave the dimension out of dynamic_shapes",
    )


def _step(
    symbol: Symbol, error: Callable[[Sequence[int]], BaseException | None]
) -> tuple[int, BaseException | None]:
    """The smallest step that works, 0 if none does, and the model's error at the first."""
    first: BaseException | None = None
    for step in dict.fromkeys((*_STEPS, symbol.example)):
        # Several multiples, since one may work by chance: 35 pixels where 32 and 36 do.
        around = [symbol.example + step * n for n in (1, 2, 3)]
        if symbol.max is not None and around[-1] > symbol.max:
            around += [symbol.example - step * n for n in (1, 2, 3)]
        sizes = [size for size in around if replace(symbol, step=step).holds(size)]
        why = error(sizes)
        if sizes and why is None:
            return step, None
        first = first or why
    return 0, first


def _error_of_one(
    run: Run, shapes: DynamicShapes, name: str, sizes: Sequence[int]
) -> BaseException | None:
    """The error of the model at the first of a symbol's sizes that it does not take."""
    errors = (run(shapes, {name: size}) for size in sizes)
    return next((why for why in errors if why is not None), None)


def _error(
    model: nn.Module,
    tree: trees.Tree,
    leaves: Sequence[Any],
    shapes: DynamicShapes,
    sizes: Mapping[str, int],
) -> BaseException | None:
    """The error of the model at some sizes, None if it takes them."""
    args, kwargs = trees.unflatten(tree, _copies(resized(leaves, shapes, sizes)))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model(*args, **kwargs)
    except Exception as e:  # noqa: BLE001  # the user's own code
        logger.debug("the model does not run at %s: %s", sizes, e)
        return e
    return None


def _copies(leaves: Sequence[Any]) -> list[Any]:
    return [leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
