"""A bundle computes what torch computes, for the model and for every subnet."""

from __future__ import annotations

import numpy as np
import pytest

from tests.backends.exported import bundle, flat_result, inputs, run_chain

# One of each: residual convolutions, fused pairs, side exits and many results, a context, shared
# weights, token ids, several inputs, several names of one result, recurrence, attention masks.
NAMES = ("resnet18", "mobilenet_v2")


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
