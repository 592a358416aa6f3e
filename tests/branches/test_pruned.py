"""Pruned branches: exact before training, of the size asked for, refused with reasons."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic.branches.interval import Interval, NoBranchError
from fxelastic.branches.pruned import Pruned, prunable
from fxelastic.branches.pruning.selection import groups, kept
from fxelastic.errors import UsageError
from fxelastic.ir.branch import Branch, Refusal
from fxelastic.ir.liveness import Liveness
from fxelastic.ir.partition import Partition
from tests.branches.expanded import LARGE, NAMES, Expanded, over_shared_capture, shared
from tests.branches.pruning_oracle import PrunedBlock, pruned_block
from tests.models.captured import partitioned

RATIOS = (0.25, 0.5)


@pytest.fixture(
    scope="module",
    # The group of `test_new_branches`, which has expanded the model.
    params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in NAMES],
)
def case(request: pytest.FixtureRequest) -> Iterator[Expanded]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield shared(request.param)
    torch.set_num_threads(n_threads)


def test_removal_is_exact(case: Expanded) -> None:
    """Every block and ratio, at two batch sizes; of the published sizes every third block."""
    partition, large = case.supernet.partition, case.case.name in LARGE
    pruned = [
        found
        for i in _replaceable(partition)[:: 3 if large else 1]
        for ratio in RATIOS
        if not isinstance(found := pruned_block(partition, i, ratio), str) and not found.approximate
    ]
    for batch_size in case.batch_sizes[: 1 if large else 2]:
        values = case.values(batch_size)
        for found in pruned:
            copied = found.copied
            operands = [values[name] for name in (*copied.inputs, *copied.context)]
            with torch.no_grad():
                result = copied.module.eval()(*operands)
            _assert_close(result, found.masked(operands), found)


@pytest.mark.xdist_group("vgg11_small")
@pytest.mark.parametrize("span", [1, 2])
def test_removal_from_a_run_of_blocks_is_exact(span: int) -> None:
    case = over_shared_capture("vgg11_small", kinds=())
    partition = case.supernet.partition
    found = [pruned_block(partition, i, 0.5, span) for i in range(len(partition.blocks) - span)]
    pruned = [run for run in found if not isinstance(run, str)]
    assert pruned
    values = case.values(3)
    for run in pruned:
        operands = [values[name] for name in (*run.copied.inputs, *run.copied.context)]
        with torch.no_grad():
            _assert_close(run.copied.module.eval()(*operands), run.masked(operands), run)


@pytest.mark.xdist_group("resnet18")
def test_a_run_without_channels_between_its_blocks_is_refused() -> None:
    """Residual blocks add to their input, whose channels the next block needs."""
    made = list(Pruned(ratios=(0.5,), spans=(1,)).make(partitioned("resnet18", 0.25)))
    refused = [refusal for refusal in made if isinstance(refusal, Refusal)]
    assert refused
    assert {refusal.stop - refusal.start for refusal in refused} == {2}  # type: ignore[operator]
    assert any("inner borders" in refusal.reason for refusal in refused)


@pytest.mark.parametrize("importance", ["weight", "activation"])
def test_a_plain_network_loses_channels_between_its_blocks(importance: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU()) for _ in range(3)))
    x = torch.randn(2, 16, 12, 12)
    kind = Pruned(ratios=(0.5,), importance=importance, spans=(0, 1))
    supernet = fxelastic.expand(model, 0.34, example_inputs=x, kinds=(kind,), calibration=x)
    ids = {branch.id for branch in supernet.branches.values() if branch.kind == "pruned"}
    assert ids == {"pruned50@0-2", "pruned50@1-3"}


@pytest.mark.parametrize("spans", [(-1,), (0.5,), 1])
def test_spans_are_checked(spans: Any) -> None:
    with pytest.raises(UsageError, match="spans must hold integers of at least 0"):
        Pruned(spans=spans)


@pytest.mark.xdist_group("resnet18")
def test_the_oracle_can_disagree() -> None:
    """Had one more channel been removed than the branch says, the outputs would differ."""
    case = over_shared_capture("resnet18", kinds=())
    i = _replaceable(case.supernet.partition)[1]
    found = pruned_block(case.supernet.partition, i, 0.25)
    assert isinstance(found, PrunedBlock)
    labels = {label for group in groups(found.analysis) for label in group.labels}
    wrong = replace(found, labels=found.labels | {min(labels - found.labels)})
    values = case.values(2)
    operands = [values[name] for name in (*found.copied.inputs, *found.copied.context)]
    with torch.no_grad():
        result = found.copied.module.eval()(*operands)
    _assert_close(result, found.masked(operands), found)
    with pytest.raises(AssertionError):
        _assert_close(result, wrong.masked(operands), found)


@pytest.mark.parametrize(
    ("n", "ratio", "width", "expected"),
    [
        (64, 0.25, 1, 48),
        (64, 0.5, 1, 32),
        (12, 0.25, 1, 8),
        (12, 0.5, 1, 8),
        (16, 0.25, 1, 8),
        (6, 0.5, 1, 3),
        (3, 0.9, 1, 1),
        (64, 0.99, 1, 8),
        (8, 0.25, 1, 6),
        (12, 0.25, 64, 9),
        (2, 0.25, 64, 2),
        (100, 0.25, 1, 72),
    ],
)
def test_channels_kept(n: int, ratio: float, width: int, expected: int) -> None:
    """Multiples of 8 where that leaves some and removes some; heads are counted, not rounded."""
    assert kept(n, ratio, 8, width) == expected


class _Coupled(nn.Module):
    """Its hidden channels run through three layers, a norm, a gate and an addition."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.enter = nn.Conv2d(8, hidden, 1)
        self.norm = nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.squeeze, self.excite = nn.Conv2d(hidden, 16, 1), nn.Conv2d(16, hidden, 1)
        self.leave = nn.Conv2d(hidden, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.enter(x)).relu()
        y = y + self.depthwise(y)
        gate = self.excite(self.squeeze(y.mean((2, 3), keepdim=True)).relu())
        return x + self.leave(y * gate.sigmoid())


