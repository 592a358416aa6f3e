"""The golden text says what a partition is, the same in every process, and localises changes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fxelastic.api import partition
from fxelastic.ir import Block, Partition, Signature, trees
from fxelastic.ir.diff import TextDiff
from fxelastic.ir.fusion import FusionRules
from fxelastic.ir.table import block_table, percent
from fxelastic.ir.text import fold, to_text
from fxelastic.ir.values import Values
from fxelastic.spec.columns import engineering
from tests.ir.hand_written import convolutional, gated, relative_bias, tied

ROOT = Path(__file__).parents[2]

CONVOLUTIONAL = """\
fxelastic partition text, format 1
model       Net
gamma       0.6
parameters  288
cap         172
fusion      test
batch       dynamic
input       float32[2, 3, 8, 8] x
input       float32[2, 4, 1, 1] mask
result      float32[2, 5] from head

block mask
  kind        context
  params      0
  context     float32[2, 4, 1, 1] from input mask
  output      float32[2, 4, 1, 1]
  operators   1: rsub

block stem
  kind        basic
  params      116
  input       float32[2, 3, 8, 8] from input x
  output      float32[2, 4, 8, 8]
  operators   3: conv2d batch_norm relu

block body
  kind        basic
  params      152
  input       float32[2, 4, 8, 8] from stem
  output      float32[2, 4, 8, 8]
  operators   2: conv2d batch_norm

block join
  kind        glue
  params      0
  input       float32[2, 4, 8, 8] from body
  input       float32[2, 4, 8, 8] from stem
  output      float32[2, 4, 8, 8]
  operators   2: add relu

block head
  kind        basic
  params      20
  input       float32[2, 4, 8, 8] from join
  context     float32[2, 4, 1, 1] from mask
  output      float32[2, 5]
  operators   5: sym_size mul mean reshape linear
