"""Branches of a decoder's layers: heads leave the cache with the branch that has them no more."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from fxelastic.errors import UsageError
from fxelastic.ir import trees
from fxelastic.ir.branch import Branch, cut_cache
from fxelastic.ir.supernet import Supernet
from fxelastic.spec import Arch
from tests.branches.pruning_oracle import PrunedBlock, pruned_block
from tests.decoders import DECODERS, cut, inputs_of, supernet_of

NAMES = tuple(DECODERS)


def kept(branch: Branch) -> dict[str, tuple[int, ...]]:
    return {part.past: part.kept for part in branch.spec.cache}


def alone(supernet: Supernet, branch: Branch) -> Arch:
    """The subnet of a branch and originals."""
    ids = [b.id for b in supernet.path() if not branch.start <= b.start < branch.stop]
    ids.insert(branch.start, branch.id)
    return Arch(tuple(ids))


@pytest.mark.parametrize("name", NAMES)
def test_each_kind_keeps_its_part_of_the_cache(name: str) -> None:
    branches = supernet_of(name).branches
    heads = DECODERS[name][1]
    block = next(b.start for b in branches.values() if b.kind == "pruned")
    whole, half = branches[f"original@{block}"], branches[f"pruned50@{block}"]
    assert kept(whole) == {}
    assert set(kept(half)) == {"past_0_0", "past_0_1"}
    assert len(set(kept(half).values())) == 1  # keys and values lose the same heads
    assert len(kept(half)["past_0_0"]) == heads // 2
    assert kept(branches[f"skip@{block}"]) == {"past_0_0": (), "past_0_1": ()}
    merged = branches[f"merged@{block}-{block + 2}"]
    assert kept(merged) == {"past_1_0": (), "past_1_1": ()}


@pytest.mark.parametrize("name", NAMES)
def test_a_pruned_layer_computes_the_whole_one_without_the_removed_heads(name: str) -> None:
    supernet = supernet_of(name)
    block = next(b.start for b in supernet.branches.values() if b.kind == "pruned")
    pruned = pruned_block(supernet.partition, block, 0.5)
    assert isinstance(pruned, PrunedBlock)
    branch = supernet.branches[f"pruned50@{block}"]
    values = supernet.bind((), inputs_of(name, 2, 3, 6, seed=2))
    with torch.no_grad():
        for original in supernet.path()[:block]:
            supernet.run_branch(original, values)
        operands = [values[n] for n in (*pruned.copied.inputs, *pruned.copied.context)]
        expected = dict(zip(branch.outputs, pruned.masked(operands), strict=True))
        supernet.run_branch(branch, values)
    for part in branch.spec.cache:
        expected[part.present] = cut_cache(expected[part.present], part)
    for n, value in expected.items():
        torch.testing.assert_close(values[n], value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["pruned25", "pruned50", "skip", "merged"])
def test_tokens_one_by_one_give_what_they_give_at_once(name: str, kind: str) -> None:
    supernet = supernet_of(name)
    branch = next(b for b in supernet.branches.values() if b.id.startswith(f"{kind}@"))
    run = partial(supernet, arch=alone(supernet, branch))
    inputs = inputs_of(name, 2, 5, 0)
    past = cut(inputs["past"], run.keywords["arch"], supernet)
    with torch.no_grad():
        expected, tree = trees.flatten(run(**{**inputs, "past": past}))
        logits = []
        for i in range(5):
            step = {**inputs, "ids": inputs["ids"][:, i : i + 1], "past": past}
            if "mask" in inputs:
                step["mask"] = inputs["mask"][:, : i + 1]
            found, past = run(**step)
            logits.append(found)
    found, same = trees.flatten((torch.cat(logits, 1), past))
    assert same == tree
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_subnets_have_the_same_cache_or_refuse_each_others(name: str) -> None:
    supernet = supernet_of(name)
    space, inputs = supernet.space, inputs_of(name)
    branches = supernet.branches.values()
    skip, half = (next(b for b in branches if b.id.startswith(k)) for k in ("skip", "pruned50"))
    one, other = alone(supernet, skip), alone(supernet, half)
    assert space.same_cache(one, one)
    assert not space.same_cache(one, other)
    assert not space.same_cache(space.original, other)
    with pytest.raises(UsageError, match="input 'past_0_0' has another shape"):
        supernet(**inputs, arch=other)
    with pytest.raises(UsageError, match="input 'past_0_0' has another shape"):
        supernet.subnet(other)(**inputs)
    past = cut(inputs["past"], other, supernet)
    with torch.no_grad():
        expected = supernet(**{**inputs, "past": past}, arch=other)[0]
        assert torch.equal(supernet.subnet(other)(**{**inputs, "past": past})[0], expected)
