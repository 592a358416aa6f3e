"""`fxelastic.expand` composes capture, partition and makers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch
from torch import nn

import fxelastic
from fxelastic import Supernet, UsageError
from fxelastic.branches import registry
from fxelastic.branches.original import Original
from fxelastic.ir.branch import Branch, Refusal
from fxelastic.spec import BranchSpec

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 4)).eval()


@dataclass(frozen=True)
class Linear:
    """For tests: one linear layer for each block that keeps its shape."""

    def make(self, partition: fxelastic.Partition, seed: int = 0) -> Iterator[Branch | Refusal]:
        torch.manual_seed(seed)
        for branch in Original().make(partition):
            assert isinstance(branch, Branch)
            if branch.n_params != 72:
                yield Refusal("it changes the shape", "linear", branch.start, branch.stop)
                continue
            spec = BranchSpec(f"linear@{branch.start}", "linear", branch.start, branch.stop, 72, 0)
            yield replace(branch, spec=spec, module=nn.Linear(8, 8))


@pytest.fixture
def _linear(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("linear", f"{__name__}:Linear", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda e: Linear if e == entry else Original)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])


def test_originals_alone() -> None:
    model = net()
    supernet = fxelastic.expand(model, 0.5, example_inputs=X, kinds=())
    assert isinstance(supernet, Supernet)
    assert torch.equal(supernet(X), model(X))
    assert supernet.space.count() == 1
    assert supernet.space.n_blocks == len(supernet.partition.blocks) == len(supernet.branches)
    assert supernet.partition.gamma == 0.5
    assert supernet.n_params == supernet.partition.n_params
    assert not supernet.training
    assert "1 subnet\n" in str(supernet)


def test_inputs_are_inferred() -> None:
    assert torch.equal(fxelastic.expand(net())(X), net()(X))


@pytest.mark.usefixtures("_linear")
def test_another_packages_kind() -> None:
    supernets = [
        fxelastic.expand(net(), 0.5, example_inputs=X, kinds=("linear", "original"), seed=seed)
        for seed in (0, 0, 1)
    ]
    assert supernets[0].space == supernets[2].space
    assert supernets[0].space.count() == 4
    assert [skip.reason for skip in supernets[0].skips] == ["it changes the shape"]
    arch = next(a for a in supernets[0].space.sample(50) if str(a).count("linear") == 2)
    outputs = [supernet(X, arch=arch) for supernet in supernets]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    assert torch.equal(supernets[0](X), net()(X))


@pytest.mark.parametrize("kind", ["leaving", "int8"])
def test_unknown_kinds_are_refused_before_the_capture(kind: str) -> None:
    with pytest.raises(UsageError, match="one of original"):
        fxelastic.expand("no model", kinds=(kind,))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [{"spans": 1}, {"spans": (0,)}, {"spans": (1.5,)}, {"spans": "12"}, {"spans": (True,)}],
)
def test_options_are_checked_before_the_capture(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="span"):
        fxelastic.expand("no model", kinds=("merged",), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", ["1", 1.5, True, 2**70])
def test_the_seed_is_checked_before_the_capture(seed: Any) -> None:
    with pytest.raises(UsageError, match="seed must be an integer"):
        fxelastic.expand("no model", seed=seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("kinds", ["original", (3,)])
def test_kinds_are_checked(kinds: Any) -> None:
    with pytest.raises(UsageError, match="kinds must be a sequence of names and kinds"):
        fxelastic.expand(net(), kinds=kinds)


def test_all_kinds_are_named_alone() -> None:
    with pytest.raises(UsageError, match="'all' beside other kinds"):
        fxelastic.expand(net(), kinds=("all", fxelastic.kinds.Exit(every=1)))


def test_arguments_are_those_of_partition() -> None:
    with pytest.raises(UsageError, match="gamma"):
        fxelastic.expand(net(), 2)
    with pytest.raises(UsageError, match="unknown backend for fusion rules"):
        fxelastic.expand(net(), fusion="nonsense")


def test_a_default_device_has_no_say() -> None:
    layers = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()) for _ in range(3)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    x = torch.randn(4, 4, 8, 8)
    chosen = (fxelastic.kinds.Exit(every=1), "dense", "lowrank", "merged")
    expected = fxelastic.expand(model, 0.4, example_inputs=x, kinds=chosen, calibration=x)
    with torch.device("meta"):
        found = fxelastic.expand(model, 0.4, example_inputs=x, kinds=chosen, calibration=x)
    assert list(found.branches) == list(expected.branches)
    for name, weight in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], weight)
