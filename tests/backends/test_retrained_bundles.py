"""A supernet that is exported before and after training has one structure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic import edge


class Gated(nn.Module):
    """A residual block whose gate is one, and whose biases are zero, before it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.mix = nn.Conv2d(16, 8, 1)
        self.gate = nn.Parameter(torch.ones(()))
        for conv in (self.conv, self.mix):
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, 8, H, W)."""
        return x + self.gate * self.mix(torch.relu(self.norm(self.conv(x))))


def exported(
    seed: int | None, folder: Path, gamma: float = 0.5, prune: float = 0.5, opset: int = 20
) -> edge.Bundle:
    """The bundle of a supernet, with all of its weights moved where there is a seed."""
    torch.manual_seed(0)
    model = nn.Sequential(*[Gated() for _ in range(3)], nn.Flatten(), nn.Linear(8 * 16, 4)).eval()
    if seed is not None:
        torch.manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.1 * torch.randn_like(weight)
    x = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    supernet = fxelastic.expand(
        model, gamma, example_inputs=x, kinds=("pruned", "skip"), prune=(prune,)
    )
    return fxelastic.export(supernet, folder, n_subnets=1, verify=False, opset=opset)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> edge.Bundle:
    return exported(None, tmp_path_factory.mktemp("untrained") / "bundle")


def test_weights_that_decide_what_the_optimiser_drops_do_not_count(
    untrained: edge.Bundle, tmp_path: Path
) -> None:
    trained = exported(1, tmp_path / "bundle")
    sizes = [sum(s.weight_bytes for s in b.manifest.segments) for b in (untrained, trained)]
    assert sizes[0] < sizes[1], "the optimiser dropped nothing: this tests too little"
    assert untrained.structure_digest == trained.structure_digest


@pytest.mark.parametrize(
    "options", [{"gamma": 0.1}, {"prune": 0.75}, {"opset": 21}], ids=lambda o: next(iter(o))
)
def test_other_branches_are_another_structure(
    untrained: edge.Bundle, tmp_path: Path, options: dict[str, Any]
) -> None:
    other = exported(None, tmp_path / "bundle", **options)
    assert other.structure_digest != untrained.structure_digest
