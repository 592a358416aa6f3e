"""Capturing and partitioning leave no trace on the user's model, inputs or process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxelastic
from tests.models import CASES
from tests.models.compare import assert_same_output, tensors

NAMES = (
    "resnet18",
    "bert",
    "t5",
    "lstm_classifier",
    "in_place_on_input",
    "hooked",
    "shufflenet_v2",
)


def half_trained(model: nn.Module) -> nn.Module:
    """A model in the middle of its life: in train mode but for one part, partly frozen."""
    model.train()
    next(model.children()).eval()
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 3 > 0)
    return model


def state(model: nn.Module) -> dict[str, Any]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
    return {
        "parameters": [
            (n, id(p), p._version, p.requires_grad) for n, p in model.named_parameters()
        ],
        "buffers": [(n, id(b), b._version) for n, b in model.named_buffers()],
        "modules": [(n, id(m), m.training, sorted(vars(m))) for n, m in model.named_modules()],
        "hooks": [[list(getattr(m, name)) for name in hooks] for m in model.modules()],
        "grads": [p.grad is None for p in model.parameters()],
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_as_it_was(name: str) -> None:
    case = CASES[name]
    model = half_trained(case.build())
    values = {key: value.clone() for key, value in model.state_dict().items()}
    before = state(model)
    partition = fxelastic.partition(model, 0.1, case.inputs(2))
    args, kwargs = case.inputs(3)
    partition(*args, **kwargs)
    assert state(model) == before
    after = model.state_dict()
    assert list(after) == list(values)
    assert all(torch.equal(after[key], value) for key, value in values.items())


def test_the_output_is_the_same_afterwards() -> None:
    case = CASES["resnet18"]
    model, (args, kwargs) = case.build(), case.inputs(2)
    before = model(*args, **kwargs)
    fxelastic.partition(model, 0.1, (args, kwargs))
    assert_same_output(model(*args, **kwargs), before)


@pytest.mark.parametrize("name", ["in_place_on_input", "bert"])
def test_example_inputs_are_not_written_to(name: str) -> None:
    case = CASES[name]
    example = case.inputs(2)
    fxelastic.partition(case.build(), 0.5, example)
    for given, fresh in zip(tensors(example), tensors(case.inputs(2)), strict=True):
        assert torch.equal(given, fresh)


def test_the_process_is_as_it_was() -> None:
    torch.manual_seed(7)
    seed = torch.get_rng_state()
    flags = (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads())
    fast = torch.backends.mha.get_fastpath_enabled()
    fxelastic.partition(CASES["vit"].build(), 0.25, CASES["vit"].inputs(2))
    assert torch.equal(torch.get_rng_state(), seed)
    assert (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()) == flags
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_blocks_hold_the_users_own_parameters() -> None:
    model = CASES["resnet18"].build()
    partition = fxelastic.partition(model, 0.25, CASES["resnet18"].inputs(2))
    own = {id(p) for p in model.parameters()}
    held = [p for module in partition.modules.values() for p in module.parameters()]
    assert held
    assert all(id(p) in own for p in held)


def test_embeddings_with_a_largest_norm_keep_their_weights() -> None:
    """A forward pass of them scales in place the rows that it reads."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embedding = nn.Embedding(20, 8, max_norm=1.0)
            layers = [m for _ in range(3) for m in (nn.Linear(8, 8), nn.ReLU())]
            self.layers = nn.Sequential(*layers)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.layers(self.embedding(ids).mean(1))

    model = Model().eval()
    before = model.embedding.weight.detach().clone()
    supernet = fxelastic.expand(model, 0.4, example_inputs=torch.arange(10).reshape(2, 5))
    assert torch.equal(model.embedding.weight, before)
    ids = torch.arange(20).reshape(4, 5)
    with torch.no_grad():
        found = supernet(ids)
        assert torch.equal(model.embedding.weight, before)
        assert torch.equal(found, model(ids))
