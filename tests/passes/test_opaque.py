"""A module that can't be looked into is one node, and the rest is captured all the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxelastic
from fxelastic import CaptureError
from fxelastic.passes import capture


class DataDependent(nn.Module):
    """Control flow over data: neither exported nor traced."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight if float(x.sum()) > 0 else x - self.weight


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(4, 4)
        self.inside = DataDependent()
        self.after = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self.inside(self.before(x)))


def test_the_rest_is_captured(capfd: pytest.CaptureFixture[str]) -> None:
    model = Around().eval()
    partition = fxelastic.partition(model, 0.5, torch.randn(2, 4))
    partition.verify()
    (path, reason), *others = partition.opaque
    assert (path, others) == ("inside", [])
    assert reason
    for x in (torch.randn(2, 4) + 3, torch.randn(5, 4) - 3):
        assert torch.equal(partition(x), model(x))
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
    assert sum(block.n_params for block in partition.blocks) == 44


class WritesThroughAView(Around):
    """Torch traces it a second time, with what stands for the part that is kept whole."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x).clone()
        y[:, 0] = 0.0
        return y


class WritesBefore(Around):
    """The same before the part that is kept whole."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.before(x)
        y[:, 1:] *= 2
        return self.after(self.inside(y))


class Doubles(Around):
    """Two parts are kept whole."""

    def __init__(self) -> None:
        super().__init__()
        self.after = nn.Sequential(DataDependent(), nn.Linear(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x).clone()
        y[0, :2] += 1
        return y


@pytest.mark.parametrize("make", [WritesThroughAView, WritesBefore, Doubles])
def test_a_write_through_a_view_beside_a_part_that_is_kept_whole(make: type[Around]) -> None:
    model = make().eval()
    traced = capture(model, torch.randn(2, 4))
    assert traced.opaque
    for x in (torch.randn(2, 4) + 3, torch.randn(5, 4) - 3):
        assert torch.equal(traced(x), model(x))


def test_control_flow_outside_of_any_submodule_is_refused() -> None:
    with pytest.raises(CaptureError, match="DataDependent can't be captured") as caught:
        capture(DataDependent().eval(), torch.ones(2, 4))
    assert "separate submodule" in str(caught.value)


def test_an_output_of_any_size_is_refused() -> None:
    class Selects(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if float(x.sum()) > 1e9:
                x = x + 1
            return (x * self.weight)[x.sum(1) > 0]

    x = torch.tensor([[1.0, 2, 3, 4], [-1, -2, -3, -4], [1, 1, 1, 1]])
    with pytest.raises(CaptureError, match="does not follow an input's shape"):
        capture(nn.Sequential(nn.Identity(), Selects(), nn.Linear(4, 4)), x)


class Reassembles(nn.Module):
    """Patches of a picture as a picture, whose side is the root of their number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        side = int(float(torch.tensor(x.shape[1]).sqrt()))
        return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], side, -1)


class Patches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.inside = Reassembles()
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.inside(self.patches(x).flatten(2).transpose(1, 2)))


def test_sizes_that_a_part_computes_from_others_are_not_taken_for_fixed() -> None:
    """A few more pixels give as many patches."""
    sizes = {"x": {2: "H", 3: "W"}}
    with pytest.raises(CaptureError, match="does not follow an input's shape") as caught:
        fxelastic.partition(Patches().eval(), 0.5, torch.randn(2, 3, 16, 16), dynamic_shapes=sizes)
    assert "'inside'" in str(caught.value)
    assert "test_opaque.py" in str(caught.value)


class Patchwise(Patches):
    """The part that is kept whole changes no size."""

    def __init__(self) -> None:
        super().__init__()
        self.scaled = DataDependent()
        self.scaled.weight = nn.Parameter(torch.ones(8, 1, 1))
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.scaled(self.patches(x)))


def test_sizes_that_a_part_keeps_vary() -> None:
    model, sizes = Patchwise().eval(), {"x": {2: "H", 3: "W"}}
    partition = fxelastic.partition(model, 0.5, torch.randn(2, 3, 16, 16), dynamic_shapes=sizes)
    assert [path for path, _ in partition.opaque] == ["scaled"]
    x = torch.randn(1, 3, 24, 40)
    assert torch.equal(partition(x), model(x))
