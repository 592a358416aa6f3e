"""Random models for property tests: nested series-parallel ones, and flat ones of any DAG."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

#: Every value between the layers has the shape (N, CHANNELS, SIZE, SIZE).
CHANNELS, SIZE = 4, 5


class ConvBnRelu(nn.Sequential):
    def __init__(self, in_place: bool = False) -> None:
        super().__init__(
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False),
            nn.BatchNorm2d(CHANNELS),
            nn.ReLU(inplace=in_place),
        )


class Expand(nn.Module):
    """A layer that widens and narrows again, with a gate in the middle."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Conv2d(CHANNELS, 2 * width, 1)
        self.down = nn.Conv2d(width, CHANNELS, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = self.up(x).chunk(2, dim=1)
        return self.down(value * torch.sigmoid(gate))


class Tokens(nn.Module):
    """A layer norm and a linear layer over the positions as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(CHANNELS)
        self.mix = nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        return self.mix(self.norm(tokens)).transpose(1, 2).reshape(n, c, h, w)


class WritesInPlace(nn.Module):
    """Overwrites a value of its own, never its operand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        y.add_(x).mul_(0.5)
        return y


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
    "conv_bn_relu": ConvBnRelu,
    "conv_bn_relu_": lambda: ConvBnRelu(in_place=True),
    "depthwise": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS),
    "expand": lambda: Expand(6),
    "tokens": Tokens,
    "writes_in_place": WritesInPlace,
    "gelu": nn.GELU,
    "pool": lambda: nn.AvgPool2d(3, 1, 1),
    "identity": nn.Identity,
}

JOINS: dict[str, Callable[[list[torch.Tensor]], torch.Tensor]] = {
    "add": lambda values: sum(values[1:], values[0]),
    "multiply": lambda values: values[0] * torch.sigmoid(values[-1]),
    "maximum": lambda values: torch.stack(values).amax(0),
    "concatenate": lambda values: torch.cat(values, dim=1)[:, :: len(values)],
}


class Series(nn.Sequential):
    pass


class Parallel(nn.Module):
    def __init__(self, join: str, *arms: nn.Module) -> None:
        super().__init__()
        self.join = join
        self.arms = nn.ModuleList(arms)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return JOINS[self.join]([arm(x) for arm in self.arms])


@dataclass(frozen=True)
class Recipe:
    """Builds the same model again and again: weights depend on the recipe alone."""

    make: Callable[[], nn.Module] = field(repr=False)
    text: str

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        model = self.make().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2.0)
        return model


def _layer(name: str) -> Recipe:
    return Recipe(LAYERS[name], name)


def _series(parts: list[Recipe]) -> Recipe:
    return Recipe(
        lambda: Series(*(p.make() for p in parts)), f"({' > '.join(p.text for p in parts)})"
    )


def _parallel(join: str, parts: list[Recipe]) -> Recipe:
    return Recipe(
        lambda: Parallel(join, *(p.make() for p in parts)),
        f"{join}[{' | '.join(p.text for p in parts)}]",
    )


def series_parallel() -> st.SearchStrategy[Recipe]:
    """Nested models: layers after one another and side by side, with module names."""
    leaf = st.sampled_from(sorted(LAYERS)).map(_layer)
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.lists(inner, min_size=2, max_size=4).map(_series),
            st.builds(
                _parallel, st.sampled_from(sorted(JOINS)), st.lists(inner, min_size=2, max_size=3)
            ),
        ),
        max_leaves=10,
    )


@dataclass(frozen=True)
class Step:
    """One value of a flat model.

    Attributes:
        operator: A key of LAYERS or JOINS, ``functional`` for a bare matrix product.
        operands: Positions of the values that it reads; 0 is the model's input.
        weight: Which of the model's layers it uses: two steps may share one.
    """

    operator: str
    operands: tuple[int, ...]
    weight: int


class Dag(nn.Module):
    """Runs steps over a list of values; no layer has a meaningful name."""

    def __init__(self, steps: tuple[Step, ...], outputs: tuple[int, ...]) -> None:
        super().__init__()
        self.steps, self.outputs = steps, outputs
        self.shared = nn.ModuleDict()
        for step in steps:
            key = f"{step.operator}{step.weight}"
            if step.operator in LAYERS and key not in self.shared:
                self.shared[key] = LAYERS[step.operator]()
        self.kernel = nn.Parameter(torch.randn(CHANNELS, CHANNELS, 1, 1))

    def forward(self, x: torch.Tensor) -> Any:
        values = [x]
        for step in self.steps:
            operands = [values[i] for i in step.operands]
            if step.operator == "functional":
                values.append(F.conv2d(operands[0], self.kernel))
            elif step.operator in JOINS:
                values.append(JOINS[step.operator](operands))
            else:
                values.append(self.shared[f"{step.operator}{step.weight}"](operands[0]))
        results = tuple(values[i] for i in self.outputs)
        return results if len(results) > 1 else results[0]


#: What may run on a value that others still read.
_PURE = sorted(set(LAYERS) - {"identity"})


@st.composite
def dags(draw: st.DrawFn) -> Recipe:
    """Flat models: any step may read any earlier values, any value may be a result."""
    steps: list[Step] = []
    for i in range(draw(st.integers(1, 9))):
        operator = draw(st.sampled_from([*_PURE, *sorted(JOINS), "functional"]))
        # Mostly the last values, so that graphs are long and not only wide.
        recent = st.integers(max(0, i - 2), i)
        position = st.one_of(recent, recent, st.integers(0, i))
        arity = draw(st.integers(2, 3)) if operator in JOINS else 1
        operands = tuple(draw(position) for _ in range(arity))
        steps.append(Step(operator, operands, draw(st.integers(0, 2))))
    others = draw(st.lists(st.integers(1, len(steps)), max_size=2, unique=True))
    outputs = (len(steps), *(i for i in others if i != len(steps)))
    fixed = tuple(steps)
    text = "; ".join(f"{s.operator}{s.weight}{s.operands}" for s in fixed)
    return Recipe(lambda: Dag(fixed, outputs), f"Dag({text} -> {outputs})")
