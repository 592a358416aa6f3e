"""The Graphviz source is well formed, complete, and the same every time."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import networkx
import pytest

from fxelastic.ir import Partition
from fxelastic.ir.graphs import COLOURS, to_dot, to_networkx
from tests.ir.hand_written import convolutional, gated, relative_bias, tied

# The part of the DOT language that is used. A quoted string ends at the first quote that no
# backslash is in front of.
TOKEN = re.compile(r'\s+|"(?:[^"\\]|\\.)*"|->|[{}\[\];=,]|\w+')
ID = r'(?:"\S*"|\w+)'
ATTRIBUTES = rf"\[ {ID} = {ID}(?: , {ID} = {ID})* \]"
GRAPH = re.compile(rf"digraph {ID} \{{(?: {ID}(?: -> {ID})? {ATTRIBUTES} ;)* \}}")


def tokens(dot: str) -> list[str]:
    """The tokens of DOT source, without the blanks in strings; anything else fails."""
    found: list[str] = []
    position = 0
    while position < len(dot):
        match = TOKEN.match(dot, position)
        assert match, f"not DOT at {dot[position : position + 40]!r}"
        if match[0].strip():
            found.append(re.sub(r"\s", "_", match[0]))
        position = match.end()
    assert GRAPH.fullmatch(" ".join(found)), "not a DOT graph"
    return found


@pytest.mark.parametrize("make", [convolutional, gated, relative_bias, tied])
def test_dot_is_well_formed(make: Callable[[], Partition]) -> None:
    assert tokens(to_dot(make()))[0] == "digraph"


@pytest.mark.parametrize(
    "wrong",
    [
        'digraph "a" { "b [label="c"]; }',
        'digraph "a" { "b" [label="c"d"e"]; }',
        'digraph "a" { "b" [label="c\\"]; }',
        'digraph "a" { "b" [label="c"]; ',
        'digraph "a" { "b" -> [label="c"]; }',
    ],
)
def test_the_check_fails_on_what_is_no_graph(wrong: str) -> None:
    with pytest.raises(AssertionError, match="not "):
        tokens(wrong)


def test_dot_has_blocks_edges_shapes_and_kinds() -> None:
    dot = to_dot(replace(convolutional(), model_name="Net"))
    assert dot.startswith('digraph "Net" {')
    assert f'"block join" [label="join\\nglue", fillcolor="{COLOURS["glue"]}"];' in dot
    assert f'"block stem" [label="stem\\n116 (40.3 %)", fillcolor="{COLOURS["basic"]}"];' in dot
    assert '"input x" -> "block stem" [label="[2, 3, 8, 8]"];' in dot
    assert '"block stem" -> "block join" [label="[2, 4, 8, 8]"];' in dot
    assert '"block mask" -> "block head" [label="[2, 4, 1, 1]", style="dashed"];' in dot
    assert '"input mask" -> "block mask" [label="[2, 4, 1, 1]", style="dashed"];' in dot
    assert '"block head" -> "result" [label="[2, 5]"];' in dot


def with_name(name: str) -> Partition:
    made = tied()
    return replace(made, blocks=(replace(made.blocks[0], name=name), *made.blocks[1:]))


@pytest.mark.parametrize("name", ['a"b', "back\\slash", "new\nline", 'end\\"', "<b>", "ümläut"])
def test_dot_escapes_names(name: str) -> None:
    words = tokens(to_dot(with_name(name)))
    assert words.count("->") == to_dot(tied()).count("->")


def test_dot_does_not_confuse_a_block_with_an_input_of_its_name() -> None:
    dot = to_dot(with_name("x"))
    assert '"input x" -> "block x"' in dot


def test_dot_is_the_same_every_time() -> None:
    assert to_dot(convolutional()) == to_dot(convolutional())
    assert convolutional().to_dot() == to_dot(convolutional())


def test_the_graph_has_blocks_as_nodes_with_their_facts_and_values_as_edges() -> None:
    partition = convolutional()
    graph = partition.to_networkx()
    blocks = [node for node in graph.nodes if isinstance(node, int)]
    assert blocks == list(range(len(partition.blocks)))
    for i, block in enumerate(partition.blocks):
        facts = graph.nodes[i]
        assert (facts["name"], facts["kind"], facts["n_params"]) == (
            block.name,
            block.kind,
            block.n_params,
        )
    assert sum(graph.nodes[i]["share"] for i in blocks) == pytest.approx(1)
    named = {
        (graph.nodes[a]["name"], graph.nodes[b]["name"]): facts
        for a, b, facts in graph.edges(data=True)
    }
    assert named["mask", "head"]["context"] is True
    assert named["stem", "join"]["shape"] == "[2, 4, 8, 8]"
    assert graph.nodes["input x"]["kind"] == "input"
    assert ("head", "result") in named
    assert networkx.is_directed_acyclic_graph(graph)


@pytest.mark.parametrize("make", [convolutional, gated, relative_bias, tied])
def test_the_graph_has_every_value_that_a_block_reads(make: Callable[[], Partition]) -> None:
    partition = make()
    graph = to_networkx(partition)
    for i, block in enumerate(partition.blocks):
        read = {name for _, _, name in graph.in_edges(i, keys=True)}
        assert read == {*block.inputs, *block.context}


def test_the_graph_can_be_written_as_graphml() -> None:
    lines = list(networkx.generate_graphml(convolutional().to_networkx()))
    assert any("n_params" in line for line in lines)
