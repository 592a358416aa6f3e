"""What a guide tells of subnets that ended early, and of the best so far."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from fxelastic.edge.searching import tally as margins_module
from fxelastic.edge.searching.data import Dataset
from fxelastic.edge.searching.evaluation import Evaluator
from fxelastic.edge.searching.evolutionary import Guide
from fxelastic.edge.searching.scores import METRICS
from fxelastic.edge.searching.study import Study
from fxelastic.spec.limits import Limits
from tests.edge.fake_executor import FakeExecutor
from tests.spec.spaces import chain, costs_by_resource

SPACE = chain(5)
COSTS = {spec.id: 1.0 for spec in SPACE.branches}
EASE = np.sort(np.random.default_rng(0).normal(0.5, 1.0, 200))[::-1]
DATA = Dataset({"x": EASE[:, None]}, np.zeros(len(EASE), np.int64))


class Eased(FakeExecutor):
    """Each new branch takes something off the target's logit, which is larger for easy samples."""

    def advance(self, branch: str, state: Mapping[str, Any]) -> dict[str, Any]:
        drop = 0.0 if branch.startswith("original") else 0.03 * (1 + sum(map(ord, branch)) % 4)
        wave = np.sin(9.0 * state["v"] + len(branch) + ord(branch[-1]))
        return {"v": state["v"] - drop * (2.0 + wave)}

    def results(self, state: Mapping[str, Any]) -> list[np.ndarray[Any, Any]]:
        return [np.concatenate([state["v"], np.zeros_like(state["v"])], axis=1)]


def test_estimates_and_scores_are_of_the_same_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where margins are kept of the easiest samples only."""
    monkeypatch.setattr(margins_module, "_MARGINS", 60)
    evaluator = Evaluator(Eased(SPACE), DATA, METRICS["top1"], batch_size=20, costs=COSTS)
    study = Study(
        *(SPACE, costs_by_resource(COSTS), Limits({"latency_ms": 1e9})),
        *(evaluator, 10_000, random.Random(0)),
    )
    archs = list(dict.fromkeys(SPACE.sample(300, 0)))
    whole, others = archs[:60], archs[60:120]
    study.score(whole)
    floor = float(np.quantile(list(study.scores.values()), 1.0))
    study.score(others, floor)
    guide = Guide(study)
    guide.learn()
    early = [arch for arch in others if arch not in evaluator.known]
    assert len(early) > 10
    exact = Evaluator(Eased(SPACE), DATA, METRICS["top1"]).scores(early)
    estimated = {arch: guide._estimates[arch] for arch in early}
    assert np.mean([estimated[arch] - exact[arch] for arch in early]) == pytest.approx(0, abs=0.05)
    margins = evaluator.margins.by_arch
    kept = np.mean([(margins[arch] > 0).mean() - evaluator.known[arch] for arch in whole])
    assert kept > 0.1, "the samples that are kept are not the easiest"
    assert guide._best == pytest.approx(max(study.scores.values()) + kept, abs=0.05)
