"""Batches that send no row to a part of the model are measured, searched on and served."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fxelastic
from fxelastic import edge
from fxelastic.edge.executor import Executor
from fxelastic.edge.searching.data import read_data
from fxelastic.edge.searching.distortion import measure
from fxelastic.spec.latency_table import LatencyTable
from tests.routed_models import build, routed

QUICK: dict[str, Any] = {"n_samples": 3, "n_subnets": 2, "n_held_out": 1, "threads": 1}
#: Rows of each batch that go to the second of two experts.
ROWS = (0, 1, 4, 0, 2)


@pytest.fixture(scope="module")
def supernet() -> fxelastic.Supernet:
    return fxelastic.expand(build("top_one"), 0.6, example_inputs=routed(3), kinds=["pruned"])


@pytest.fixture(scope="module")
def bundle(supernet: fxelastic.Supernet, tmp_path_factory: pytest.TempPathFactory) -> edge.Bundle:
    return fxelastic.export(supernet, tmp_path_factory.mktemp("rows") / "bundle", verify=False)


@pytest.fixture(scope="module")
def table(bundle: edge.Bundle) -> LatencyTable:
    return edge.profile(bundle, 4, inputs={"x": routed(0, 4).numpy()}, **QUICK)


@pytest.fixture(autouse=True)
def means_over_nothing_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


def test_a_profile_on_a_batch_without_rows(bundle: edge.Bundle, table: LatencyTable) -> None:
    assert all(math.isfinite(row.ms) and row.ms > 0 for row in table.rows.values())
    assert set(table.rows) == set(bundle.space.by_id)


def test_what_branches_change_is_measured_where_there_are_rows(bundle: edge.Bundle) -> None:
    new = [spec.id for spec in bundle.space.branches if spec.kind != "original"]

    def found(rows: tuple[int, ...]) -> Any:
        x = np.concatenate([routed(n, 4, seed=n).numpy() for n in rows])
        with Executor(bundle) as executor:
            return measure(executor, read_data(bundle, {"x": x}), 4)

    some = found(ROWS)
    assert not some.unknown.any()
    assert np.isfinite(some.products).all()
    assert (some.errors > 0).all()
    # Without a row for the first expert, its branches have the others' typical error.
    none = found((4, 4))
    assert none.unknown.tolist() == [branch.endswith("@3") for branch in new]
    assert np.isfinite(none.products).all()


def test_a_search_and_serving_on_batches_without_rows(
    supernet: fxelastic.Supernet, bundle: edge.Bundle, table: LatencyTable
) -> None:
    x = np.concatenate([routed(n, 4, seed=n).numpy() for n in ROWS])
    result = edge.search(
        bundle, table, {"x": x}, budget="100%", batch_size=4, max_subnets=5, force=True
    )
    assert math.isfinite(result.best.accuracy)
    for mode in ("paged", "assembled"):
        with edge.serve(bundle, table, result.pool, budget_ms=1e5, mode=mode) as runtime:
            for n in (0, 1, 4):
                answer = runtime(routed(n, 4).numpy())
                assert np.isfinite(answer).all()
                assert answer.shape == (4, 3)
