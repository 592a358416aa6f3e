"""Scores of many subnets: the right ones, and each common beginning computed once."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic import Supernet, UsageError
from fxelastic.spec import Arch
from fxelastic.train import accuracy, range_accuracy
from fxelastic.train.evaluation import Prefix, subnet_scores
from fxelastic.train.losses import soft_cross_entropy
from fxelastic.train.norm_statistics import _surely_less
from fxelastic.train.sampling import flops_of
from tests.train.supernets import (
    conv_supernet,
    image_batches,
    linear_supernet,
    moved,
    vector_batches,
    weights,
)


def counted(supernet: Supernet) -> dict[str, int]:
    """How often each branch runs from now on."""
    runs = dict.fromkeys(supernet.branches, 0)

    def count(name: str) -> Any:
        def hook(*_: Any) -> None:
            runs[name] += 1

        return hook

    for name, branch in supernet.branches.items():
        branch.module.register_forward_hook(count(name))
    return runs


def test_scores_are_those_of_each_subnet_alone() -> None:
    supernet = linear_supernet()
    data = [*vector_batches(3), vector_batches(1, size=5)[0]]
    archs = supernet.space.sample(12, seed=1)
    scores = fxelastic.evaluate(supernet, archs, data)
    assert list(scores) == list(dict.fromkeys(archs))
    assert len(set(scores.values())) > 3
    for arch, score in scores.items():
        with torch.no_grad():
            right = sum(int((supernet(x, arch=arch).argmax(1) == y).sum()) for x, y in data)
        assert score == pytest.approx(right / 29)


def test_scores_of_subnets_are_in_their_order() -> None:
    """Symptom: a stage of several subnets ended by the score of the largest, not the last one."""
    supernet = linear_supernet()
    flops = flops_of(supernet.space)
    costs = {arch: sum(flops[name] for name in arch) for arch in supernet.space.sample(4, seed=1)}
    archs = sorted(costs, key=costs.__getitem__, reverse=True)
    ranges = subnet_scores(supernet, archs, vector_batches(3))
    scores = fxelastic.evaluate(supernet, archs, vector_batches(3))
    assert [bucket.mean for bucket in ranges] == [scores[arch] for arch in archs]
    assert [bucket.low for bucket in ranges] == [costs[arch] for arch in archs]


def test_common_beginnings_are_computed_once_for_each_batch() -> None:
    supernet = conv_supernet()
    archs = supernet.space.sample(12, seed=1)
    runs = counted(supernet)
    fxelastic.evaluate(supernet, archs, image_batches(2))
    prefixes = {arch.branches[:n] for arch in archs for n in range(1, len(arch) + 1)}
    assert sum(runs.values()) == 2 * len(prefixes) == 2 * len(Prefix.tree(archs))
    assert len(prefixes) < sum(len(arch) for arch in set(archs))


def test_evaluation_changes_nothing() -> None:
    supernet = conv_supernet(dropout=0.5)
    before = weights(supernet)
    first = fxelastic.evaluate(supernet, supernet.space.sample(5), image_batches(2))
    assert fxelastic.evaluate(supernet, supernet.space.sample(5), image_batches(2)) == first
    assert not moved(before, supernet)


def test_the_metric_may_be_ones_own() -> None:
    supernet = conv_supernet()
    arch = supernet.space.original

    def metric(output: Tensor, target: Tensor) -> float:
        return -float((output**2).mean())

    data = image_batches(2)
    scores = fxelastic.evaluate(supernet, [arch], data, metric=metric)
    with torch.no_grad():
        expected = -sum(float((supernet(x) ** 2).mean()) for x, _ in data) / 2
    assert scores[arch] == pytest.approx(expected, rel=1e-5)


def test_bad_calls_are_refused() -> None:
    supernet = conv_supernet()
    with pytest.raises(UsageError, match="archs is empty"):
        fxelastic.evaluate(supernet, [], image_batches(1))
    with pytest.raises(UsageError, match="there is no branch 'other@0'"):
        fxelastic.evaluate(supernet, [Arch(("other@0",))], image_batches(1))
    with pytest.raises(UsageError, match="yields no batch"):
        fxelastic.evaluate(supernet, [supernet.space.original], [])


def test_accuracy_leaves_out_what_is_ignored() -> None:
    logits = torch.eye(4)[None].expand(2, 4, 4)  # (N, C, L): class i at position i.
    target = torch.tensor([[0, 1, 2, 3], [0, 0, -100, -100]])
    assert accuracy(logits, target) == pytest.approx(5 / 6)
    assert accuracy(logits, torch.full((2, 4), -100)) == 0
    assert accuracy({"logits": logits}, target) == accuracy((logits,), target)
    with pytest.raises(UsageError, match="no logits were found"):
        accuracy((logits, logits), target)


def test_ranges_cover_all_costs_and_hold_their_subnets() -> None:
    supernet = linear_supernet()
    data = [(torch.randn(16, 8), torch.randint(0, 4, (16,)))]
    buckets = range_accuracy(supernet, data, n_buckets=4, n_subnets=6)
    costs = flops_of(supernet.space)
    ends = [supernet.space.cost(f(costs), costs) for f in _extremes(supernet)]
    assert [buckets[0].low, buckets[-1].high] == ends
    assert all(a.high == b.low for a, b in pairwise(buckets))
    for i, bucket in enumerate(buckets):
        window = supernet.space.sample_within(6, costs, bucket.low, bucket.high, seed=i)
        scores = fxelastic.evaluate(supernet, window, data).values()
        assert bucket.n == len(scores)
        assert bucket.mean == pytest.approx(sum(scores) / len(scores))
        assert bucket.best == max(scores)


def _extremes(supernet: Supernet) -> tuple[Any, Any]:
    return supernet.space.min_cost_arch, supernet.space.max_cost_arch


def test_a_range_without_a_subnet_is_empty() -> None:
    supernet = linear_supernet()
    costs = {spec.id: 0.0 if spec.kind == "original" else 1e-6 for spec in supernet.space.branches}
    costs["original@0"] = 100.0
    data = [(torch.randn(4, 8), torch.randint(0, 4, (4,)))]
    buckets = range_accuracy(supernet, data, costs=costs, n_buckets=3)
    assert [bucket.n > 0 for bucket in buckets] == [True, False, True]
    assert buckets[1].mean is None


class TestRecalibration:
    def test_statistics_become_those_of_the_data_in_this_subnet(self) -> None:
        supernet = conv_supernet()
        arch = Arch(("original@0", "student@1-3", "student@3", "original@4"))
        data = [x for x, _ in image_batches(3)]
        before = weights(supernet)
        assert fxelastic.recalibrate(supernet, arch, data, compare=False) == 2
        changed = {n for n, v in before.items() if not torch.equal(v, weights(supernet)[n])}
        assert {name.partition("/")[0] for name in changed} == {"student@1-3", "student@3"}
        assert {name.rpartition(".")[2] for name in changed} == {
            "running_mean",
            "running_var",
            "num_batches_tracked",
        }
        norm: Any = supernet.branches["student@3"].module.get_submodule("heads.0.layer.1")
        inputs: list[Tensor] = []
        handle = norm.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        norm.train()
        first: Any = supernet.branches["student@1-3"].module.get_submodule("heads.0.layer.1")
        first.train()
        with torch.no_grad():
            for x in data:
                supernet(x, arch=arch)
        handle.remove()
        supernet.eval()
        means = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
        fxelastic.recalibrate(supernet, arch, data, compare=False)
        torch.testing.assert_close(norm.running_mean, means, rtol=1e-4, atol=1e-5)
        assert norm.momentum == nn.BatchNorm2d(1).momentum
        assert not norm.training

    def test_it_stops_after_enough_samples(self) -> None:
        supernet = conv_supernet()
        arch = supernet.space.min_cost_arch(flops_of(supernet.space))
        runs = counted(supernet)
        fxelastic.recalibrate(supernet, arch, image_batches(10), n_samples=20, compare=False)
        assert runs[arch.branches[0]] == math.ceil(20 / 8)

    def test_statistics_that_are_better_stay(self) -> None:
        """Three samples of another distribution tell less than what training has seen."""
        supernet = conv_supernet()
        data = image_batches(8, seed=3)
        fxelastic.distill(supernet, data, epochs=10, lr=0.02)
        arch = Arch(("student@0", "student@1", "student@2", "original@3", "original@4"))
        few = [torch.cat([x for x, _ in data])[:3]]

        def error() -> float:
            with torch.no_grad():
                found, wanted = supernet(few[0], arch=arch), supernet(few[0])
            return float(soft_cross_entropy(found, wanted))

        before = error()
        fxelastic.recalibrate(supernet, arch, few)
        assert error() <= before + 1e-7

    def test_a_gain_that_may_be_chance_is_none(self) -> None:
        before = torch.tensor([1.0, 2.0, 3.0, 4.0])
        assert _surely_less(before - 0.1, before)
        assert not _surely_less(before - torch.tensor([1.0, -0.8, 0.3, -0.2]), before)
        assert _surely_less(torch.tensor([0.9]), torch.tensor([1.0]))
        assert not _surely_less(torch.tensor([1.1]), torch.tensor([1.0]))

    def test_originals_need_none(self) -> None:
        supernet = conv_supernet()
        before = weights(supernet)
        assert fxelastic.recalibrate(supernet, supernet.space.original, image_batches(1)) == 0
        assert not moved(before, supernet)

    def test_it_mends_statistics_that_are_wrong(self) -> None:
        supernet = conv_supernet()
        data = image_batches(8, seed=3)
        fxelastic.distill(
            supernet, data, epochs=10, lr=0.02, norm_statistics="batch", keep_best=False
        )
        arch = Arch(("student@0", "student@1", "student@2", "original@3", "original@4"))

        def error() -> float:
            x = torch.cat([x for x, _ in data])
            with torch.no_grad():
                return float((supernet(x, arch=arch) - supernet(x)).square().mean())

        good = error()
        for name in arch.branches[:3]:
            norm: Any = supernet.branches[name].module.get_submodule("heads.0.layer.1")
            norm.running_mean.add_(1)
        assert error() > 2 * good
        fxelastic.recalibrate(supernet, arch, data)
        assert error() < 1.5 * good
