"""Supernets that are not larger than a multiple of their model."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import fxelastic
from fxelastic import Supernet, UsageError, kinds
from fxelastic.branches import DEFAULT_KINDS
from fxelastic.branches.size_limit import within_size
from fxelastic.ir.branch import Branch
from fxelastic.spec import BranchSpec

X = torch.zeros(2, 4, 8, 8)


class Unit(nn.Module):
    """A residual unit with an inner width of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(4, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 4, 3, padding=1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.layers(x))


@cache
def expand(**options: Any) -> Supernet:
    """A supernet that no test changes."""
    torch.manual_seed(0)
    model = nn.Sequential(*(Unit(16) for _ in range(6)))
    return fxelastic.expand(model, 0.2, example_inputs=X, **options)


def size(supernet: Supernet) -> float:
    own = sum(p.numel() for p in supernet.parameters())
    return own / supernet.partition.n_params


def left_out(supernet: Supernet) -> list[str]:
    return [skip.reason.split(":")[0] for skip in supernet.skips if "max_size" in skip.reason]


@pytest.mark.parametrize("max_size", [1, 1.3, 2, 2.5, 3])
def test_the_supernet_is_at_most_as_large(max_size: float) -> None:
    everything = expand(kinds=DEFAULT_KINDS)
    assert size(everything) > 3
    branches, n_params = list(everything.branches.values()), everything.partition.n_params
    kept, refusals = within_size(branches, n_params, max_size)
    supernet = Supernet(everything.partition, kept)
    assert size(supernet) <= max_size
    assert kept == [branch for branch in branches if branch in kept]
    # No branch that was left out would have fitted.
    out = {refusal.reason.split(":")[0] for refusal in refusals}
    assert out == set(everything.branches) - set(supernet.branches)
    smallest = min(everything.branches[name].n_params for name in out)
    assert size(supernet) + smallest / n_params > max_size


def test_a_size_that_all_branches_keep_changes_nothing() -> None:
    branches = list(expand(kinds=DEFAULT_KINDS).branches.values())
    assert within_size(branches, expand(kinds=DEFAULT_KINDS).partition.n_params, 9) == (
        branches,
        [],
    )


def test_by_default_it_is_twice_the_model() -> None:
    supernet = expand()
    assert 1.8 < size(supernet) <= 2
    assert list(supernet.branches) == list(expand(kinds=DEFAULT_KINDS, max_size=2).branches)
    assert 2.5 < size(expand(max_size=2.8)) <= 2.8


def test_others_beside_the_default_kinds_keep_to_it_too() -> None:
    supernet = expand(kinds=("default", kinds.Exit(every=2)))
    named = expand(kinds=(*DEFAULT_KINDS, kinds.Exit(every=2)), max_size=2)
    assert list(supernet.branches) == list(named.branches)
    assert "exit" in {branch.kind for branch in supernet.branches.values()}
    assert list(expand(kinds=("default",)).branches) == list(expand().branches)


def test_all_kinds_are_there_and_all_blocks_have_branches() -> None:
    supernet = expand()
    new = [branch for branch in supernet.branches.values() if branch.kind != "original"]
    assert {branch.kind for branch in new} == set(DEFAULT_KINDS)
    trained = [branch for branch in new if branch.n_params]
    for i in range(len(supernet.partition.blocks)):
        assert any(branch.start <= i < branch.stop for branch in trained)


def test_branches_without_weights_stay() -> None:
    supernet = expand(max_size=1)
    kept = {branch.kind for branch in supernet.branches.values()}
    assert kept == {"original", "skip"}


def test_the_reason_is_told() -> None:
    supernet = expand()
    assert "the supernet would have more than 2 times the model's parameters" in str(supernet)


def test_weights_that_branches_share_count_once() -> None:
    ranks = kinds.LowRank(ranks=(0.5, 0.4, 0.3, 0.2))
    supernet = expand(kinds=(ranks,))
    limited = expand(kinds=(ranks,), max_size=size(supernet))
    assert sum(branch.n_params for branch in supernet.branches.values()) > (
        1.2 * sum(p.numel() for p in supernet.parameters())
    )
    assert list(limited.branches) == list(supernet.branches)


def branch(name: str, start: int, stop: int, n_params: int, flops: int) -> Branch:
    kind = name.split("@")[0]
    module = nn.Module()
    module.weight = nn.Parameter(torch.zeros(n_params))
    return Branch(BranchSpec(name, kind, start, stop, n_params, flops), module, ("x",), ("y",))


def chosen(branches: list[Branch], n_more: int) -> set[str]:
    originals = [branch(f"original@{i}", i, i + 1, 10, 100) for i in range(3)]
    kept, refusals = within_size([*originals, *branches], 30, 1 + n_more / 30)
    assert len(kept) + len(refusals) == 3 + len(branches)
    return {b.id for b in kept} - {b.id for b in originals}


def test_the_kind_with_fewest_parameters_comes_next() -> None:
    branches = [
        branch("a@0", 0, 1, 5, 10),
        branch("a@1", 1, 2, 5, 10),
        branch("b@0", 0, 1, 5, 90),
        branch("b@1", 1, 2, 5, 90),
    ]
    assert chosen(branches, 10) == {"a@0", "b@0"}


def test_the_branch_that_saves_most_for_its_parameters_comes_first() -> None:
    branches = [
        branch("a@0", 0, 1, 5, 50),  # 10 for each
        branch("a@1", 1, 2, 5, 40),  # 12
        branch("a@2", 2, 3, 10, 0),  # 10
    ]
    assert chosen(branches, 5) == {"a@1"}


def test_blocks_without_a_branch_go_first() -> None:
    branches = [
        branch("a@0", 0, 1, 5, 10),  # 18 for each parameter
        branch("a@0-1", 0, 1, 5, 20),  # 16, which count half
        branch("a@1", 1, 2, 5, 50),  # 10
    ]
    assert chosen(branches, 10) == {"a@0", "a@1"}


def test_a_smaller_branch_takes_what_is_left() -> None:
    branches = [branch("a@0", 0, 1, 20, 0), branch("a@1", 1, 2, 5, 99)]
    assert chosen(branches, 19) == {"a@1"}


@pytest.mark.parametrize("bad", [0.99, -1, 0, True, "2", float("nan"), float("inf")])
def test_bad_sizes_are_refused(bad: Any) -> None:
    with pytest.raises(UsageError, match="max_size must be at least 1, got"):
        expand.__wrapped__(max_size=bad)
