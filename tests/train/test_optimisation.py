"""The learning rate of each branch comes from a short range test."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
import torch

import fxelastic
from fxelastic.train import Callback, StepReport
from fxelastic.train import loop as loop_module
from fxelastic.train.held_out import HeldOut
from fxelastic.train.optimisation import RATES, Optimisation, n_steps_tried, range_test
from tests.models.compare import assert_same_output
from tests.train.supernets import linear_supernet, moved, vector_batches, weights

STAGES: dict[str, Any] = {
    "teacher_forced": lambda net, data, **options: fxelastic.distill(net, data, **options),
    "chained": lambda net, data, **options: fxelastic.distill(net, data, mode="chained", **options),
    "tune": lambda net, data, **options: fxelastic.tune(net, data, soft=0.5, **options),
}


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, float]]:
    """The rates that runs use, in the order in which they begin."""
    found: list[Mapping[str, float]] = []

    class Watched(Optimisation):
        def use_rates(self, rates: Mapping[str, float]) -> None:
            found.append(dict(rates))
            super().use_rates(rates)

    monkeypatch.setattr(loop_module, "Optimisation", Watched)
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_rates_are_chosen_from_those_tried(stage: str, used: list[Mapping[str, float]]) -> None:
    supernet = linear_supernet()
    STAGES[stage](supernet, vector_batches(8), steps=50)
    names = {name for name, branch in supernet.branches.items() if not branch.frozen}
    assert set(used[-1]) == names
    assert set(used[-1].values()) <= set(RATES)
    # Where subnets learn together, there is one rate.
    assert stage == "teacher_forced" or len(set(used[-1].values())) == 1


def test_each_branch_gets_the_rate_that_is_best_for_it(used: list[Mapping[str, float]]) -> None:
    """A branch that is nearly right needs a low rate, one that is far off a high one."""
    supernet = linear_supernet()
    data = vector_batches(8)
    fxelastic.distill(supernet, data, epochs=25, lr=0.02)
    far: Any = supernet.branches["student@1"].module
    with torch.no_grad():
        far.heads[0].layer[1].bias.add_(0.5)
    used.clear()
    fxelastic.distill(supernet, data, steps=60)
    rates = dict(used[-1])
    assert rates.pop("student@1") == max(RATES)
    assert min(rates.values()) < max(RATES)


@pytest.mark.parametrize(
    ("options", "n_tests"),
    [
        ({"steps": 50}, 1),
        ({"steps": 49}, 0),
        ({"steps": 50, "lr": 0.01}, 0),
        ({"steps": 50, "optimizer": lambda p: torch.optim.SGD(p, 0.01)}, 0),
        ({"steps": 50, "keep_best": False}, 1),
    ],
    ids=["long", "short", "a rate", "an optimizer", "last state"],
)
def test_when_rates_are_tested(
    options: dict[str, Any], n_tests: int, used: list[Mapping[str, float]]
) -> None:
    fxelastic.distill(linear_supernet(), vector_batches(4), **options)
    tried = [set(rates.values()) for rates in used]
    assert sum(rates == {max(RATES)} for rates in tried) >= n_tests
    assert (len(tried) > 1) == bool(n_tests)


def test_a_short_run_takes_the_default_rate_of_its_stage() -> None:
    for rate, train in ((1e-3, fxelastic.distill), (3e-4, fxelastic.tune)):
        seen: list[float] = []

        class Rates(Callback):
            def on_step(self, report: StepReport) -> None:
                seen.append(report.lr)  # noqa: B023

        train(linear_supernet(), vector_batches(2), schedule="constant", callbacks=[Rates()])
        assert set(seen) == {rate}


def test_the_number_of_steps_tried() -> None:
    found = {total: n_steps_tried(total) for total in (1, 49, 50, 200, 10_000)}
    assert found == {1: 0, 49: 0, 50: 3, 200: 4, 10_000: 8}
    assert n_steps_tried(None) == 8


def test_the_test_leaves_weights_as_they_were() -> None:
    supernet = linear_supernet()
    before = weights(supernet)

    class Stop(Callback):
        def on_step(self, report: StepReport) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fxelastic.distill(
            supernet, vector_batches(4), steps=60, warmup=1.0, weight_decay=0, callbacks=[Stop()]
        )
    # The first step of a warm-up has a rate of 0.
    assert moved(before, supernet) == set()


def test_a_rate_that_diverges_ends_the_test() -> None:
    """Higher rates are not tried, and the best of the lower ones is taken."""
    tried: list[float] = []

    class Errors:
        """Stands in for `HeldOut`: the error falls with the rate."""

        units: ClassVar = {"a": ("a",), "b": ("b",)}

        def measure(self) -> float:
            return tried[-1]

        def means(self, rate: float) -> dict[str, float]:
            return {"a": 1 - rate, "b": math.nan if rate == RATES[1] else 1 + rate}

        def restore(self, units: Any) -> None:
            pass

    def train(rate: float) -> bool:
        tried.append(rate)
        return rate < RATES[2]

    found = range_test(cast(HeldOut, Errors()), train)
    assert tried == list(RATES[:3])
    assert found == {"a": RATES[1], "b": RATES[0]}


def test_a_resumed_run_keeps_its_rates(tmp_path: Path, used: list[Mapping[str, float]]) -> None:
    results = []
    for stop in (None, 30):
        supernet = linear_supernet()
        folder = tmp_path / str(stop)

        class Stop(Callback):
            def on_step(self, report: StepReport) -> None:
                if report.step == stop:  # noqa: B023
                    raise KeyboardInterrupt

        options: dict[str, Any] = {"steps": 60, "checkpoints": folder, "checkpoint_every": 10}
        if stop:
            with pytest.raises(KeyboardInterrupt):
                fxelastic.distill(supernet, vector_batches(8), callbacks=[Stop()], **options)
            supernet = linear_supernet()
        history = fxelastic.distill(supernet, vector_batches(8), **options)
        results.append((weights(supernet), history.held_out, used[-1]))
    assert_same_output(results[0][0], results[1][0])
    assert results[0][1:] == results[1][1:]
