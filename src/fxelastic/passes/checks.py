"""Checks before the capture: models, weights and inputs that no graph can stand for."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from fxelastic.errors import CaptureError, UsageError, listed
from fxelastic.ir import trees


def check_weights(model: nn.Module) -> None:
    """Check that all parameters and buffers are dense tensors in memory.

    Args:
        model: Any module.

    Raises:
        CaptureError: Some have no shape or no values yet, or are sparse; the message names them.
    """
    tensors = (*model.named_parameters(), *model.named_buffers())

    def refuse(wrong: Callable[[torch.Tensor], bool], what: str, got: str, fix: str) -> None:
        names = [name for name, tensor in tensors if wrong(tensor)]
        if names:
            raise CaptureError(
                f"{listed(map(repr, names))} {what}",
                expected="parameters and buffers that are dense tensors in memory",
                got=got,
                fix=fix,
            )

    refuse(
        lambda tensor: bool(is_lazy(tensor)),
        "have no shape yet",
        "weights of a lazy module",
        "call model(example) once, then pass the model",
    )
    refuse(
        lambda tensor: tensor.is_meta,
        "have no values",
        "tensors on the meta device",
        'materialise the model with model.to_empty(device="cpu"), then load its weights',
    )
    refuse(
        lambda tensor: tensor.layout != torch.strided,
        "can't be captured",
        "sparse tensors",
        "convert them with to_dense()",
    )


def check_input_types(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Check that all data is in tensors.

    Values without tensors (a flag, a number, a text) are constants of the capture. An array, or a
    container of an unknown type, holds data of one call, which no later call could change.

    Args:
        args: Positional example inputs.
        kwargs: Keyword example inputs.

    Raises:
        UsageError: An input is or contains such data.
    """
    for name, value in (*((f"args[{i}]", a) for i, a in enumerate(args)), *kwargs.items()):
        _, tree = trees.flatten(value)
        for constant in _constants(tree):
            if isinstance(constant, np.ndarray):
                fix = "convert it with torch.as_tensor(...)"
            elif isinstance(constant, (Mapping, Set)):
                fix = "pass a dict, list or tuple of tensors"
            else:
                continue
            raise UsageError(
                f"input {name!r} has data of an unsupported type",
                expected="tensors, and tuples, lists, dicts and dataclasses of them",
                got=f"{type(constant).__module__}.{type(constant).__qualname__}",
                fix=fix,
            )


def _constants(tree: trees.Tree) -> Iterator[Any]:
    if isinstance(tree, trees.Constant):
        yield tree.value
        if dataclasses.is_dataclass(tree.value) and not isinstance(tree.value, type):
            yield from vars(tree.value).values()
    elif isinstance(tree, trees.Node):
        for child in tree.children:
            yield from _constants(child)


logger = logging.getLogger(__name__)


def refuse_state(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Check that a model does not change its own buffers.

    Writing the value that a buffer has already, as an observer that is off does, does not count.
    Only values show this, so the model runs on the example inputs and on others.

    Args:
        model: The clone for the capture; its buffers are restored afterwards.
        args: Positional example inputs.
        kwargs: Keyword example inputs.

    Raises:
        CaptureError: Some buffers change; the message names them.
    """
    before = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    changed: dict[str, None] = {}
    for example in _examples(args, kwargs):
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                model(*example[0], **example[1])
        except Exception as e:  # noqa: BLE001  # the user's own code, on synthetic inputs
            logger.debug("the model does not run on other inputs: %s", e)
        changed |= dict.fromkeys(_take_back(model, before))
    if not changed:
        return
    observed = [name for name in changed if _is_observer(model, name)]
    raise CaptureError(
        f"{type(model).__name__} writes to its own state in forward: {listed(changed)}",
        expected="a model whose output depends on its inputs and weights alone",
        got="buffers whose values change with a call",
        fix="call model.apply(torch.ao.quantization.disable_observer)"
        if observed
        else "disable that bookkeeping (a counter, a cache) for inference",
    )


def _examples(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The example inputs, and larger and negative inputs, which change a running extreme."""
    leaves, tree = trees.flatten((args, kwargs))
    for factor in (1, 3, -3):
        yield trees.unflatten(
            tree,
            [
                leaf.detach() * factor
                if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
                else leaf.clone()
                if isinstance(leaf, torch.Tensor)
                else leaf
                for leaf in leaves
            ],
        )


def _take_back(model: nn.Module, before: dict[str, torch.Tensor]) -> list[str]:
    """Restore the values of buffers; returns the names of changed buffers."""
    changed = []
    for name, buffer in model.named_buffers():
        if name not in before:
            changed.append(name)
        elif not _equal(buffer, before[name]):
            changed.append(name)
            path, _, last = name.rpartition(".")
            model.get_submodule(path)._buffers[last] = before[name].clone()
    now = dict(model.named_buffers())
    return changed + [name for name in before if name not in now]


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a, b) or (a.is_floating_point() and torch.allclose(a, b, 0, 0, True))