"""


def test_text_of_a_partition() -> None:
    assert to_text(replace(convolutional(), model_name="Net")) == CONVOLUTIONAL


def test_text_says_oversize_shared_soft_and_unused() -> None:
    text = to_text(replace(tied(), unused_params=("aux.weight", "aux.bias")))
    assert "  kind        oversize\n" in text
    assert "  reason      one operator\n" in text
    assert "  shared      w\n" in text
    assert text.endswith(
        "soft fusions\n"
        "  add-norm    sum add -> b layer_norm\n"
        "  add-norm: the add is glue\n"
        "\n"
        "unused parameters\n"
        "  aux.weight\n"
        "  aux.bias\n"
    )


def test_text_of_a_context_without_inputs_and_of_glue_with_parameters() -> None:
    assert "block bias\n  kind        context\n  params      12\n  output" in to_text(
        relative_bias()
    )
    assert "reason      one operator with parameters joins two streams" in to_text(gated())


def test_text_says_static_batch_and_opaque_modules_without_their_reasons() -> None:
    spoken = replace(convolutional(), dynamic_batch=False, opaque=(("odd.cell", "<at 0x7f12>"),))
    text = to_text(spoken)
    assert "\nbatch       static\n" in text
    assert "\nopaque      odd.cell\n" in text
    assert "0x" not in text


def test_text_hides_addresses_and_control_characters() -> None:
    block = replace(tied().blocks[0], reason="<function f at 0x7f3a1c2b4d60>\nsecond line")
    text = to_text(replace(tied(), blocks=(block, *tied().blocks[1:])))
    assert "7f3a1c2b4d60" not in text
    assert "<function f at 0x...>" in text
    assert all(re.match(r"\S|  \S|   +\S|$", line) for line in text.splitlines())


def test_reasons_name_operators_not_numbered_nodes() -> None:
    made = tied()
    block = replace(made.blocks[0], reason="added joins x with w.added and 3 added_17")
    text = to_text(replace(made, blocks=(block, *made.blocks[1:])))
    assert "reason      add joins x with w.added and 3 added_17\n" in text


def exported(model: nn.Module, batches: tuple[int, ...]) -> Partition:
    """All of a model as one block, with a symbolic size for each different batch."""
    args = tuple(torch.randn(batch, 6) for batch in batches)
    shapes = tuple({0: torch.export.Dim(f"batch{i}")} for i in range(len(batches)))
    program = torch.export.export(model.eval(), args, dynamic_shapes=(shapes,))
    nodes = list(program.graph.nodes)
    names = tuple(node.name for node in nodes if node.op == "call_function")
    inputs = tuple(node.name for node in nodes if node.op == "placeholder")
    results = Values(
        Partition(
            program.graph_module,
            (),
            1.0,
            Signature(trees.Leaf(), trees.Leaf(), inputs),
            FusionRules("none"),
        )
    ).results()
    block = Block("all", "basic", names, 0, inputs[0], results[0], inputs=inputs, outputs=results)
    return Partition(
        program.graph_module,
        (block,),
        1.0,
        Signature(trees.Leaf(), trees.Leaf(), inputs),
        FusionRules("none"),
    )


class Repeat(nn.Module):
    def forward(self, *xs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(x.repeat(3, 2).reshape(-1, 4) for x in xs)


def test_symbolic_batch_is_n() -> None:
    text = to_text(exported(Repeat(), (5,)))
    assert "input       float32[N, 6]" in text
    assert "output      float32[9*N, 4]" in text
    assert not re.search(r"\bs\d+", text)


def test_independent_symbolic_sizes_have_names_of_their_own() -> None:
    text = to_text(exported(Repeat(), (5, 7)))
    assert "input       float32[N, 6]" in text
    assert "input       float32[N1, 6]" in text
    assert "from all output 0" in text
    assert "from all output 1" in text


@pytest.mark.parametrize(
    ("names", "folded"),
    [
        ("", ""),
        ("a b c", "a b c"),
        ("a a a", "a*3"),
        ("a b a b c", "(a b)*2 c"),
        ("a b b a b b", "(a b*2)*2"),
        ("x a b a b a b y", "x (a b)*3 y"),
    ],
)
def test_fold(names: str, folded: str) -> None:
    assert " ".join(fold(names.split())) == folded


def unfold(text: str) -> list[str]:
    """Write every repetition out: the inverse of ``fold``, written without it."""
    tokens = re.findall(r"[()]|\*\d+|\w+", text)
    stack: list[list[str]] = [[]]
    last: list[str] = []
    for token in tokens:
        if token == "(":
            stack.append([])
        elif token == ")":
            last = stack.pop()
            stack[-1] += last
        elif token.startswith("*"):
            stack[-1] += last * (int(token[1:]) - 1)
        else:
            last = [token]
            stack[-1].append(token)
    return stack[0]


@given(st.lists(st.sampled_from("abc"), max_size=60))
def test_fold_loses_nothing(names: list[str]) -> None:
    assert unfold(" ".join(fold(names))) == names


def test_fold_of_a_long_chain_is_short() -> None:
    names = ["conv2d", "batch_norm", "relu"] * 5000
    assert list(fold(names)) == ["(conv2d batch_norm relu)*5000"]


class Chain(nn.Module):
    """Convolutions under names that do not shift when one is put in front of the others."""

    def __init__(self, names: str) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in self.children():
            x = module(x)
        return x


def test_a_new_layer_changes_only_its_own_lines_and_its_neighbours() -> None:
    """Symptom: one more layer and every line of the golden file differs."""
    x = torch.randn(2, 8, 16, 16)
    golden = to_text(partition(Chain("pqrstuv"), 0.17, x))
    actual = to_text(partition(Chain("panqrstuv"), 0.17, x))
    diff = TextDiff(golden, actual)
    assert diff.appeared == ("a", "n")
    assert diff.vanished == ()
    assert [change.key for change in diff.settings] == ["parameters", "cap"]
    assert [(change.name, change.key) for change in diff.changed] == [("q", "input")]


def test_table_has_a_line_for_each_block_and_totals() -> None:
    lines = block_table(replace(convolutional(), model_name="Net")).splitlines()
    assert lines[0].startswith("Net: 288 parameters (P0), gamma 0.6: at most 172 in a block")
    assert [line.split()[0] for line in lines[4:9]] == ["mask", "stem", "body", "join", "head"]
    assert "52.8" in lines[6]
    assert "joins body, stem" in lines[7]
    assert "reads mask" in lines[8]
    assert lines[10].split() == ["total", "288", "100.0", "-"]
    assert lines[-1] == (
        "5 blocks: 3 basic, 1 glue, 1 context; the largest is body with 52.8 % of the parameters"
    )


def test_table_columns_are_aligned() -> None:
    lines = block_table(convolutional()).splitlines()
    starts = {line.index(line.split()[1]) for line in lines[4:9]}
    assert starts == {lines[2].index("kind")}


def test_table_of_a_model_without_parameters() -> None:
    made = replace(convolutional(), blocks=(convolutional().blocks[0],))
    assert "1 block: 1 context" in block_table(made)


def test_str_of_a_partition_is_its_table() -> None:
    assert str(convolutional()) == block_table(convolutional())


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "-"), (999, "999"), (1000, "1.00 k"), (4_089_184_256, "4.09 G"), (12_345, "12.3 k"),
     (678_900_000, "679 M"), (1_500_000_000_000, "1.50 T")],
)  # fmt: skip
def test_engineering(count: int, text: str) -> None:
    assert engineering(count) == text


def test_percent() -> None:
    assert percent(1, 3) == "33.3"
    assert percent(0, 0) == "-"
