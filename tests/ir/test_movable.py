"""Operators that name a device follow the weights to another one.

`tests/branches/test_new_branches.py` has every branch compute there.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxelastic.ir.operators import operator_name
from tests.branches.elsewhere import graphs, named
from tests.branches.expanded import expanded
from tests.models.compare import assert_same_output


def test_some_models_name_a_device() -> None:
    """Or the test above would show nothing."""
    assert named(expanded("gpt2", kinds=()).supernet.partition.graph_module) == {
        torch.device("cpu")
    }


@pytest.mark.parametrize("what", ["supernet", "subnet", "copy"])
def test_what_is_moved_moves_its_operators(what: str) -> None:
    found = expanded("gpt2")
    supernet, args = found.supernet, found.case.inputs(2)[0]
    moved = {
        "supernet": lambda: supernet,
        "subnet": lambda: supernet.subnet(supernet.space.sample(1, seed=0)[0]),
        "copy": lambda: copy.deepcopy(supernet),
    }[what]()
    before = {device for graph in graphs(moved) for device in named(graph)}
    assert before == {torch.device("cpu")}
    moved.to("meta")
    after = {device for graph in graphs(moved) for device in named(graph)}
    assert after == {torch.device("meta")}
    with torch.no_grad():
        result = moved(*(arg.to("meta") for arg in args))
    assert {leaf.device.type for leaf in pytree.tree_leaves(result)} == {"meta"}
    if what != "supernet":
        with torch.no_grad():
            assert_same_output(supernet(*args), found.model(*args))


def test_views_become_reshapes() -> None:
    """Strides differ from device to device: those of attention on a GPU allow no view."""
    subnet = expanded("vit", kinds=()).supernet.subnet()
    counted = [count(subnet, name) for name in ("view", "reshape")]
    assert counted[0] > 0
    subnet.to("meta")
    assert [count(subnet, name) for name in ("view", "reshape")] == [0, sum(counted)]


def count(module: nn.Module, name: str) -> int:
    return sum(operator_name(n) == f"aten.{name}" for g in graphs(module) for n in g.graph.nodes)


def test_another_dtype_leaves_the_graph_as_it_is() -> None:
    supernet = expanded("gpt2", kinds=()).supernet
    codes = [graph.code for graph in graphs(supernet)]
    supernet.double()
    assert [graph.code for graph in graphs(supernet)] == codes
