"""The benchmark of searching, with a model that takes no time."""

from __future__ import annotations

from argparse import Namespace
from types import SimpleNamespace
from typing import Any

from benchmarks.search import efficiency, optimum, reuse
from tests.edge.fake_executor import FakeExecutor, dataset
from tests.spec.spaces import chain, costs_by_resource

SPACE = chain(7)
COSTS = {spec.id: 1.0 + 0.013 * i for i, spec in enumerate(SPACE.branches)}
TABLE: Any = SimpleNamespace(
    costs=lambda: COSTS,
    costs_of=lambda: costs_by_resource(COSTS),
    overhead_ms=lambda: 0.0,
    predict_ms=lambda arch: sum(COSTS[branch] for branch in arch),
)
ARGS = Namespace(seeds=1, subnets=20, budget=0.9, optimum_seeds=2)


def test_every_part_runs_and_counts() -> None:
    executor: Any = FakeExecutor(SPACE)
    data = dataset(100)
    (row,) = efficiency(executor, TABLE, data, ARGS)
    assert row["plain-evolutionary"]["subnets"] == 20
    assert 10 < row["plain-annealing"]["subnets"] <= 20
    assert row["evolutionary"]["subnets"] >= 10
    for found in optimum(executor, TABLE, data, ARGS):
        assert 0 < found["fitting"] <= found["subnets"]
        assert found["found"] in (0.0, 0.5, 1.0)
    for saved in reuse(executor, TABLE, data, ARGS):
        assert 0 <= saved["saved"] < 1
        assert 0 <= saved["bounded_saved"] <= saved["saved"]
