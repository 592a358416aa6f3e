"""Branches have the shapes of what they replace, also where data choose how many rows there are."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

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


class Together(nn.Module):
    """Two samples for a result: an odd number of them fits no product."""

    def __init__(self) -> None:
        super().__init__()
        layers = (m for _ in range(3) for m in (nn.Linear(8, 8), nn.ReLU()))
        self.body, self.head = nn.Sequential(*layers), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).reshape(-1, 16))


def test_a_branch_that_does_not_fit_leaves_no_error_of_torch_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch_log = logging.getLogger("torch")
    torch_log.addHandler(caplog.handler)
    try:
        fxelastic.expand(Together().eval(), 0.3, example_inputs=torch.randn(4, 8))
    finally:
        torch_log.removeHandler(caplog.handler)
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]
