"""Batches that send no row, or one, to a part of the model neither end a run nor spoil it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic import Supernet, TrainingError, UsageError
from fxelastic.branches import DEFAULT_KINDS
from fxelastic.branches.trainable import BatchNorm
from fxelastic.train.losses import (
    cross_entropy,
    normalised_error,
    soft_cross_entropies,
    soft_cross_entropy,
)
from fxelastic.train.metrics import agreement
from tests.routed_models import MODELS, build, routed

STAGES: dict[str, Any] = {
    "teacher_forced": lambda *args, **options: fxelastic.distill(*args, **options),
    "chained": lambda *args, **options: fxelastic.distill(*args, mode="chained", **options),
    "tune": lambda *args, **options: fxelastic.tune(*args, **options),
}


@cache
def expanded(name: str) -> Supernet:
    return fxelastic.expand(build(name), 0.6, example_inputs=routed(3), kinds=DEFAULT_KINDS)


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", [name for name in MODELS if name != "grouped"])
def test_a_batch_without_rows_for_a_part_does_not_end_training(name: str, stage: str) -> None:
    supernet = expanded(name)
    history = STAGES[stage](supernet, [routed(n) for n in (0, 1, 4)], epochs=1, lr=1e-4)
    assert history.steps == 3
    assert math.isfinite(history.loss)
    for branch in supernet.branches.values():
        assert all(value.isfinite().all() for value in branch.module.state_dict().values())


def test_a_step_without_rows_leaves_a_branch_as_it_is() -> None:
    supernet = expanded("filtered")
    branch = supernet.branches["pruned25@1"]
    before = {name: value.clone() for name, value in branch.module.state_dict().items()}
    history = fxelastic.distill(supernet, [routed(0)], epochs=2)
    assert history.coverage["pruned25@1"] == 0
    assert all(torch.equal(before[name], v) for name, v in branch.module.state_dict().items())
    history = fxelastic.distill(supernet, [routed(0), routed(2)], epochs=1, accumulate=2)
    assert history.coverage["pruned25@1"] == 1
    assert history.loss == pytest.approx(history.epochs[0].losses["pruned25@1"], rel=1)


def test_a_users_loss_is_not_called_with_empty_tensors() -> None:
    def own(outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> Tensor:
        return torch.stack(
            [(a - b).square().mean() for a, b in zip(outputs, targets, strict=True)]
        ).mean()

    history = fxelastic.distill(expanded("filtered"), [routed(0), routed(3)], epochs=1, loss=own)
    assert math.isfinite(history.loss)


def test_nan_of_the_model_itself_is_still_an_error() -> None:
    class Spoiled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = build("top_one")

        def forward(self, x: Tensor) -> Any:
            return self.inner(x / (x[:, 1:2] - x[:1, 1:2]).abs().sign())

    supernet = fxelastic.expand(Spoiled().eval(), 0.6, example_inputs=routed(3))
    with pytest.raises(TrainingError, match="NaN or infinity"):
        fxelastic.distill(supernet, [routed(1)], epochs=1)


def normed() -> Supernet:
    layers = (nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))
    model = nn.Sequential(nn.Sequential(*layers), nn.ReLU(), nn.Linear(8, 8))
    return fxelastic.expand(model.eval(), 0.9, example_inputs=routed(3), kinds=["pruned"])


def test_batch_norms_keep_their_statistics_where_there_is_nothing_to_measure() -> None:
    supernet = normed()
    norm = next(m for m in supernet.modules() if isinstance(m, BatchNorm))
    before = norm.running_var.clone()
    arch = next(a for a in supernet.space.sample(9, 0) if a != supernet.space.original)
    one, none = routed(1, n_samples=1), routed(0, n_samples=0)
    for given in (one, none):
        assert fxelastic.recalibrate(supernet, arch, [given, given], compare=False)
        assert torch.equal(norm.running_var, before)
        fxelastic.distill(supernet, [given, given], epochs=1)
        assert torch.equal(norm.running_var, before)
    assert fxelastic.recalibrate(supernet, arch, [one, routed(3)], compare=False)
    assert not torch.equal(norm.running_var, before)
    assert norm.running_var.isfinite().all()
    assert int(norm.num_batches_tracked) == 1


def test_a_last_batch_of_one_sample_does_not_end_training() -> None:
    history = fxelastic.distill(normed(), [routed(3), routed(1, n_samples=1)], epochs=1)
    assert history.steps == 2
    assert math.isfinite(history.loss)


def test_calibration_goes_past_batches_without_rows() -> None:
    x = [routed(n) for n in (0, 1, 5)]
    calibrated = fxelastic.expand(build("filtered"), 0.6, example_inputs=x[2], calibration=x)
    for branch in calibrated.branches.values():
        assert all(value.isfinite().all() for value in branch.module.state_dict().values())
    with_rows = fxelastic.expand(build("filtered"), 0.6, example_inputs=x[2], calibration=x[2:])
    assert set(calibrated.branches) == set(with_rows.branches)


NOTHING = torch.zeros(0, 3, requires_grad=True)


@pytest.mark.parametrize(
    "loss",
    [
        lambda: normalised_error(NOTHING, torch.zeros(0, 3)),
        lambda: normalised_error((NOTHING, NOTHING), (torch.zeros(0, 3), torch.zeros(0, 3))),
        lambda: soft_cross_entropy(NOTHING, torch.zeros(0, 3)),
        lambda: cross_entropy(NOTHING, torch.zeros(0, dtype=torch.int64)),
        lambda: cross_entropy(NOTHING, torch.zeros(0, 3)),
        lambda: cross_entropy(torch.zeros(2, 3, requires_grad=True), torch.full((2,), -100)),
    ],
)
def test_a_mean_over_no_elements_is_a_loss_of_0(loss: Any) -> None:
    assert float(loss()) == 0
    assert not loss().requires_grad


def test_empty_tensors_do_not_count() -> None:
    output, target = torch.randn(4, 3), torch.randn(4, 3)
    both = normalised_error((NOTHING, output), (torch.zeros(0, 3), target))
    assert torch.equal(both, normalised_error(output, target))
    assert len(soft_cross_entropies(NOTHING, torch.zeros(0, 3))) == 0
    with pytest.raises(UsageError, match="different shapes"):
        normalised_error(NOTHING, target)
    assert normalised_error(output * math.nan, target).isnan()


def test_scores_leave_out_what_has_no_element_to_score() -> None:
    supernet = fxelastic.expand(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3)).eval(), 0.9)
    x = routed(3)
    answers = supernet(x).argmax(1)
    ignored = torch.full_like(answers, -100)
    scores = fxelastic.evaluate(supernet, [supernet.space.original], [(x, answers), (x, ignored)])
    assert list(scores.values()) == [1.0]
    with pytest.raises(UsageError, match="no batch of the loader has an element to score"):
        fxelastic.evaluate(supernet, [supernet.space.original], [(x, ignored)])


@pytest.mark.parametrize("score", [agreement, soft_cross_entropy, soft_cross_entropies])
def test_results_of_other_rows_are_not_compared_by_broadcasting(score: Any) -> None:
    with pytest.raises(UsageError, match="different shapes"):
        score(torch.randn(1, 3), torch.randn(4, 3))
