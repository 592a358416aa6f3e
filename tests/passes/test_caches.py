"""Decoders: blocks end at the borders of layers, and one capture runs every step."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from fxelastic import partition
from fxelastic.errors import PartitionError, UsageError
from fxelastic.ir import trees
from tests.decoders import DECODERS, decoder, inputs_of, supernet_of

NAMES = tuple(DECODERS)


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_with_a_cache_is_one_block(name: str) -> None:
    part = supernet_of(name).partition
    layers = [block for block in part.blocks if block.name.startswith("layers.")]
    assert [block.name for block in layers] == ["layers.0", "layers.1"]
    for i, block in enumerate(layers):
        assert block.kind == "basic"
        assert len(block.inputs) == 1
        caches = [c for c in part.caches if c.present in block.outputs]
        assert [c.past for c in caches] == [f"past_{i}_0", f"past_{i}_1"]
        assert block.outputs == (block.output, *(c.present for c in caches))
    part.verify()


@pytest.mark.parametrize("name", NAMES)
def test_an_early_result_that_is_no_cache_is_refused_by_the_verifier(name: str) -> None:
    part = supernet_of(name).partition
    i, block = next((i, b) for i, b in enumerate(part.blocks) if len(b.outputs) > 1)
    inner = next(n for n in block.nodes if n not in block.outputs and "view" not in n)
    wrong = dataclasses.replace(block, outputs=(*block.outputs, inner))
    blocks = (*part.blocks[:i], wrong, *part.blocks[i + 1 :])
    with pytest.raises(PartitionError, match="declares output"):
        dataclasses.replace(part, blocks=blocks).verify()


class Peeking(nn.Module):
    """Returns values from inside its layers, which extend no input."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

    def forward(self, x: torch.Tensor, past: torch.Tensor) -> Any:
        seen = []
        for layer in self.layers:
            inner = torch.cat([layer(x), past], dim=1)
            seen.append(inner)
            x = x + inner.sum(1, keepdim=True)
        return x, seen


def test_other_results_inside_a_layer_are_blocks_outputs_as_before() -> None:
    inputs = {"x": torch.randn(2, 3, 4), "past": torch.randn(2, 5, 4)}
    shapes = {"x": {1: "new"}, "past": {1: "past"}}
    part = partition(Peeking(), 1.0, inputs, dynamic_shapes=shapes)
    assert part.caches == ()
    assert all(len(block.outputs) == 1 for block in part.blocks)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("n", "new", "past"), [(1, 7, 0), (2, 1, 0), (1, 1, 1), (3, 1, 9)])
def test_one_capture_computes_the_first_step_and_all_others(
    name: str, n: int, new: int, past: int
) -> None:
    part = supernet_of(name).partition
    assert [str(s.symbol) for s in part.symbols] == ["batch[1..]", "new[1..]", "past[0..]"]
    inputs = inputs_of(name, n, new, past, seed=1)
    if "mask" in inputs:
        inputs["mask"][0, : (new + past) // 2] = 0
    with torch.no_grad():
        expected, tree = trees.flatten(decoder(name)(**inputs))
        found, same = trees.flatten(part(**inputs))
    assert same == tree
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def gpt(shapes: dict[str, Any], past: int = 5) -> Any:
    inputs = inputs_of("gpt", past=past)
    return partition(decoder("gpt"), 0.5, inputs, dynamic_shapes={**DECODERS["gpt"][2], **shapes})


def test_a_past_that_the_user_bounds_is_not_empty() -> None:
    size = Dim("past", min=1, max=32)
    # By the tensors' own names, as the command line gives them.
    pasts = {f"past_{i}_{j}": {0: "batch", 2: size} for i in (0, 1) for j in (0, 1)}
    shapes = {"ids": {0: "batch", 1: "new"}, "mask": {0: "batch", 1: "past + new"}, **pasts}
    part = partition(decoder("gpt"), 0.5, inputs_of("gpt"), dynamic_shapes=shapes)
    assert str(part.symbols[2].symbol) == "past[1..32]"


def test_an_example_of_the_first_step_gives_a_past_that_grows() -> None:
    # A name of its own for the sum of past and new tokens is replaced by the sum.
    part, inputs = gpt({"mask": {0: "batch", 1: "total"}}, past=0), inputs_of("gpt", past=4)
    assert [str(s.symbol) for s in part.symbols] == ["batch[1..]", "new[1..]", "past[0..]"]
    with torch.no_grad():
        assert torch.equal(part(**inputs)[0], decoder("gpt")(**inputs)[0])


AUTO = {0: Dim.AUTO, 2: Dim.AUTO}


def test_sizes_that_torch_is_to_find_are_tied_as_the_model_ties_them() -> None:
    auto = {"ids": {0: Dim.AUTO, 1: Dim.AUTO}, "mask": (Dim.AUTO, Dim.AUTO)}
    part = gpt({**auto, "past": [(AUTO, AUTO)] * 2})
    assert [str(s.symbol) for s in part.symbols] == ["N[1..]", "ids_1[1..]", "past_0_0_2[0..]"]
    assert part.warnings == ()
    inputs = inputs_of("gpt", 3, 2, 7)
    with torch.no_grad():
        assert torch.equal(part(**inputs)[0], decoder("gpt")(**inputs)[0])


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ("past + other", "uses 'other' only in the sum"),
        ("past + 9", "is not past \\+ 9"),
        ("past + 2.5", "a name that can't be one"),
    ],
)
def test_a_sum_that_does_not_fit_is_refused(size: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        gpt({"mask": {0: "batch", 1: size}})


def test_a_mask_of_another_length_is_refused_with_the_sum() -> None:
    inputs = inputs_of("gpt")
    inputs["mask"] = inputs["mask"][:, :-1]
    with pytest.raises(UsageError, match=r"new\+past is 8 for batch = 2, new = 3, past = 5"):
        supernet_of("gpt").partition(**inputs)
