"""The inputs of a model: from its data, from the model itself, or guessed."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fxelastic.cli.reference import describe
from fxelastic.errors import UsageError

if TYPE_CHECKING:
    import torch

# The class of samples that a cross-entropy leaves out.
_LEFT_OUT = -100

# Numbers of channels that images have.
_CHANNELS = (1, 3, 4)

_IMAGE = re.compile(r"(?:[^=:]+=)?(?:\w+:)?\d+x\d+x(\d+)x(\d+)")


@dataclass(frozen=True)
class ModelInputs:
    """What is known of a model's inputs before its data is read.

    Attributes:
        load: Returns the model.
        example_input: The values of ``--example-input``.
    """

    load: Callable[[], torch.nn.Module]
    example_input: Sequence[str] = ()

    def image_size(self) -> tuple[int, int] | None:
        """The height and width of images that the options or the model ask for, if they do."""
        for text in self.example_input:
            match = _IMAGE.fullmatch(text)
            if match is not None:
                return int(match[1]), int(match[2])
        from fxelastic.passes.arguments import declared_image_size

        return declared_image_size(self.load())

    def names(self) -> list[str]:
        """The names of the inputs, in order."""
        parameters = inspect.signature(self.load().forward).parameters.values()
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return [p.name for p in parameters if p.kind in kinds]


def call_of(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and the keyword inputs of a batch."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}


def example_texts(inputs: Any, targets: Any = None) -> list[str]:
    """The values of ``--example-input`` for a model that takes such a batch.

    Args:
        inputs: Some samples, as a loader returns them.
        targets: Their targets, if there are any.

    Returns:
        A shape for each input, with one sample; empty if one is not a tensor.
    """
    import torch

    args, kwargs = call_of(inputs)
    named = [("", value) for value in args] + [(f"{key}=", value) for key, value in kwargs.items()]
    if not all(isinstance(value, torch.Tensor) and value.dim() for _, value in named):
        return []
    n_samples = len(named[0][1]) if named else 0
    if isinstance(targets, torch.Tensor) and targets.dim():
        n_samples = len(targets)
    texts = []
    for name, value in named:
        sizes = [1 if value.shape[0] == n_samples else value.shape[0], *value.shape[1:]]
        dtype = str(value.dtype).removeprefix("torch.")
        kind = "" if dtype == "float32" else f"{dtype}:"
        texts.append(name + kind + "x".join(map(str, sizes)))
    return texts


def _remedy(
    model: torch.nn.Module, args: Sequence[torch.Tensor], kwargs: Mapping[str, torch.Tensor]
) -> str:
    """What most probably helps where a model can't be run on its data."""
    names = ModelInputs(lambda: model).names()
    parameters = inspect.signature(model.forward).parameters.values()
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    if not takes_any and not kwargs.keys() <= {*names}:
        return f"name the arrays as the model's inputs ({', '.join(names)}), and targets y"
    for value in (*args, *kwargs.values()):
        sizes = tuple(getattr(value, "shape", ()))
        if len(sizes) == 4 and sizes[3] in _CHANNELS and sizes[1] not in _CHANNELS:
            return "if the images have their channels last, save x.transpose(0, 3, 1, 2)"
    return "change the shapes or the types of the data, or choose another model"


def check_data(model: torch.nn.Module, inputs: Any, targets: Any, data: str) -> None:
    """Check that a model takes the data, before any work.

    Args:
        model: The model; it is run on the inputs.
        inputs: Those of a few samples.
        targets: The targets of these and of others; None to leave them out.
        data: What ``--data`` names, for messages.

    Raises:
        UsageError: The model can't be run on the inputs, or a class is beyond its results.
    """
    import torch

    args, kwargs = call_of(inputs)
    was_training = model.training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            result = model.eval()(*args, **kwargs)
    except Exception as e:
        shown = ", ".join(example_texts(inputs)) or type(inputs).__name__
        raise UsageError(
            f"{type(model).__name__} can't be run on the samples of --data {data}",
            expected="inputs that the model takes",
            got=f"{shown}; {describe(e)}",
            fix=_remedy(model, args, kwargs),
        ) from e
    finally:
        model.train(was_training)
    scores = isinstance(result, torch.Tensor) and result.dim() == 2 and result.shape[1] > 1
    if not scores or not isinstance(targets, torch.Tensor):
        return
    if targets.dim() != 1 or targets.is_floating_point():
        return
    classes = [int(c) for c in targets.unique() if c != _LEFT_OUT]
    if classes and not 0 <= min(classes) <= max(classes) < result.shape[1]:
        raise UsageError(
            f"the targets of --data {data} do not fit {type(model).__name__}",
            expected=f"classes from 0 to {result.shape[1] - 1}",
            got=f"classes from {min(classes)} to {max(classes)}",
            fix="number the classes from 0, or choose a model with as many results",
        )
