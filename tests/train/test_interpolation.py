"""Branches are moved back from their tuned weights as far as their errors alone require."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fxelastic
from fxelastic import Supernet, UsageError
from fxelastic.train import interpolate
from tests.train.supernets import conv_supernet, image_batches, weights
from tests.train.test_held_out import errors_alone

State = dict[str, Tensor]


def state(supernet: Supernet, branch: str) -> State:
    return {k: v.clone() for k, v in supernet.branches[branch].module.state_dict().items()}


@pytest.fixture
def distilled(tmp_path: Path) -> tuple[Supernet, Path, list[Any]]:
    supernet, batches = conv_supernet(), image_batches(6)
    fxelastic.distill(supernet, batches, epochs=3, lr=0.01)
    path = tmp_path / "distilled.safetensors"
    supernet.save(path)
    return supernet, path, batches


def tuned(supernet: Supernet, share: float) -> None:
    """Move all weights of new branches at random, by a share of their size."""
    torch.manual_seed(1)
    with torch.no_grad():
        for branch in supernet.branches.values():
            for p in branch.module.parameters() if not branch.frozen else ():
                p += share * p.std() * torch.randn_like(p) if p.numel() > 1 else 0


def test_errors_alone_keep_their_bounds(distilled: Any) -> None:
    supernet, path, batches = distilled
    before = errors_alone(supernet, batches)
    start = {name: state(supernet, name) for name in before}
    tuned(supernet, 0.3)
    worse = errors_alone(supernet, batches)
    # One has room for its tuned weights, another for some of the way, the others for none.
    whole, part, *others = before
    bounds = {name: before[name] for name in others}
    bounds |= {whole: 1.01 * worse[whole], part: (before[part] + worse[part]) / 2}
    end = {name: state(supernet, name) for name in before}
    found = interpolate(supernet, path, batches, bounds)
    after = errors_alone(supernet, batches)
    assert dict(found.errors) == pytest.approx(after, rel=1e-4)
    assert all(after[name] <= 1.0001 * bounds[name] for name in before)
    assert found.shares[whole] == 1
    assert 0 < found.shares[part] < 1
    assert torch.equal(_weight(state(supernet, whole)), _weight(end[whole]))
    share = found.shares[part]
    between = torch.lerp(_weight(start[part]), _weight(end[part]), share)
    assert torch.equal(_weight(state(supernet, part)), between)
    for name in others:
        if found.shares[name] == 0:
            assert all(torch.equal(v, start[name][k]) for k, v in state(supernet, name).items())


def _weight(state: State) -> Tensor:
    return state["heads.0.layer.0.weight"]


def test_a_branch_that_can_not_keep_its_bound_gets_the_earlier_weights(distilled: Any) -> None:
    supernet, path, batches = distilled
    before = weights(supernet)
    tuned(supernet, 0.3)
    names = errors_alone(supernet, batches)
    found = interpolate(supernet, path, batches, dict.fromkeys(names, 0.0))
    assert set(found.shares.values()) == {0.0}
    assert all(torch.equal(value, before[name]) for name, value in weights(supernet).items())


def test_branches_without_a_bound_keep_their_tuned_weights(distilled: Any) -> None:
    supernet, path, batches = distilled
    tuned(supernet, 0.3)
    after = weights(supernet)
    found = interpolate(supernet, path, batches, {})
    assert set(found.shares.values()) == {1.0}
    assert all(torch.equal(value, after[name]) for name, value in weights(supernet).items())


@pytest.mark.parametrize("wrong", ["branch", "original", "number", "file", "batch"])
def test_what_does_not_fit_is_refused_and_changes_nothing(distilled: Any, wrong: str) -> None:
    supernet, path, batches = distilled
    tuned(supernet, 0.3)
    before = weights(supernet)
    name = next(iter(errors_alone(supernet, batches)))
    bounds: dict[str, float] = {name: 0.1}
    if wrong == "file":
        path = path.with_name("missing")
    elif wrong == "batch":
        batches = [(torch.zeros(2, 7),)]
    else:
        other = {"branch": "student@99", "original": "original@0", "number": name}[wrong]
        bounds = {other: float("nan") if wrong == "number" else 0.1}
    with pytest.raises(UsageError):
        interpolate(supernet, path, batches, bounds)
    assert all(torch.equal(value, before[name]) for name, value in weights(supernet).items())


def test_an_interruption_leaves_the_tuned_weights(
    distilled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    supernet, path, batches = distilled
    tuned(supernet, 0.3)
    before = weights(supernet)
    n_measured = 0

    def interrupted(*_: Any) -> Any:
        nonlocal n_measured
        n_measured += 1
        if n_measured == 2:
            raise KeyboardInterrupt
        return measure(*_)

    from fxelastic.train.held_out import HeldOut

    measure = HeldOut.measure
    monkeypatch.setattr(HeldOut, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        interpolate(supernet, path, batches, {})
    assert all(torch.equal(value, before[name]) for name, value in weights(supernet).items())
