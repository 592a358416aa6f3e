"""Branches work at every size that the model takes, whatever the example's size is."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fxelastic import Supernet, expand
from fxelastic.branches import DEFAULT_KINDS
from fxelastic.ir import trees
from tests.models import CASES

#: Each with the sizes that are tried: the smallest, one that is odd, and a large one.
SIZES: dict[str, tuple[dict[str, int], ...]] = {
    "bert": ({"length": 1}, {"length": 7}, {"length": 32}),
    "llama": ({"length": 1}, {"length": 5}, {"length": 30}),
    "squeezenet": ({"H": 33, "W": 48}, {"H": 96, "W": 65}),
    "fpn_detector": ({"H": 33, "W": 32}, {"H": 64, "W": 97}),
    "convnext": ({"H": 32, "W": 64}, {"H": 65, "W": 96}),
}


def named_inputs(name: str, model: torch.nn.Module) -> dict[str, Any]:
    args, kwargs = CASES[name].inputs(2)
    return {**dict(zip(inspect.signature(model.forward).parameters, args, strict=False)), **kwargs}


def symbols_of(value: torch.Tensor) -> dict[int, str]:
    return {2: "H", 3: "W"} if value.dim() == 4 else {1: "length"}


def supernet_of(name: str) -> tuple[torch.nn.Module, dict[str, Any], Supernet]:
    model = CASES[name].build().eval()
    inputs = named_inputs(name, model)
    shapes = {key: symbols_of(value) for key, value in inputs.items()}
    options: dict[str, Any] = {"dynamic_shapes": shapes, "kinds": DEFAULT_KINDS}
    return model, inputs, expand(model, 0.2, example_inputs=inputs, **options)


def at(value: torch.Tensor, sizes: dict[str, int]) -> torch.Tensor:
    for dim, symbol in symbols_of(value).items():
        index = torch.arange(sizes[symbol]) % value.shape[dim]
        value = value.index_select(dim, index)
    return value


@pytest.mark.parametrize("name", SIZES)
def test_every_branch_fits_at_every_size(name: str) -> None:
    model, inputs, supernet = supernet_of(name)
    assert len(supernet.branches) > len(supernet.partition.blocks)
    for sizes in SIZES[name]:
        given = {key: at(value, sizes) for key, value in inputs.items()}
        with torch.no_grad():
            expected, tree = trees.flatten(model(**given))
            found, same = trees.flatten(supernet(**given))
            assert same == tree
            assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
            values = supernet.bind((), given)
            for branch in supernet.path():
                operands = [values[key] for key in (*branch.inputs, *branch.context)]
                result = branch.module(*operands)
                results = (result,) if len(branch.outputs) == 1 else result
                values.update(zip(branch.outputs, results, strict=True))
            for branch in supernet.branches.values():
                operands = [values[key] for key in (*branch.inputs, *branch.context)]
                with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                    result = branch.module(*operands)
                alone = supernet.partition.blocks[branch.start].kind == "context"
                n_samples = 1 if alone else 2
                assert counter.get_total_flops() == n_samples * branch.spec.flops_at(sizes)
                results = (result,) if len(branch.outputs) == 1 else result
                for key, value in zip(branch.outputs, results, strict=True):
                    assert value.shape == values[key].shape, (branch.id, sizes)


def test_branches_and_flops_are_those_of_the_examples_sizes() -> None:
    _, _, supernet = supernet_of("squeezenet")
    model = CASES["squeezenet"].build()
    example = named_inputs("squeezenet", model)
    fixed = expand(model, 0.2, example_inputs=example, kinds=DEFAULT_KINDS)
    assert list(supernet.branches) == list(fixed.branches)
    # A branch may pool before its projection instead of after it, where sizes vary.
    found, expected = (
        {
            branch.id: branch.flops
            for branch in each.space.branches
            if "projections" not in each.branches[branch.id].note
        }
        for each in (supernet, fixed)
    )
    assert found == expected
