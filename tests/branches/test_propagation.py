"""Branches have the shapes of what they replace, also where data choose how many rows there are."""

from __future__ import annotations

import pytest
import torch

import fxelastic
from tests.routed_models import MODELS, build, routed


@pytest.mark.parametrize("name", MODELS)
def test_no_branch_takes_the_samples_for_rows_that_data_choose(name: str) -> None:
    supernet = fxelastic.expand(build(name), 0.6, example_inputs=routed(3))
    values = supernet.bind((routed(2),), {})
    given = [dict(values)]
    for original in supernet.path():
        supernet.run_branch(original, values)
        given.append(dict(values))
    new = [branch for branch in supernet.branches.values() if not branch.frozen]
    assert new
    for branch in new:
        found = dict(given[branch.start])
        supernet.run_branch(branch, found)
        for output in branch.outputs:
            assert found[output].shape == given[branch.stop][output].shape, branch.id
    assert torch.equal(supernet(routed(0))[0], build(name)(routed(0))[0])
