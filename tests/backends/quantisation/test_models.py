"""8-bit branches of the networks that people use run alone, in chains and assembled."""

from __future__ import annotations

from pathlib import Path

import pytest

import fxelastic
from tests.lanes import EXHAUSTIVE
from tests.models import CASES

#: A small network of each kind always runs, and the networks of usual size in the exhaustive lane.
ALWAYS = ("resnext_grouped", "bert")
LARGER = ("resnet18", "mobilenet_v2", "vit")


@pytest.mark.parametrize("name", [*ALWAYS, *(LARGER if EXHAUSTIVE else ())])
def test_every_branch_keeps_its_tolerance_in_every_way_to_run_it(name: str, tmp_path: Path) -> None:
    """The export compares files with their float branches, and assembled models with chains."""
    case = CASES[name]
    example = case.inputs(2)
    supernet = fxelastic.expand(case.build(), 0.25, example_inputs=example, kinds=("pruned",))
    quantise = fxelastic.Int8([example, case.inputs(2)])
    bundle = fxelastic.export(supernet, tmp_path / "bundle", quantise=quantise)
    made = [s.quantised for s in bundle.manifest.segments if s.quantised]
    assert 2 * len({quantised.source for quantised in made}) > len(supernet.branches)
    assert bundle.manifest.int8 is not None
    assert len(bundle.manifest.int8.subnets) > 3
