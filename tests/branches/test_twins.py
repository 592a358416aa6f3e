"""Branches that are the same, bit for bit, are in a supernet once; the others are listed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxelastic
from fxelastic import Partition, Supernet
from fxelastic.branches import branch_kind, registry
from fxelastic.branches.trainable import trainable
from fxelastic.branches.twins import without_twins
from fxelastic.ir.branch import Branch, Refusal
from fxelastic.spec import BranchSpec, branch_id


class Unit(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16)
        self.enter, self.leave = nn.Linear(16, hidden), nn.Linear(hidden, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.leave(self.enter(self.norm(x)).relu())


def network(hidden: int = 24) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Unit(hidden), Unit(hidden), nn.Linear(16, 4)).eval()


X = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))


def expanded(hidden: int = 24, **options: Any) -> Supernet:
    options = {"kinds": ("merged", "pruned", "skip"), **options}
    return fxelastic.expand(network(hidden), 0.5, example_inputs=X, **options)


def of_kind(supernet: Supernet, kind: str) -> list[str]:
    return [branch.id for branch in supernet.branches.values() if branch.kind == kind]


def twins(supernet: Supernet) -> list[str]:
    return [skip.reason for skip in supernet.skips if "bit for bit" in skip.reason]


@pytest.mark.parametrize(
    ("hidden", "ratios", "left"),
    [
        (24, (0.25, 0.5), 1),  # 16 of 24 stay at either
        (12, (0.25, 0.5), 1),  # 8 of 12
        (32, (0.25, 0.5), 2),
        (32, (0.25, 0.26, 0.3, 0.5), 2),
        (24, (0.5, 0.25), 1),
    ],
)
def test_ratios_that_round_to_the_same_channels_are_one_branch(
    hidden: int, ratios: tuple[float, ...], left: int
) -> None:
    supernet = expanded(hidden, prune=ratios)
    found = of_kind(supernet, "pruned")
    assert len(found) == 2 * left
    assert found[0] == f"pruned{100 * ratios[0]:g}@0"
    assert len(twins(supernet)) == 2 * (len(ratios) - left)


def test_twins_are_listed_with_the_branch_that_they_equal() -> None:
    supernet = expanded()
    assert twins(supernet) == [
        f"pruned50@{i} is the same as pruned25@{i}, bit for bit" for i in (0, 1)
    ]
    assert "2 × pruned: pruned50 is the same as pruned25, bit for bit" in str(supernet)


def test_calibration_begins_with_one_of_the_twins() -> None:
    supernet = expanded(calibration=X)
    assert of_kind(supernet, "pruned") == ["pruned25@0", "pruned25@1"]


class Plain(nn.Module):
    """A module of another package: no graph."""

    def __init__(self, factor: float = 0.5, mode: Any = "sum") -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.register_buffer("offset", torch.ones(16))
        self.factor, self.mode = factor, mode

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x) * self.factor + self.offset
        return x


class Other(Plain):
    pass


def with_weight(module: nn.Module, name: str = "layers.0.weight") -> nn.Module:
    with torch.no_grad():
        module.get_parameter(name)[0, 0] += 1e-3
    return module


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda *_: None)
    return module


def graph(change: Callable[[fx.GraphModule], None] = lambda _: None) -> nn.Module:
    torch.manual_seed(3)
    traced = fx.symbolic_trace(nn.Sequential(nn.Linear(16, 16), nn.ReLU()))
    change(traced)
    return traced


def doubled(traced: fx.GraphModule) -> None:
    (output,) = (node for node in traced.graph.nodes if node.op == "output")
    with traced.graph.inserting_before(output):
        output.args = (traced.graph.call_function(torch.add, (output.args[0], output.args[0])),)
    traced.recompile()


def renamed(traced: fx.GraphModule) -> None:
    traced.add_module("other", traced.get_submodule("0"))
    for node in traced.graph.nodes:
        node.target = "other" if node.target == "0" else node.target
    traced.delete_all_unused_submodules()
    traced.recompile()


def returning() -> nn.Module:
    made = fx.Graph()
    x = made.placeholder("x")
    made.output(made.call_function(torch.ops.aten.clone.default, (x,)))
    return fx.GraphModule(nn.Module(), made)


SAME = {
    "plain": (Plain, Plain),
    "frozen": (lambda: frozen(Plain()), lambda: frozen(Plain())),
    "graph": (graph, graph),
    "graph, other names": (graph, lambda: graph(renamed)),
    "identities": (nn.Identity, returning),
}
DIFFERENT = {
    "weight": (Plain, lambda: with_weight(Plain())),
    "class": (Plain, Other),
    "attribute": (Plain, lambda: Plain(0.25)),
    "type of an attribute": (lambda: Plain(1.0), lambda: Plain(1)),
    "attribute that can't be compared": (lambda: Plain(mode={1}), lambda: Plain(mode={1})),
    "what learns": (Plain, lambda: frozen(Plain())),
    "hook": (lambda: hooked(Plain()), lambda: hooked(Plain())),
    "operators": (graph, lambda: graph(doubled)),
    "kind of module": (graph, lambda: nn.Sequential(nn.Linear(16, 16), nn.ReLU())),
}
PAIRS = [pytest.param(*pair, True, id=name) for name, pair in SAME.items()]
PAIRS += [pytest.param(*pair, False, id=name) for name, pair in DIFFERENT.items()]


def branches(*modules: nn.Module, start: int = 0) -> list[Branch]:
    return [
        Branch(BranchSpec(f"k{i}@{start}", f"k{i}", start, start + 1, 0, 0), module, ("x",), ("y",))
        for i, module in enumerate(modules)
    ]


@pytest.mark.parametrize(("first", "second", "same"), PAIRS)
def test_only_what_is_surely_the_same_is_dropped(
    first: Callable[[], nn.Module], second: Callable[[], nn.Module], same: bool
) -> None:
    given = branches(first(), second())
    kept, skips = without_twins(given)
    assert kept == given[: 1 if same else 2]
    wanted = Refusal("k1@0 is the same as k0@0, bit for bit", "k1", 0, 1)
    assert skips == ([wanted] if same else [])


def test_branches_of_other_intervals_or_values_are_not_twins() -> None:
    one, other = branches(graph(), graph())
    assert len(without_twins([one, *branches(graph(), start=1)])[0]) == 2
    assert len(without_twins([one, replace(other, inputs=("z",))])[0]) == 2
    assert len(without_twins([one, replace(other, outputs=("z",))])[0]) == 2
    assert len(without_twins([one, replace(other, inputs=(), context=("x",))])[0]) == 1


@dataclass(frozen=True)
class Copies:
    """For tests: a kind that makes what the other kinds make, and a copy of each block."""

    def make(self, partition: Partition, seed: int = 0) -> Iterator[Branch | Refusal]:
        for kind in ("merged", "pruned", "skip"):
            for made in branch_kind(kind)().make(partition, seed):
                if isinstance(made, Branch):
                    yield _again(made, copy.deepcopy(made.module))
        for i, block in enumerate(partition.blocks):
            copied = trainable(partition, i, i + 1)
            spec = BranchSpec(branch_id("copied", i, i + 1), "copied", i, i + 1, block.n_params, 1)
            yield Branch(spec, copied.module, copied.inputs, copied.outputs, copied.context)


def _again(branch: Branch, module: nn.Module) -> Branch:
    name = branch.id.replace(branch.kind, "copied", 1)
    return replace(branch, module=module, spec=replace(branch.spec, id=name, kind="copied"))


def test_twins_of_another_packages_kind_are_dropped_across_kinds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A copy of a block that learns is none of its frozen original; all others are twins."""
    entry = EntryPoint("copied", f"{__name__}:Copies", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])
    supernet = expanded(kinds=("merged", "pruned", "skip", "copied"))
    n = len(supernet.partition.blocks)
    assert of_kind(supernet, "copied") == [f"copied@{i}" for i in range(n)]
    made = expanded()
    assert {k: of_kind(supernet, k) for k in ("merged", "pruned", "skip")} == {
        k: of_kind(made, k) for k in ("merged", "pruned", "skip")
    }
    again = [reason for reason in twins(supernet) if reason.startswith("copied")]
    assert len(again) == len(made.branches) - n + 2  # of both ratios
