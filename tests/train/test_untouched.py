"""Training changes new branches and nothing else."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic import Supernet, UsageError
from fxelastic.ir.branch import Branch
from fxelastic.spec import BranchSpec
from fxelastic.train import Callback, Sandwich, StepReport
from tests.models import CASES
from tests.models.compare import assert_same_output
from tests.train.supernets import (
    ConvNet,
    conv_supernet,
    image_batches,
    linear_supernet,
    moved,
    supernet_of,
    vector_batches,
    weights,
)

# A convolutional, a transformer, and a feature-pyramid model, of which several blocks' outputs
# are read further on.
NAMES = ("efficientnet", "vit", "fpn_detector")


def leaves(value: Any) -> list[Tensor]:
    found, _ = fxelastic.ir.trees.flatten(value)
    return [x for x in found if x.is_floating_point()]


def any_loss(output: Any, target: Any) -> Tensor:
    return torch.stack([(leaf.float() ** 2).mean() for leaf in leaves(output)]).sum()


class Isolation(Callback):
    """Checks after each step that exactly the branches of its plan have moved."""

    def __init__(self, supernet: Supernet) -> None:
        self.supernet = supernet
        self.before = weights(supernet)
        self.steps = 0

    def on_step(self, report: StepReport) -> None:
        expected = set(report.losses)
        assert expected
        if report.archs:
            sampled = {name for arch in report.archs for name in arch}
            assert expected == {n for n in sampled if not self.supernet.branches[n].frozen}
        assert moved(self.before, self.supernet) == expected
        assert all(p.grad is None for p in self.supernet.parameters())
        self.before = weights(self.supernet)
        self.steps += 1


def stages(supernet: Supernet, loader: Any, checks: tuple[Callback, ...]) -> None:
    # Each step is seen to move what it trains: also a branch that frozen statistics saturate.
    common: dict[str, Any] = {"callbacks": checks, "steps": 3, "norm_statistics": "batch"}
    common["keep_best"] = False
    fxelastic.distill(supernet, loader, **common)
    fxelastic.distill(supernet, loader, branches_per_step=2, **common)
    fxelastic.distill(supernet, loader, mode="chained", **common)
    fxelastic.tune(supernet, loader, loss=any_loss, **common)
    fxelastic.tune(supernet, loader, loss=any_loss, sampling=Sandwich(), **common)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_moves_the_sampled_branches_and_nothing_else(name: str) -> None:
    item = CASES[name]
    model = item.build()
    state = copy.deepcopy(model.state_dict())
    args, kwargs = item.inputs(2)
    expected = model(*copy.deepcopy(args), **kwargs)
    supernet = supernet_of(model, (args, kwargs), gamma=0.3, dropout=0.3)
    isolation = Isolation(supernet)
    data = [((args, kwargs), torch.zeros(2))] * 2
    stages(supernet, data, (isolation,))
    assert isolation.steps == 15
    assert_same_output(model.state_dict(), state)
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert_same_output(model(*copy.deepcopy(args), **kwargs), expected)
    assert_same_output(supernet(*args, **kwargs), expected)


def test_dropout_and_batch_norm_of_originals_stay_in_eval_mode() -> None:
    model = ConvNet().eval()
    supernet = supernet_of(model, torch.zeros(2, 1, 8, 8), dropout=0.5)
    x = image_batches(1)[0][0]
    expected = model(x)

    class Modes(Callback):
        def on_step(self, report: StepReport) -> None:
            assert torch.equal(supernet(x), expected)

    stages(supernet, image_batches(), (Modes(),))
    assert not any(module.training for module in supernet.modules())


def test_new_branches_train_in_training_mode_and_are_left_in_eval_mode() -> None:
    supernet = conv_supernet(dropout=0.5)
    branch = supernet.branches["student@1"].module
    modes: list[bool] = []
    branch.register_forward_hook(lambda module, *_: modes.append(module.training))
    fxelastic.distill(supernet, image_batches(2))
    assert [mode for mode in modes if mode] == [True, True]
    assert not branch.training


def test_momentum_and_weight_decay_do_not_move_what_is_not_sampled() -> None:
    supernet = linear_supernet()
    isolation = Isolation(supernet)
    fxelastic.tune(
        supernet,
        vector_batches(8),
        epochs=2,
        optimizer=lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
        callbacks=[isolation],
    )
    assert isolation.steps == 16


def test_isolation_is_seen_to_fail() -> None:
    supernet = linear_supernet()
    isolation = Isolation(supernet)

    class Meddles(Callback):
        def on_step(self, report: StepReport) -> None:
            with torch.no_grad():
                supernet.branches["original@0"].module.get_parameter("layers.0.0.bias").add_(1)

    with pytest.raises(AssertionError):
        fxelastic.tune(supernet, vector_batches(), callbacks=[Meddles(), isolation])


def test_a_branch_over_the_models_own_weights_is_refused() -> None:
    supernet = linear_supernet()
    original = supernet.branches["original@1"]
    spec = BranchSpec("thief@1", "thief", 1, 2, 72, 0)

    class Thief(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            own = next(original.module.parameters())
            self.weight = nn.Parameter(own.detach())

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    thief = Branch(spec, Thief(), original.inputs, original.outputs)
    bad = Supernet(supernet.partition, [*supernet.branches.values(), thief])
    with pytest.raises(UsageError, match="shares memory with branch 'original@1'"):
        fxelastic.tune(bad, vector_batches())


def test_a_supernet_of_originals_has_nothing_to_train() -> None:
    supernet = linear_supernet()
    bare = Supernet(supernet.partition, [b for b in supernet.branches.values() if b.frozen])
    with pytest.raises(UsageError, match="nothing to train"):
        fxelastic.distill(bare, vector_batches())


def test_the_users_random_generators_are_as_before() -> None:
    supernet = linear_supernet(dropout=0.5)
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    expected = torch.rand(3), random.random(), np.random.rand()
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    fxelastic.distill(supernet, vector_batches())
    found = torch.rand(3), random.random(), np.random.rand()
    assert torch.equal(found[0], expected[0])
    assert found[1:] == expected[1:]


def test_the_same_seed_gives_the_same_weights_whatever_was_drawn_before() -> None:
    results = []
    for drawn in (0, 3):
        torch.rand(drawn)
        supernet = conv_supernet(dropout=0.3)
        fxelastic.tune(supernet, image_batches(), epochs=2, seed=1)
        results.append(weights(supernet))
    assert_same_output(results[0], results[1])
    supernet = conv_supernet(dropout=0.3)
    fxelastic.tune(supernet, image_batches(), epochs=2, seed=2)
    assert moved(results[0], supernet)