@pytest.mark.parametrize(("ratio", "stay", "narrow"), [(0.25, 24, 8), (0.5, 16, 8)])
def test_coupled_channels_are_removed_once(ratio: float, stay: int, narrow: int) -> None:
    partition = fxelastic.partition(_Coupled(), 1.0, torch.randn(2, 8, 5, 5))
    (branch,) = (b for b in Pruned((ratio,)).make(partition) if isinstance(b, Branch))
    sizes = {name: tuple(p.shape) for name, p in branch.module.named_parameters()}
    assert sizes["enter.weight"] == (stay, 8, 1, 1)
    assert sizes["depthwise.weight"] == (stay, 1, 3, 3)
    assert sizes["squeeze.weight"] == (narrow, stay, 1, 1)
    assert sizes["excite.weight"] == (stay, narrow, 1, 1)
    assert sizes["leave.weight"] == (8, stay, 1, 1)
    assert branch.n_params < partition.blocks[0].n_params
    assert branch.flops < partition.blocks[0].flops
    assert not branch.approximate


def test_the_least_important_channels_go() -> None:
    model = _Coupled()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "squeeze" not in name:
                p.fill_(1.0)
        small = [1, 5, 6, 20, 21, 22, 30, 31]
        model.enter.weight[small] = 0.01
    partition = fxelastic.partition(model, 1.0, torch.randn(2, 8, 5, 5))
    (branch,) = (b for b in Pruned((0.25,)).make(partition) if isinstance(b, Branch))
    weight = branch.module.get_parameter("enter.weight")
    assert (weight == 1).all()


def test_the_norms_scale_decides_when_asked() -> None:
    model = _Coupled()
    with torch.no_grad():
        model.norm.weight.copy_(torch.arange(32.0))
    partition = fxelastic.partition(model, 1.0, torch.randn(2, 8, 5, 5))
    (branch,) = (b for b in Pruned((0.25,), "bn").make(partition) if isinstance(b, Branch))
    assert branch.module.get_parameter("norm.batch_norm.weight").tolist() == list(range(8, 32))


def test_activations_decide_when_asked() -> None:
    model = _Coupled()
    with torch.no_grad():
        model.norm.weight.fill_(0.0)
        model.norm.bias.copy_(torch.arange(32.0).flip(0))
        for layer in (model.depthwise, model.excite):
            layer.weight.fill_(0.1)
            nn.init.zeros_(layer.bias)
    partition = fxelastic.partition(model.eval(), 1.0, torch.randn(2, 8, 5, 5))
    data = tuple(((torch.randn(n, 8, 5, 5),), {}) for n in (2, 4))
    maker = Pruned((0.25,), "activation", calibration=data)
    (branch,) = (b for b in maker.make(partition) if isinstance(b, Branch))
    bias = branch.module.get_parameter("norm.batch_norm.bias")
    assert bias.tolist() == list(range(31, 7, -1))


def test_activations_need_data() -> None:
    with pytest.raises(UsageError, match="calibration="):
        fxelastic.expand(_Coupled(), importance="activation", kinds=("pruned",))


