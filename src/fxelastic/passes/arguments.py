"""The example inputs: normalise the user's inputs, or infer inputs from the model."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from fxelastic.errors import CaptureError, UsageError, said

logger = logging.getLogger(__name__)

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

#: Side lengths of images to try in turn if the model does not declare its own.
_IMAGE_SIZES = (224, 32, 64, 28, 128, 256, 299, 384, 96, 448, 512)
_SEQUENCE_LENGTHS = (16, 64, 128, 512)
_SIGNAL_LENGTHS = (1024, 128, 16000)
_HINTS = "fxelastic.partition(model, example_inputs=torch.randn(2, 3, 224, 224))"


def resolve_arguments(model: nn.Module, example_inputs: Any) -> Arguments:
    """Example arguments for one call of the model.

    Args:
        model: The model, safe to run (a clone in eval mode).
        example_inputs: A tensor, a tuple of positional inputs, a dict of keyword inputs, a pair
            ``(tuple, dict)``, or None to infer them.

    Returns:
        Positional and keyword arguments.

    Raises:
        UsageError: ``example_inputs`` has another type.
        CaptureError: There are no inputs, and none could be inferred.
    """
    if example_inputs is None:
        return _infer(model)
    return _normalise(example_inputs)


def declares_inputs(model: nn.Module) -> bool:
    """Whether a model declares its inputs, by the conventions of common libraries."""
    return any(True for _ in _declared(model))


def declared_image_size(model: nn.Module) -> tuple[int, int] | None:
    """The height and width of images that a model declares, or None."""
    for _, (args, kwargs) in _declared(model):
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Tensor) and value.dim() == 4:
                return int(value.shape[2]), int(value.shape[3])
    side = next(_declared_sides(model), None)
    return None if side is None else (side, side)


def _normalise(example_inputs: Any) -> Arguments:
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, tuple):
        if (
            len(example_inputs) == 2
            and isinstance(example_inputs[0], tuple)
            and isinstance(example_inputs[1], dict)
        ):
            return example_inputs[0], _string_keys(example_inputs[1])
        return example_inputs, {}
    if isinstance(example_inputs, Mapping):
        return (), _string_keys(example_inputs)
    raise UsageError(
        "example_inputs has a type that a model can't take",
        expected="a tensor, a tuple of inputs, a dict of keyword inputs, or (tuple, dict)",
        got=type(example_inputs).__name__,
        fix=f"for example {_HINTS}",
    )


def _string_keys(kwargs: Mapping[Any, Any]) -> dict[str, Any]:
    for key in kwargs:
        if not isinstance(key, str):
            raise UsageError(
                "a keyword input's name is not a string",
                expected="dict[str, Any]",
                got=f"the key {key!r}",
                fix='wrap a model\'s single dict argument as ({"a": ...},)',
            )
    return dict(kwargs)


def _infer(model: nn.Module) -> Arguments:
    tried: list[str] = []
    for origin, arguments in _candidates(model):
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                model(*arguments[0], **arguments[1])
        except Exception as e:  # noqa: BLE001  # the model is the user's code: it may raise anything
            tried.append(f"{origin}: {type(e).__name__}: {_first_line(e)}")
            logger.debug("example inputs from %s do not run: %s", origin, e)
            continue
        logger.info("example inputs inferred from %s", origin)
        return arguments
    required = ", ".join(_required(model)) or "its inputs"
    raise CaptureError(
        f"{type(model).__name__} needs example inputs, and none could be inferred",
        expected=f"example_inputs for: {required}",
        got="; ".join(tried[:3]) if tried else "no layer from which the input's shape follows",
        fix=f"pass them, for example {_example_call(model)}",
    )


def _candidates(model: nn.Module) -> Iterator[tuple[str, Arguments]]:
    yield from _declared(model)
    required = _required(model)
    if len(required) > 1:
        return
    for origin, tensor in _from_first_layer(model):
        yield origin, ((tensor,), {})


def _declared(model: nn.Module) -> Iterator[tuple[str, Arguments]]:
    """Inputs that the model itself declares, by the conventions of common libraries."""
    device, dtype = _device_and_dtype(model)
    example = _attribute(model, "example_input_array")
    if example is not None:
        yield "example_input_array", _normalise(_move(example, device))
    dummy = _attribute(model, "dummy_inputs")
    if isinstance(dummy, Mapping):
        accepted = inspect.signature(model.forward).parameters
        if all(name in accepted for name in dummy):
            inputs = _move(dict(dummy), device)
            yield "dummy_inputs", ((), inputs)
            if "decoder_input_ids" in accepted and "input_ids" in inputs:
                # Encoder-decoder models whose dummy inputs feed the encoder only.
                inputs = inputs | {"decoder_input_ids": inputs["input_ids"]}
                yield "dummy_inputs and decoder_input_ids", ((), inputs)
    for attribute in ("pretrained_cfg", "default_cfg"):
        config = _attribute(model, attribute)
        size = _lookup(config, "input_size")
        if isinstance(size, (tuple, list)) and all(isinstance(n, int) for n in size):
            shape = (2, *size)
            yield attribute, ((torch.zeros(shape, device=device, dtype=dtype),), {})


def _attribute(model: nn.Module, name: str) -> Any:
    """An attribute of a model; None if it has none, or if it is a property that fails."""
    try:
        return getattr(model, name, None)
    except Exception as e:  # noqa: BLE001  # the user's code may raise anything; other sources follow
        logger.warning("%s of %s can't be read: %s", name, type(model).__name__, said(e))
        return None


def _from_first_layer(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Inputs with shapes for the first layers with parameters, in order of registration."""
    device, dtype = _device_and_dtype(model)
    sides = tuple(dict.fromkeys((*_declared_sides(model), *_IMAGE_SIZES)))
    layers = [
        (name, module)
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    for name, layer in layers[:4]:
        for shape, integer in _shapes(layer, sides):
            origin = f"{name or type(layer).__name__} ({type(layer).__name__}) {shape}"
            if integer:
                yield origin, torch.zeros(shape, dtype=torch.long, device=device)
            else:
                yield origin, torch.zeros(shape, dtype=dtype, device=device)


def _shapes(layer: nn.Module, sides: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], bool]]:
    if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
        yield from (((2, layer.in_channels, side, side), False) for side in sides)
    elif isinstance(layer, (nn.Conv1d, nn.ConvTranspose1d)):
        yield from (((2, layer.in_channels, n), False) for n in _SIGNAL_LENGTHS)
        if layer.in_channels == 1:
            yield from (((2, n), False) for n in _SIGNAL_LENGTHS)
    elif isinstance(layer, (nn.Conv3d, nn.ConvTranspose3d)):
        yield from (((2, layer.in_channels, n, 4 * n, 4 * n), False) for n in (16, 8, 32))
    elif isinstance(layer, nn.Linear):
        yield (2, layer.in_features), False
        yield from (((2, n, layer.in_features), False) for n in _SEQUENCE_LENGTHS)
        side = round((layer.in_features / 3) ** 0.5)
        if 3 * side * side == layer.in_features:
            yield (2, 3, side, side), False
        side = round(layer.in_features**0.5)
        if side * side == layer.in_features:
            yield (2, 1, side, side), False
            yield (2, side, side), False
    elif isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        yield from (((2, n), True) for n in _SEQUENCE_LENGTHS)
    elif isinstance(layer, (nn.RNNBase,)):
        yield from (((2, n, layer.input_size), False) for n in _SEQUENCE_LENGTHS)
    elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
        yield (2, layer.num_features), False
        yield from (((2, layer.num_features, side, side), False) for side in sides)
    elif isinstance(layer, nn.LayerNorm):
        yield from (((2, n, *layer.normalized_shape), False) for n in _SEQUENCE_LENGTHS)
        yield (2, *layer.normalized_shape), False


