from __future__ import annotations

import keyword

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn

from fxelastic.ir.part_names import free_name, name_of, target_of

_PARTS = st.text(min_size=1, max_size=12).map(lambda text: text.replace(".", "_"))


@given(st.lists(_PARTS, min_size=1, max_size=4).map(".".join))
def test_a_path_is_read_back_from_where_it_is_held(path: str) -> None:
    assert name_of(target_of(path)) == path


@given(_PARTS, _PARTS)
def test_no_two_names_are_held_under_one(one: str, other: str) -> None:
    assert (target_of(one) == target_of(other)) == (one == other)


@pytest.mark.parametrize("name", sorted(set(dir(fx.GraphModule)) | set(keyword.kwlist)))
def test_a_name_that_is_taken_is_held_under_another(name: str) -> None:
    target = target_of(f"{name}.weight")
    assert target != f"{name}.weight"
    assert not hasattr(fx.GraphModule(nn.Module(), fx.Graph()), target.split(".")[0])


@pytest.mark.parametrize(
    "name", ["weight", "layer4.0.conv1.weight", "in_", "encoder.graph.meta", "a b", "0", "größe"]
)
def test_a_name_that_is_free_stays(name: str) -> None:
    assert target_of(name) == name == name_of(name)


def test_a_new_part_takes_no_name_that_is_there() -> None:
    module = nn.Module()
    module.register_buffer("kept", None)
    module.add_module("kept_", nn.Identity())
    assert free_name(module, "kept") == "kept__"
    assert free_name(module, "train") == "train_"
    assert free_name(module, "other") == "other"