class _Split(nn.Module):
    """Hidden channels that are split between two depthwise convolutions, as in CoaT."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(4, 16, 1), nn.Conv2d(16, 4, 1)
        self.small = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.large = nn.Conv2d(12, 12, 5, padding=2, groups=12)
        with torch.no_grad():
            self.enter.weight[:4] = 0.001  # these would all go

    def forward(self, x: Tensor) -> Tensor:
        small, large = self.enter(x).split([4, 12], 1)
        return x + self.leave(torch.cat([self.small(small), self.large(large)], 1))


def test_no_part_of_a_split_is_emptied() -> None:
    x = torch.randn(2, 4, 6, 6)
    partition = fxelastic.partition(_Split(), 1.0, x)
    found = pruned_block(partition, 0, 0.5)
    assert isinstance(found, PrunedBlock)
    sizes = {name: len(p) for name, p in found.copied.module.named_parameters()}
    assert (sizes["small.weight"], sizes["large.weight"]) == (1, 7)
    with torch.no_grad():
        _assert_close(found.copied.module.eval()(x), found.masked([x]), found)


class _Standardised(nn.Conv2d):
    """A convolution whose weight is normalised over what each output reads."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = nn.functional.batch_norm(flat, None, None, training=True).reshape_as(self.weight)
        return nn.functional.conv2d(x, weight, self.bias, padding=self.padding)


@pytest.mark.parametrize("last", [_Standardised, nn.Conv2d])
def test_statistics_of_weights_are_those_of_the_whole_weight(last: type[nn.Conv2d]) -> None:
    """A standardised convolution reads fewer channels with the weights that it had."""
    model = nn.Sequential(_Standardised(4, 16, 3, padding=1), nn.ReLU(), last(16, 4, 1))
    partition = fxelastic.partition(model, 1.0, torch.randn(2, 4, 5, 5))
    x = torch.randn(2, 4, 5, 5)
    found = pruned_block(partition, 0, 0.5)
    assert isinstance(found, PrunedBlock)
    with torch.no_grad():
        _assert_close(found.copied.module.eval()(x), found.masked([x]), found)


class _Normalised(nn.Module):
    """A layer norm over the hidden channels: they can't go without a change of its statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm, self.leave = nn.Linear(8, 32), nn.LayerNorm(32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.leave(self.norm(self.enter(x)).relu())


def test_channels_of_a_layer_norm_go_where_nothing_else_can() -> None:
    partition = fxelastic.partition(_Normalised(), 1.0, torch.randn(2, 8))
    branches = [b for b in Pruned().make(partition) if isinstance(b, Branch)]
    assert [b.approximate for b in branches] == [True, True]
    assert branches[0].module.get_parameter("norm.weight").shape == (24,)
    supernet = fxelastic.expand(_Normalised(), 1.0, example_inputs=torch.randn(2, 8))
    assert "approximate" in str(supernet)


class _Odd(nn.Module):
    """Channels are sorted: no operator of that kind is known."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.leave(self.enter(x).sort(-1).values)


def test_unknown_operators_keep_their_channels() -> None:
    partition = fxelastic.partition(_Odd(), 1.0, torch.randn(2, 8))
    with pytest.raises(NoBranchError, match="sort"):
        prunable(Interval(partition, Liveness(partition), "pruned", 0, 1))
    skips = list(Pruned().make(partition))
    assert all(isinstance(skip, Refusal) and "sort" in skip.reason for skip in skips)


@pytest.mark.parametrize("ratios", [(0,), (1.0,), (-0.5,), (True,), ("a",), (float("nan"),)])
def test_ratios_outside_of_0_to_1_are_refused(ratios: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="numbers above 0 and below 1"):
        Pruned(ratios)


def test_an_unknown_importance() -> None:
    with pytest.raises(UsageError, match="one of weight, bn, activation"):
        Pruned(importance="luck")


def _replaceable(partition: Partition) -> list[int]:
    return [i for i, b in enumerate(partition.blocks) if b.kind in ("basic", "oversize")]


def _assert_close(result: Tensor, wanted: Tensor, found: PrunedBlock) -> None:
    assert result.shape == wanted.shape
    error = float((result - wanted).abs().max())
    scale = max(1.0, float(wanted.abs().max()))
    block = found.partition.blocks[found.block].name
    assert error <= 1e-4 * scale, f"{block}: off by {error:.3g}, {found.lines}"


class HeadsAsSamples(nn.Module):
    """Attention whose heads are part of the batch, with a slice that takes all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(24, 72), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        parts = self.qkv(x).reshape(n, length, 3, 4, 6).permute(2, 0, 3, 1, 4)
        q, k, v = parts.reshape(3, n * 4, length, 6).unbind(0)
        scores = (q @ k.transpose(1, 2))[:, :, None, :][:].squeeze(2)
        y = scores.softmax(-1) @ v
        return x + self.proj(y.reshape(n, 4, length, 6).transpose(1, 2).reshape(n, length, 24))


def test_heads_that_are_counted_with_samples_go_in_every_batch() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[HeadsAsSamples() for _ in range(3)]).eval()
    supernet = fxelastic.expand(model, 0.5, example_inputs=torch.zeros(2, 5, 24), kinds=("pruned",))
    pruned = [b for b in supernet.branches.values() if b.kind.startswith("pruned")]
    assert pruned
    for branch in pruned:
        for n in (1, 2, 3, 4, 9):
            with torch.no_grad():
                assert branch.module(torch.randn(n, 5, 24)).shape == (n, 5, 24), branch.id
