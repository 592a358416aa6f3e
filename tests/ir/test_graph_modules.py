"""Operators that name a device follow the weights to another one.

`tests/branches/test_new_branches.py` has every branch compute there.
"""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
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
    supernet = expanded("vit", kinds=()).supernet
    counted = Counter(operator_name(node) for node in supernet.partition.graph.nodes)
    assert counted["aten.view"] > 0
    for module in (supernet, supernet.subnet()):
        found = Counter(operator_name(node) for g in graphs(module) for node in g.graph.nodes)
        assert found["aten.view"] == 0
        assert found["aten.reshape"] == counted["aten.view"] + counted["aten.reshape"]


def test_another_dtype_leaves_the_graph_as_it_is() -> None:
    supernet = expanded("gpt2", kinds=()).supernet
    codes = [graph.code for graph in graphs(supernet)]
    supernet.double()
    assert [graph.code for graph in graphs(supernet)] == codes
