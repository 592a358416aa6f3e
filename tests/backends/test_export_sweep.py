"""Every test model that the exporter can convert exports with all kinds of branches.

All of them take ten minutes: they run where FXELASTIC_EXHAUSTIVE is set, else a few of each kind.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import fxelastic
from fxelastic.errors import ExportError
from tests.backends.exported import exporter_failure
from tests.branches.expanded import LARGE, NAMES, expanded, over_shared_capture
from tests.lanes import EXHAUSTIVE
from tests.models.captured import grouped

#: Masked attention, side exits, recurrence.
FEW = ("bert", "fpn_detector", "gru_tagger")
RUN = [grouped(name) for name in NAMES if EXHAUSTIVE or name in FEW]


@pytest.mark.parametrize("name", RUN)
def test_models_export_with_all_branches(name: str, tmp_path: Path) -> None:
    """Five random subnets and every file agree with torch: export itself compares them."""
    supernet = over_shared_capture(name).supernet
    n_subnets = 1 if name in LARGE else 5
    failure = ""
    try:
        bundle = fxelastic.export(supernet, tmp_path / "bundle", n_subnets=n_subnets)
    except ExportError as e:
        failure = str(e)
    if failure:
        # Outside of the handler: an exception raised in it would have ours in its context.
        reason = exporter_failure(name)
        assert reason, f"the model exports, its branches don't: {failure}"
        pytest.skip(f"the exporter can't convert {name}: {reason}")
    verification = bundle.manifest.verification
    assert verification is not None
    assert len(verification.subnets) >= min(n_subnets, bundle.space.count())
    assert {spec.id for spec in bundle.space.branches} == set(supernet.branches)


def test_the_same_supernet_gives_the_same_bytes(tmp_path: Path) -> None:
    """From two captures of two models built alike."""
    for folder in ("one", "other"):
        fxelastic.export(expanded("functional_resnet").supernet, tmp_path / folder, verify=False)
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.*"))
    assert len(files) > 20
    assert files == sorted(
        p.relative_to(tmp_path / "other") for p in (tmp_path / "other").rglob("*.*")
    )
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


CONVOLUTIONAL = [grouped(name) for name in ("resnet18", "squeezenet", "shufflenet_v2")]


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_no_cut_of_a_convolutional_model_costs_a_fusion(name: str, tmp_path: Path) -> None:
    supernet = over_shared_capture(name, kinds=()).supernet
    bundle = fxelastic.export(supernet, tmp_path / "bundle", n_subnets=0)
    verification = bundle.manifest.verification
    assert verification is not None
    assert verification.fusion_verified, (verification.kernels_lost, verification.kernels_added)
