"""The dominator tree equals the one of networkx."""

from __future__ import annotations

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxelastic.passes.dominators import immediate_dominators


@st.composite
def graphs(draw: st.DrawFn) -> list[list[int]]:
    n = draw(st.integers(1, 40))
    return [[]] + [
        draw(st.lists(st.integers(0, i - 1), min_size=1, max_size=4, unique=True))
        for i in range(1, n)
    ]


def reference(predecessors: list[list[int]]) -> list[int]:
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(predecessors)))
    graph.add_edges_from((p, i) for i, ps in enumerate(predecessors) for p in ps)
    found = nx.immediate_dominators(graph, 0)
    return [0 if i == 0 else found[i] for i in range(len(predecessors))]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(graphs())
def test_equals_networkx(predecessors: list[list[int]]) -> None:
    assert immediate_dominators(predecessors) == reference(predecessors)


@pytest.mark.parametrize("n", [1, 2, 1000])
def test_chain_with_a_far_skip(n: int) -> None:
    chain = [[]] + [[i - 1] for i in range(1, n)]
    assert immediate_dominators([*chain, [0, n - 1]])[-1] == 0


def test_what_has_no_predecessor_hangs_on_the_root() -> None:
    assert immediate_dominators([[], [], [1], [0, 2]]) == [0, 0, 1, 0]
