"""A bundle computes what torch computes, for the model and for every subnet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic.errors import ExportError
from tests.backends.exported import bundle, flat_result, inputs, run_chain
from tests.lanes import EXHAUSTIVE

# Their exports are made once, by one worker each.
NAMES = tuple(
    pytest.param(name, marks=pytest.mark.xdist_group(f"export of {name}"))
    for name in (
        "resnext_grouped",
        "fpn_detector",
        # At their published widths.
        *(("resnet18", "mobilenet_v2", "efficientnet") if EXHAUSTIVE else ()),
    )
)


@pytest.mark.parametrize("name", NAMES)
def test_the_export_is_verified_at_once(name: str) -> None:
    manifest = bundle(name).manifest
    assert manifest.verification is not None
    assert manifest.backend.conversion == "at-once"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_samples", [1, 3])
def test_a_chain_of_files_computes_what_torch_does(name: str, n_samples: int) -> None:
    made = bundle(name)
    feeds = {k: v.numpy() for k, v in inputs(name, n_samples).items()}
    for arch in (made.space.original, *made.space.sample(2, seed=1)):
        values = run_chain(made, arch, feeds)
        for info, expected in zip(made.outputs, flat_result(name, arch, n_samples), strict=True):
            actual = {**made.constants, **values}[info.name]
            np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-3, atol=1e-4)


def test_weights_with_nan_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    supernet = fxelastic.expand(model, 1.0, example_inputs=torch.zeros(2, 4), kinds=())
    fxelastic.export(supernet, tmp_path / "one", n_subnets=0)
    assert "hold NaN" not in caplog.text
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.fill_(float("nan"))
    fxelastic.export(supernet, tmp_path / "other", n_subnets=0)
    assert "weights hold NaN" in caplog.text


def test_an_opaque_module_is_named_as_the_reason(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), Decides(), nn.Linear(4, 3))
    supernet = fxelastic.expand(model, 1.0, example_inputs=torch.zeros(2, 4), kinds=())
    assert supernet.partition.opaque
    with pytest.raises(ExportError, match=r"partition\.opaque"):
        fxelastic.export(supernet, tmp_path / "bundle")


class Decides(nn.Module):
    """Computes one of two things, by the values that come."""

    def forward(self, x: Tensor) -> Tensor:
        """Samples (n, 4)."""
        return x.relu() if x.sum() > 0 else -x


class Twice(nn.Module):
    """Results under keys that are the same text."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[Any, Tensor]:
        """Samples (n, 4)."""
        y = self.layer(x)
        return {0: y, "0": y + 1}


def test_keys_that_are_the_same_text_are_refused(tmp_path: Path) -> None:
    supernet = fxelastic.expand(Twice(), 1.0, example_inputs=torch.zeros(2, 4), kinds=())
    with pytest.raises(ExportError, match="keys that are equal in JSON"):
        fxelastic.export(supernet, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
