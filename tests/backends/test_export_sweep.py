"""Every test model that the exporter can convert exports with all kinds of branches.

All of them take ten minutes: they run where FXELASTIC_EXHAUSTIVE is set, else a few of each kind.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import fxelastic
from fxelastic.errors import ExportError
from tests.backends.exported import exporter_failure
from tests.branches.expanded import LARGE, NAMES, expanded

#: Convolutions with strides and squeeze-excite, masked attention, rotary attention, side exits,
#: recurrence, two inputs, shared weights, dataclasses.
FEW = ("efficientnet", "bert", "llama", "fpn_detector", "albert", "gru_tagger", "swin", "densenet")
RUN = NAMES if os.environ.get("FXELASTIC_EXHAUSTIVE") else tuple(n for n in NAMES if n in FEW)


@pytest.mark.parametrize("name", RUN)
def test_models_export_with_all_branches(name: str, tmp_path: Path) -> None:
    """Five random subnets and every file agree with torch: export itself compares them."""
    supernet = expanded(name).supernet
    n_subnets = 1 if name in LARGE else 5
    try:
        bundle = fxelastic.export(supernet, tmp_path / "bundle", n_subnets=n_subnets)
    except ExportError as e:
        reason = exporter_failure(name)
        assert reason, f"the model exports, its branches don't: {e}"
        pytest.skip(f"the exporter can't convert {name}: {reason}")
    verification = bundle.manifest.verification
    assert verification is not None
    assert len(verification.subnets) >= min(n_subnets, bundle.space.count())
    assert {spec.id for spec in bundle.space.branches} == set(supernet.branches)