def _declared_sides(model: nn.Module) -> Iterator[int]:
    """Image sizes that the model or one of its parts has as an attribute."""
    holders: list[Any] = [model, getattr(model, "config", None)]
    holders += list(model.children())
    for holder in holders:
        for attribute in ("image_size", "img_size", "input_size"):
            value = getattr(holder, attribute, None)
            if isinstance(value, (tuple, list)) and value:
                value = value[-1]
            if isinstance(value, int) and not isinstance(value, bool) and 8 <= value <= 2048:
                yield value


def _device_and_dtype(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return parameter.device, parameter.dtype
    return torch.device("cpu"), torch.float32


def _required(model: nn.Module) -> list[str]:
    """Names of the arguments of ``forward`` that have no default."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return []
    return [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


def _example_call(model: nn.Module) -> str:
    required = _required(model)
    if len(required) > 1:
        inputs = ", ".join(f'"{name}": torch.randn(2, ...)' for name in required)
        return f"fxelastic.partition(model, example_inputs={{{inputs}}})"
    return _HINTS


def _lookup(config: Any, key: str) -> Any:
    return config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)


def _move(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _move(item, device) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(_move(item, device) for item in value)
    return value


def _first_line(e: Exception) -> str:
    return (str(e).strip().splitlines() or [""])[0][:120]
