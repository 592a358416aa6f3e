"""An executor whose runs take stated times, by a clock of its own."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Mapping
from typing import Any

import numpy as np

from fxelastic.edge.searching.evaluation import Evaluator
from fxelastic.edge.searching.scores import Metric
from fxelastic.edge.searching.study import Study
from fxelastic.spec import Arch, SearchSpace
from fxelastic.spec.limits import Limits
from tests.edge.fake_executor import FakeExecutor, dataset
from tests.spec.spaces import costs_by_resource

OPENING_S = 0.05
SAMPLE_S = 0.01  # of the costliest branch
_UNIT = 10**6

METRIC = Metric("kept", lambda outputs, targets: (float(outputs[0].sum()), float(len(targets))))


class Clock:
    """Time passes when somebody lets it."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class TimedExecutor(FakeExecutor):
    """Each new branch takes its own amount off the score, and its error is that amount.

    Features are floating-point numbers, which a search compares; what was taken off so far is an
    integer, which it does not.
    """

    def __init__(self, space: SearchSpace, clock: Clock) -> None:
        super().__init__(space)
        self.clock = clock
        self._costs = costs_of(space)
        self._opened: set[str] = set()

    def start(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        features = np.where(inputs["x"] > 0, 1.0, -1.0)
        return {"v": features, "off": np.zeros(len(features), np.int64)}

    def advance(self, branch: str, state: Mapping[str, Any]) -> dict[str, Any]:
        self.executed += 1
        if branch not in self._opened:
            self._opened.add(branch)
            self.n_loaded += 1
            self.clock.now_s += OPENING_S
        n_samples = len(state["off"])
        self.clock.now_s += SAMPLE_S * n_samples * self._costs[branch]
        drop = drop_of(branch)
        return {
            "v": state["v"] + drop**0.5 * np.where(state["v"] > 0, 1.0, -1.0),
            "off": state["off"] + round(drop * _UNIT),
        }

    def results(self, state: Mapping[str, Any]) -> list[np.ndarray[Any, Any]]:
        return [1 - state["off"] / _UNIT]


@functools.cache
def drop_of(branch: str) -> float:
    """What a branch takes off the score."""
    if branch.startswith("original"):
        return 0.0
    return random.Random(branch).uniform(0.005, 0.06)


def true_score(arch: Arch) -> float:
    """The score on any samples."""
    return 1 - sum(round(drop_of(branch) * _UNIT) for branch in arch) / _UNIT


def costs_of(space: SearchSpace) -> dict[str, float]:
    """New branches are quicker than what they replace, by shares of their own."""
    found = {}
    for spec in space.branches:
        length = spec.stop - spec.start
        share = random.Random(f"cost {spec.id}").uniform(0.2, 0.8)
        found[spec.id] = 1.0 if spec.kind == "original" else share * length
    return found


def studies(
    space: SearchSpace,
    shares: list[float],
    n_samples: int,
    max_subnets: int,
    clock: Clock,
    weights: dict[str, float] | None = None,
    weight_bytes: float = math.inf,
) -> list[Study]:
    """Searches for shares of the original's latency that have one evaluator."""
    costs = costs_of(space)
    evaluator = Evaluator(
        TimedExecutor(space, clock),  # type: ignore[arg-type]
        dataset(n_samples),
        METRIC,
        batch_size=20,
        costs=costs,
        first=1,
        clock=clock,
    )
    original = space.cost(space.original, costs)
    others = {} if weights is None else {"weight_bytes": weights}
    bounds = {} if weights is None else {"weight_bytes": weight_bytes}
    found = []
    for i, share in enumerate(shares):
        rng = random.Random(i)
        limits = Limits({"latency_ms": share * original} | bounds)
        resources = costs_by_resource(costs, **others)
        study = Study(space, resources, limits, evaluator, max_subnets, rng, clock=clock)
        found.append(study)
    return found
