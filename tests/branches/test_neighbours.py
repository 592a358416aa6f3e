"""A branch computes the same whatever branches run before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxelastic


class Mixed(nn.Module):
    """A layer over pixels, whose channels come to lie last in memory, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.mix = nn.Linear(4, 4)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, 4, 8, 8) to (64n, 3)."""
        x = torch.relu(self.first(x))
        pixels = torch.relu(self.mix(x.flatten(2).transpose(1, 2)))
        x = torch.relu(self.conv(pixels.transpose(1, 2).reshape(x.shape)))
        return self.last(x.permute(0, 2, 3, 1).contiguous().view(-1, 4))


class Coded(nn.Module):
    """Turns indices of 40 things into indices of 6, as many."""

    def __init__(self) -> None:
        super().__init__()
        self.things = nn.Embedding(40, 8)
        self.score = nn.Linear(8, 6)
        self.kinds = nn.Embedding(6, 40)
        self.head = nn.Linear(40, 3)

    def forward(self, things: Tensor) -> Tensor:
        """Indices (n, 8) to results for each (n, 8, 3)."""
        kinds = self.score(self.things(things)).argmax(-1)
        return self.head(torch.relu(self.kinds(kinds)))


def test_results_may_lie_otherwise_in_memory() -> None:
    """Where channels lie last, ``contiguous()`` does nothing, and is not recorded."""
    torch.manual_seed(0)
    x = torch.randn(2, 4, 8, 8)
    supernet = fxelastic.expand(Mixed().eval(), 0.6, example_inputs=x)
    assert any(branch.kind == "skip" for branch in supernet.branches.values())
    with torch.no_grad():
        for arch in dict.fromkeys(supernet.space.sample(40, seed=0)):
            assert supernet(x, arch=arch).shape == (128, 3)


def test_indices_are_not_passed_on_for_others() -> None:
    torch.manual_seed(0)
    x = torch.arange(16).reshape(2, 8) + 20
    supernet = fxelastic.expand(Coded().eval(), 0.6, example_inputs=x)
    assert "input and output are indices or flags" in [skip.reason for skip in supernet.skips]
    for arch in dict.fromkeys(supernet.space.sample(20, seed=0)):
        assert supernet(x, arch=arch).shape == (2, 8, 3)
