"""Functions that close over a model mean the copy in its copy, and the model stays as it is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxelastic


class Tapped(nn.Module):
    """Reads a feature that a hook has put aside."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 2)
        self.features: dict[str, Tensor] = {}
        self.body[0].register_forward_hook(lambda m, i, o: self.features.__setitem__("tap", o))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return self.head(y + self.features["tap"])


class Activated(nn.Module):
    """Has an activation that asks the model whether it is trained."""

    def __init__(self, make: Callable[[nn.Module], Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 2)
        self.activation = make(self)
        self.listed = [make(self)]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.listed[0](self.activation(self.body(x))))


def dropped(model: nn.Module, x: Tensor) -> Tensor:
    return F.dropout(x.relu(), 0.5, model.training)


class Uncopied(Activated):
    """Can't be copied as a whole."""

    def __init__(self, make: Callable[[nn.Module], Callable[[Tensor], Tensor]]) -> None:
        super().__init__(make)
        self.generator = (i for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.activation(self.body(x)))


def patched() -> nn.Module:
    """Blocks whose forward was put around the old one."""
    model = nn.Sequential(
        *(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)) for _ in range(3))
    )

    def doubled(old: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: old(x) * 2

    for block in model:
        block.forward = doubled(block.forward)  # type: ignore[method-assign]
    return model


def by_default(model: nn.Module) -> Callable[[Tensor], Tensor]:
    def activation(x: Tensor, owner: nn.Module = model) -> Tensor:
        return dropped(owner, x)

    return activation


def by_named_default(model: nn.Module) -> Callable[[Tensor], Tensor]:
    def activation(x: Tensor, *, owner: nn.Module = model) -> Tensor:
        return dropped(owner, x)

    return activation


def nested(model: nn.Module) -> Callable[[Tensor], Tensor]:
    def inner(x: Tensor) -> Tensor:
        return dropped(model, x)

    return lambda x: inner(x)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "hook": Tapped,
    "lambda": lambda: Activated(lambda model: lambda x: dropped(model, x)),
    "partial": lambda: Activated(lambda model: functools.partial(dropped, model)),
    "default": lambda: Activated(by_default),
    "named default": lambda: Activated(by_named_default),
    "nested": lambda: Activated(nested),
    "not copied as a whole": lambda: Uncopied(lambda model: lambda x: dropped(model, x)),
    "patched forward": patched,
}


@pytest.mark.parametrize("ran", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_capture_is_of_the_copy(name: str, training: bool, ran: bool) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    if ran:
        with torch.no_grad():
            model.eval()(torch.randn(1, 8))
    model.train(training)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    hooked = _functions(model)
    partition = fxelastic.partition(model, 0.4, example_inputs=torch.randn(2, 8))
    assert partition.unused_params == ()
    assert partition.dynamic_batch
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert _functions(model) == hooked
    assert model.training == training
    x = torch.randn(5, 8)
    with torch.no_grad():
        found = fxelastic.expand(model, 0.4, example_inputs=torch.randn(2, 8), kinds=())(x)
        assert torch.allclose(found, model.eval()(x), atol=1e-6)


def _functions(model: nn.Module) -> list[Any]:
    return [
        [*module._forward_hooks.values(), *map(id, filter(callable, vars(module).values()))]
        for module in model.modules()
    ]


class Heads(nn.Module):
    """Parts and inputs whose names Python has for something else."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 8)
        self.heads = nn.ModuleDict({k: nn.Linear(8, 3) for k in ("class", "class_", "box")})
        self.scales = nn.ParameterDict({"in": nn.Parameter(torch.ones(8)), "None": torch.ones(8)})

    def forward(self, x: Tensor, **more: Tensor) -> dict[str, Tensor]:
        y = self.body(x * self.scales["in"] * self.scales["None"]).relu()
        y = y + more["lambda"] + more["torch"]
        return {name: head(y) for name, head in self.heads.items()}


def test_names_that_python_has_for_something_else() -> None:
    torch.manual_seed(0)
    model = Heads().eval()
    more = {"lambda": torch.randn(2, 8), "torch": torch.randn(2, 8)}
    example = ((torch.randn(2, 8),), more)
    supernet = fxelastic.expand(model, 0.5, example_inputs=example)
    x, more = torch.randn(3, 8), {name: torch.randn(3, 8) for name in more}
    with torch.no_grad():
        found, expected = supernet(x, **more), model(x, **more)
        supernet(x, arch=supernet.space.sample(1, seed=0)[0], **more)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert supernet.partition.unused_params == ()
