"""Outputs: a dataclass, nested containers, several tasks, constants among the tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .model_case import Inputs, features, images, make_case, padding_mask, token_ids
from .several_inputs import conv_block


@dataclass
class SegmentationOutput:
    """A user's own output type, registered nowhere."""

    logits: Tensor
    hidden_states: tuple[Tensor, ...]
    loss: Tensor | None = None


class DataclassOutput(nn.Module):
    """A small segmenter that returns a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([conv_block(3, 8), conv_block(8, 16), conv_block(16, 16)])
        self.decoder = nn.ConvTranspose2d(16, 8, 4, stride=4)
        self.classifier = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> SegmentationOutput:
        hidden = []
        for layer in self.encoder:
            x = layer(x)
            hidden.append(x)
        logits = self.classifier(torch.relu(self.decoder(x)))
        return SegmentationOutput(logits=logits, hidden_states=tuple(hidden))


class Box(NamedTuple):
    """A named tuple of tensors."""

    centre: Tensor
    size: Tensor


class NestedOutput(nn.Module):
    """Every container, ``None``, a number, the input itself, one value twice."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU())
        self.centre = nn.Linear(24, 2)
        self.size = nn.Linear(24, 2)
        self.scores = nn.ModuleList(nn.Linear(24, n) for n in (3, 5))

    def forward(self, x: Tensor) -> dict[str, object]:
        hidden = self.trunk(x)
        scores = [head(hidden) for head in self.scores]
        return {
            "box": Box(self.centre(hidden), self.size(hidden).exp()),
            "scores": (scores, {"best": [s.argmax(dim=-1) for s in scores]}),
            "aux": None,
            "version": 3,
            "input": x,
            "again": scores[0],
        }


class MultiTask(nn.Module):
    """A shared trunk and heads of different kinds and depths."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(conv_block(3, 8), conv_block(8, 16))
        self.segmentation = nn.Sequential(
            nn.Conv2d(16, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 2, 1)
        )
        self.deep = conv_block(16, 24)
        self.classification = nn.Linear(24, 6)
        self.regression = nn.Sequential(nn.Linear(24, 12), nn.Tanh(), nn.Linear(12, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shared = self.trunk(x)
        masks = nn.functional.interpolate(self.segmentation(shared), scale_factor=4.0)
        pooled = self.deep(shared).mean((2, 3))
        return masks, self.classification(pooled), self.regression(pooled)[:, 0]


@dataclass(frozen=True)
class TokenOutput:
    """A frozen dataclass with a nested one."""

    logits: Tensor
    inner: SegmentationOutput


class DataclassText(nn.Module):
    """Embedding, one gated layer, a dataclass in a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(41, 16)
        self.gate = nn.Linear(16, 16)
        self.value = nn.Linear(16, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> TokenOutput:
        x = self.embed(input_ids)
        y = torch.sigmoid(self.gate(x)) * self.value(x)
        if attention_mask is not None:
            y = y * attention_mask[..., None]
        inner = SegmentationOutput(logits=y, hidden_states=(x, y))
        return TokenOutput(self.head(y.sum(1)), inner)


def _text(batch: int, generator: torch.Generator) -> Inputs:
    ids = token_ids(batch, 8, 41, generator)
    return (ids,), {"attention_mask": padding_mask(batch, 8)}


OUTPUT_TAGS = {"multi-output", "nested-output", "side-exits"}

CASES = (
    make_case(
        "dataclass_output",
        DataclassOutput,
        images(size=32),
        {"conv", "inplace", "no-plain-export", *OUTPUT_TAGS},
    ),
    make_case(
        "dataclass_nested",
        DataclassText,
        _text,
        {"mlp", "int-input", "multi-input", "kwargs", "no-plain-export", *OUTPUT_TAGS},
    ),
    make_case("nested_output", NestedOutput, features(12), {"mlp", *OUTPUT_TAGS}),
    make_case("multi_task", MultiTask, images(size=32), {"conv", "inplace", "multi-output"}),
)
