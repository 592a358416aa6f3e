"""The models that the tests run on, in one explicit registry.

Each file holds one family and lists its cases in ``CASES``; this file lists the families.
"""

from __future__ import annotations

from . import (
    bert,
    contexts,
    control_flow,
    convnext,
    densenet,
    detection,
    efficientnet,
    functional_nets,
    gpt,
    hrnet,
    in_place,
    inception,
    llama,
    mixer,
    mobilenet,
    recurrent,
    resnet,
    several_inputs,
    several_outputs,
    shared_weights,
    shufflenet,
    squeezenet,
    swin,
    t5,
    torch_transformer,
    unet,
    vgg,
    vit,
    wrapped,
    xception,
)
from .model_case import TAGS, ModelCase

__all__ = ["CASES", "TAGS", "ModelCase", "case"]

FAMILIES = (
    resnet,
    mobilenet,
    vgg,
    inception,
    densenet,
    squeezenet,
    unet,
    detection,
    efficientnet,
    convnext,
    shufflenet,
    xception,
    hrnet,
    vit,
    swin,
    mixer,
    bert,
    gpt,
    llama,
    t5,
    torch_transformer,
    recurrent,
    several_inputs,
    several_outputs,
    shared_weights,
    in_place,
    functional_nets,
    control_flow,
    contexts,
    wrapped,
)


def collect(cases: list[ModelCase]) -> dict[str, ModelCase]:
    """Index cases by name; a name used twice raises."""
    registry: dict[str, ModelCase] = {}
    for item in cases:
        if item.name in registry:
            raise ValueError(f"two model cases are called {item.name!r}")
        registry[item.name] = item
    return registry


CASES: dict[str, ModelCase] = collect([item for family in FAMILIES for item in family.CASES])


def case(name: str) -> ModelCase:
    """The case of this name.

    Raises:
        KeyError: there is none; the message lists those there are.
    """
    if name not in CASES:
        raise KeyError(f"no model case {name!r}; there are {', '.join(CASES)}")
    return CASES[name]
