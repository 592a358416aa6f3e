"""What the models of subnets predict, where the truth is a sum over branches."""

from __future__ import annotations

import numpy as np
import pytest

from fxelastic.edge.searching.surrogate import Features, MarginModel
from fxelastic.spec import Arch
from tests.spec.spaces import chain

SPACE = chain(8)
N_SAMPLES = 80
FEATURES = Features(SPACE)


def truth() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What each new branch takes from each sample's margin; the original's margins."""
    random = np.random.default_rng(1)
    lost = {spec.id: random.exponential(1.0, N_SAMPLES) for spec in FEATURES.new}
    return lost, np.sort(random.uniform(0.0, 8.0, N_SAMPLES))


def margins_of(arch: Arch) -> np.ndarray:
    lost, level = truth()
    taken = sum((lost[b] for b in arch if b in lost), np.zeros(N_SAMPLES))
    return np.asarray(level - taken, np.float32)


@pytest.mark.parametrize("cut", [1.0, 0.25])
def test_margins_predict_accuracy_also_where_subnets_ended_early(cut: float) -> None:
    known = SPACE.sample(60, 0)
    accuracies = [(margins_of(arch) > 0).mean() for arch in known]
    floor = float(np.median(accuracies))
    margins = {
        arch: margins_of(arch)[: None if accuracy >= floor else int(cut * N_SAMPLES)]
        for arch, accuracy in zip(known, accuracies, strict=True)
    }
    model = MarginModel(FEATURES, margins)
    others = [arch for arch in SPACE.sample(200, 1) if arch not in margins]
    predicted, unknown = model.predict(others)
    exact = np.array([(margins_of(arch) > 0).mean() for arch in others])
    assert np.corrcoef(predicted, exact)[0, 1] > (0.9 if cut == 1 else 0.75)
    seen = model.predict(known)[1]
    assert seen.mean() < unknown.mean()


def test_losers_tell_as_much_as_they_were_evaluated_for() -> None:
    """Without what is known of those that ended early the prediction is worse."""
    known = SPACE.sample(60, 0)
    order = sorted(known, key=lambda arch: -(margins_of(arch) > 0).mean())
    winners = {arch: margins_of(arch) for arch in order[:12]}
    losers = {arch: margins_of(arch)[:20] for arch in order[12:]}
    others = SPACE.sample(200, 1)
    exact = np.array([(margins_of(arch) > 0).mean() for arch in others])

    def error(margins: dict[Arch, np.ndarray]) -> float:
        predicted, _ = MarginModel(FEATURES, margins).predict(others)
        return float(np.corrcoef(predicted, exact)[0, 1])

    assert error(winners | losers) > error(winners)
