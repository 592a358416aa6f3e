"""Early exits: their positions, their heads, and what they learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic import Supernet, UsageError, edge, kinds
from fxelastic.spec import Arch
from fxelastic.train.losses import soft_cross_entropy
from tests import models


def images_net(n_blocks: int = 4, width: int = 16) -> nn.Module:
    torch.manual_seed(0)
    units = [
        nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU()) for _ in range(n_blocks)
    ]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), *units, *head).eval()


def expanded(model: nn.Module, example: Any, **options: Any) -> Supernet:
    kind = kinds.Exit(**options.pop("exit", {"every": 1}))
    return fxelastic.expand(model, 0.3, example_inputs=example, kinds=[kind], **options)


def exits(supernet: Supernet) -> list[Any]:
    return [branch for branch in supernet.branches.values() if branch.kind == "exit"]


def arch_of(supernet: Supernet, branch: Any) -> Arch:
    return Arch((*supernet.space.original.branches[: branch.start], branch.id))


def test_exits_follow_the_named_blocks() -> None:
    x = torch.randn(2, 3, 8, 8)
    every = [b.start for b in exits(expanded(images_net(), x))]
    n_blocks = len(expanded(images_net(), x).partition.blocks)
    assert every
    assert all(b.stop == n_blocks for b in exits(expanded(images_net(), x)))
    second = expanded(images_net(), x, exit={"every": 2})
    assert {b.start for b in exits(second)} <= set(every)
    chosen = expanded(images_net(), x, exit={"at": (3, 1)})
    positions = [b.start for b in exits(chosen)] + [r.start for r in chosen.skips]
    assert sorted(positions) == [1, 3]


def test_by_default_exits_are_spread_over_the_work() -> None:
    supernet = expanded(images_net(8), torch.randn(2, 3, 8, 8), exit={})
    flops = [block.flops for block in supernet.partition.blocks]
    shares = [sum(flops[: b.start]) / sum(flops) for b in exits(supernet)]
    assert len(shares) == 3
    for share, wanted in zip(shares, (0.25, 0.5, 0.75), strict=True):
        assert wanted <= share < wanted + 0.15


@pytest.mark.parametrize("options", [{"at": (0,)}, {"at": "last"}, {"every": -1}, {"every": True}])
def test_positions_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        kinds.Exit(**options)


def test_a_block_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="there is no exit after 99 blocks"):
        expanded(images_net(), torch.randn(2, 3, 8, 8), exit={"at": (99,)})


#: Models and the first words of their heads' notes: "a copy of …", "pooling, linear" and so on.
HEADS = {
    "vit": {"a"},
    "bert": {"a"},
    "albert": {"a", "pooling,"},
    "wide_resnet": {"a", "pooling,", "convolution"},
    "vgg11_small": {"linear"},
    "t5": {"a"},
}


@pytest.mark.parametrize("name", HEADS)
def test_every_exit_gives_the_models_results(name: str) -> None:
    case = models.case(name)
    args, kwargs = case.inputs(2)
    supernet = expanded(case.build(), (args, kwargs))
    notes = {b.note.split()[0] for b in exits(supernet)}
    assert notes == HEADS[name]
    for size in (1, 3):
        args, kwargs = case.inputs(size)
        with torch.no_grad():
            whole = torch.utils._pytree.tree_leaves(supernet(*args, **kwargs))
            for branch in exits(supernet):
                found = supernet(*args, **kwargs, arch=arch_of(supernet, branch))
                leaves = torch.utils._pytree.tree_leaves(found)
                assert [v.shape for v in leaves] == [v.shape for v in whole]
                assert all(bool(v.isfinite().all()) for v in leaves)


@pytest.mark.parametrize("name", ["autoencoder", "ssd", "nested_output", "gru_sequence_first"])
def test_results_that_no_head_can_give_are_refused_with_the_reason(name: str) -> None:
    case = models.case(name)
    supernet = expanded(case.build(), case.inputs(2))
    assert not exits(supernet)
    assert all(refusal.reason for refusal in supernet.skips)


def test_a_convolution_begins_as_a_mixture_of_channels() -> None:
    """Pooling then sees what the features hold, so that a linear map can be fitted at once."""
    torch.manual_seed(0)
    wide = nn.Sequential(*[nn.Conv2d(64, 64, 3, padding=1) for _ in range(4)])
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5000))
    model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), *wide, *head).eval()
    found = exits(expanded(model, torch.randn(2, 3, 8, 8), exit={"at": (1,)}))
    (branch,) = found
    weight = branch.module.get_parameter("convolution.weight").detach()
    middle = weight[:, :, 1, 1]
    torch.testing.assert_close(middle @ middle.mT, torch.eye(len(middle)))
    assert float(weight.abs().sum()) == pytest.approx(float(middle.abs().sum()))


def test_calibration_fits_the_linear_map() -> None:
    data = [torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    plain = expanded(images_net(), data[0][:2])
    fitted = expanded(images_net(), data[0][:2], calibration=data)
    other = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(99))
    for before, after in zip(exits(plain), exits(fitted), strict=True):
        with torch.no_grad():
            wanted = plain(other)
            errors = [
                float((net(other, arch=arch_of(net, branch)) - wanted).square().mean())
                for net, branch in ((plain, before), (fitted, after))
            ]
        assert errors[1] < 0.5 * errors[0]
        assert errors[1] < float(wanted.var())


def test_exits_learn_the_classes_of_the_model() -> None:
    torch.manual_seed(1)
    batches = [(torch.randn(32, 3, 8, 8),) for _ in range(6)]
    supernet = expanded(images_net(), batches[0][0][:2])
    history = fxelastic.distill(supernet, batches, epochs=6, lr=0.02, seed=1)
    report = history.held_out
    assert report is not None
    assert report.n_better == len(exits(supernet))
    with torch.no_grad():
        (x,) = batches[0]
        wanted = supernet(x)
        for branch in exits(supernet):
            found: Tensor = supernet(x, arch=arch_of(supernet, branch))
            assert float(soft_cross_entropy(found, wanted)) < report.before[branch.id]


def test_exits_are_exported_and_searched(tmp_path: Path) -> None:
    supernet = expanded(images_net(), torch.randn(2, 3, 8, 8))
    bundle = fxelastic.export(supernet, tmp_path / "bundle", n_subnets=2)
    x = torch.randn(3, 3, 8, 8)
    with edge.Executor(bundle) as executor, torch.no_grad():
        for branch in exits(supernet):
            arch = arch_of(supernet, branch)
            (found,) = executor.run(arch, {bundle.inputs[0].name: x.numpy()})
            np.testing.assert_allclose(found, supernet(x, arch=arch), rtol=1e-4, atol=1e-5)