def _is_observer(model: nn.Module, name: str) -> bool:
    """Whether a buffer belongs to a module that observes for quantisation."""
    path = name.rpartition(".")[0]
    parts = path.split(".") if path else []
    owners = [model.get_submodule(".".join(parts[: n + 1])) for n in range(len(parts))]
    return any(type(owner).__module__.startswith("torch.ao.quantization") for owner in owners)


def check_model(model: Any) -> None:
    """Check that the model is an instance of ``nn.Module`` without scripted parts.

    Raises:
        UsageError: It is not.
    """
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise UsageError(
            "the model is a class, not an instance",
            expected="an instance of torch.nn.Module",
            got=f"the class {model.__name__}",
            fix=f"pass {model.__name__}(...)",
        )
    if not isinstance(model, nn.Module):
        raise UsageError(
            "the model is not a module",
            expected="an instance of torch.nn.Module",
            got=type(model).__name__,
            fix="wrap a plain function in a Module with a forward method",
        )
    for name, module in model.named_modules():
        if isinstance(module, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
            raise UsageError(
                f"a scripted module can't be captured: {name}"
                if name
                else "a scripted model can't be captured",
                expected="the nn.Module it was scripted from",
                got=type(module).__name__,
                fix="pass the original Python module",
            )


def check_inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Check that the inputs are dense and have values and samples.

    Raises:
        UsageError: They are not, or have none.
    """
    leaves, _ = trees.flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    if any(tensor.is_meta for tensor in tensors):
        raise UsageError(
            "the example inputs hold no values",
            expected="tensors in memory",
            got="a tensor on the meta device",
            fix="make the example inputs on the device of the model's weights",
        )
    for tensor in tensors:
        form = _form(tensor)
        if form:
            raise UsageError(
                "the example inputs hold a tensor that can't be captured",
                expected="dense tensors of numbers",
                got=f"a {form} tensor",
                fix=_DENSE[form],
            )
    if next((tensor.shape[0] for tensor in tensors if tensor.dim()), 1) == 0:
        raise UsageError(
            "the example inputs hold no samples",
            expected="at least one sample",
            got=shapes_of(args, kwargs),
            fix="pass example inputs of at least one sample",
        )


# Forms of tensors that no graph takes, and what takes their place.
_DENSE = {
    "nested": "pad the samples to one size, and pass a mask or their lengths",
    "sparse": "convert it with to_dense()",
    "quantised": "convert it with dequantize()",
}


def _form(tensor: torch.Tensor) -> str:
    """A key of `_DENSE`; empty if the tensor is dense."""
    if tensor.is_nested:
        return "nested"
    if tensor.is_quantized:
        return "quantised"
    return "" if tensor.layout == torch.strided else "sparse"


def shapes_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Dtypes and shapes of the tensors of a call, for a message."""
    leaves, _ = trees.flatten((args, kwargs))
    shapes = (
        f"{str(leaf.dtype).removeprefix('torch.')}{list(leaf.shape)}"
        for leaf in leaves
        if isinstance(leaf, torch.Tensor)
    )
    return listed(shapes, 8)
