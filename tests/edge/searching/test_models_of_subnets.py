"""What the models of subnets predict, where the truth is a sum over branches."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fxelastic.edge.searching.distortion import Distortion
from fxelastic.edge.searching.evolutionary import log_improvement
from fxelastic.edge.searching.surrogates import MarginModel, Prior, ScoreModel
from fxelastic.spec import Arch, SearchSpace
from tests.spec.spaces import chain

SPACE = chain(8)
N_SAMPLES = 80


def distortion(space: SearchSpace) -> Distortion:
    """Of errors by chance, with nothing in common."""
    new = tuple(spec.id for spec in space.branches if spec.kind != "original")
    errors = np.random.default_rng(0).uniform(0.01, 0.3, len(new))
    return Distortion(
        new, errors, np.diag(errors), np.zeros(len(new), np.int64), np.zeros(len(new), bool)
    )


PRIOR = Prior(distortion(SPACE))


def truth(of_errors: float = 1.0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What each new branch takes from each sample's margin; the original's margins.

    Args:
        of_errors: How far it follows the branches' errors, the rest being chance.
    """
    random = np.random.default_rng(1)
    lost = {}
    for branch, error in zip(PRIOR.branches, PRIOR.errors, strict=True):
        size = 6.0 * (of_errors * error + (1 - of_errors) * 0.15)
        lost[branch] = random.exponential(size, N_SAMPLES)
    return lost, np.sort(random.uniform(0.0, 8.0, N_SAMPLES))


def margins_of(arch: Arch, of_errors: float = 1.0) -> np.ndarray:
    lost, level = truth(of_errors)
    taken = sum((lost[b] for b in arch if b in lost), np.zeros(N_SAMPLES))
    return np.asarray(level - taken, np.float32)


def accuracy(arch: Arch, of_errors: float = 1.0) -> float:
    return float((margins_of(arch, of_errors) > 0).mean())


OTHERS = SPACE.sample(200, 1)


@pytest.mark.parametrize("cut", [1.0, 0.25])
@pytest.mark.parametrize("of_errors", [1.0, 0.0])
def test_margins_predict_accuracy_also_where_subnets_ended_early(
    cut: float, of_errors: float
) -> None:
    known = SPACE.sample(60, 0)
    floor = float(np.median([accuracy(arch, of_errors) for arch in known]))
    margins = {
        arch: margins_of(arch, of_errors)[
            : None if accuracy(arch, of_errors) >= floor else int(cut * N_SAMPLES)
        ]
        for arch in known
    }
    model = MarginModel(PRIOR, margins)
    others = [arch for arch in OTHERS if arch not in margins]
    predicted, _, unknown = model.predict(others)
    exact = [accuracy(arch, of_errors) for arch in others]
    assert np.corrcoef(predicted, exact)[0, 1] > (0.9 if cut == 1 else 0.8)
    seen = model.predict(known).unknown
    assert seen.mean() < unknown.mean()


def test_what_branches_cost_may_depend_on_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where what one loses another can't lose again, a sum over branches predicts worse."""

    def margins(arch: Arch) -> np.ndarray:
        lost, level = truth(0.0)
        worst = np.max([lost[b] for b in arch if b in lost] or [np.zeros(N_SAMPLES)], axis=0)
        return np.asarray(level - 2 * worst, np.float32)

    known = {arch: margins(arch) for arch in SPACE.sample(100, 0)}
    others = [arch for arch in OTHERS if arch not in known]
    exact = [(margins(arch) > 0).mean() for arch in others]

    def agreement() -> float:
        return float(np.corrcoef(MarginModel(PRIOR, known).predict(others).accuracy, exact)[0, 1])

    found = agreement()
    monkeypatch.setattr(MarginModel, "_TOGETHER", 1e-9)
    assert found > agreement() + 0.02


def test_of_many_subnets_those_as_good_as_the_best_that_fits_are_fitted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where others fit that are far worse, the better ones tell less than the like of them."""
    monkeypatch.setattr(MarginModel, "_MOST", 40)
    drawn = dict.fromkeys((*OTHERS, *SPACE.sample(200, 2)))
    order = sorted(drawn, key=lambda arch: accuracy(arch, 0.0))
    poor, good = order[:80], order[-80:]
    known = {arch: margins_of(arch, 0.0) for arch in (*poor[::2], *good[::2])}
    exact = [accuracy(arch, 0.0) for arch in poor[1::2]]

    def agreement(fits: Callable[[Arch], bool]) -> float:
        predicted = MarginModel(PRIOR, known, fits).predict(poor[1::2]).accuracy
        return float(np.corrcoef(predicted, exact)[0, 1])

    assert agreement(lambda arch: arch in poor) > agreement(lambda arch: True) + 0.05


def test_of_many_subnets_one_is_fitted_that_did_not_end_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MarginModel, "_MOST", 5)
    order = sorted(SPACE.sample(60, 0), key=lambda arch: -accuracy(arch))
    margins = {arch: margins_of(arch)[:20] for arch in order[:-1]}
    model = MarginModel(PRIOR, margins | {order[-1]: margins_of(order[-1])})
    assert model.margins(order).shape == (len(order), N_SAMPLES)


def test_losers_tell_as_much_as_they_were_evaluated_for() -> None:
    """Without what is known of those that ended early the prediction is worse."""
    known = SPACE.sample(60, 0)
    order = sorted(known, key=lambda arch: -accuracy(arch, 0.0))
    winners = {arch: margins_of(arch, 0.0) for arch in order[:12]}
    losers = {arch: margins_of(arch, 0.0)[:20] for arch in order[12:]}
    exact = [accuracy(arch, 0.0) for arch in OTHERS]

    def agreement(margins: dict[Arch, np.ndarray]) -> float:
        predicted = MarginModel(PRIOR, margins).predict(OTHERS).accuracy
        return float(np.corrcoef(predicted, exact)[0, 1])

    assert agreement(winners | losers) > agreement(winners)


def test_what_ended_early_is_completed() -> None:
    """Closer to the truth than to take the rest for as good as what was seen."""
    known = SPACE.sample(60, 0)
    cut = 20
    margins = {arch: margins_of(arch)[: None if i < 20 else cut] for i, arch in enumerate(known)}
    early = {arch: margins[arch] for arch in known[20:]}
    found = MarginModel(PRIOR, margins).completed(early)
    assert list(found) == list(early)
    exact = np.array([accuracy(arch) for arch in early])
    errors = np.abs(np.array(list(found.values())) - exact)
    naive = np.array([(seen > 0).mean() for seen in early.values()])
    assert errors.mean() < 0.05
    assert errors.mean() < 0.5 * np.abs(naive - exact).mean()
    assert MarginModel(PRIOR, margins).completed({}) == {}


@pytest.mark.parametrize("most", [1.0, None])
def test_scores_tell_what_branches_cost(most: float | None) -> None:
    """Before any score by their errors; after some also where these are wrong."""

    def agreement(model: ScoreModel, of_errors: float) -> float:
        values = model.draw(random.Random(0), 0.0)
        predicted = [sum(values.get(b, 0.0) for b in arch) for arch in OTHERS]
        return float(np.corrcoef(predicted, [accuracy(a, of_errors) for a in OTHERS])[0, 1])

    model = ScoreModel(PRIOR, most)
    assert agreement(model, 1.0) > 0.8
    before = agreement(model, 0.0)
    model.fit({arch: accuracy(arch, 0.0) for arch in SPACE.sample(60, 0)})
    assert agreement(model, 0.0) > before


def test_the_expected_improvement_is_that_of_many_draws() -> None:
    """From far ahead of the best to where hardly any draw is better; beyond, it goes on falling."""
    ahead, deviation = np.array([0.05, 0.0, -0.01, -0.03]), np.array([0.02, 0.01, 0.01, 0.01])
    noise = np.random.default_rng(0).standard_normal((10**6, 1))
    drawn = np.maximum(ahead + deviation * noise, 0.0).mean(axis=0)
    assert np.exp(log_improvement(ahead, deviation)) == pytest.approx(drawn, rel=0.05)
    behind = log_improvement(-np.linspace(0.01, 1.0, 100), np.full(100, 0.001))
    assert np.isfinite(behind).all()
    assert (np.diff(behind) < 0).all()
    assert np.isfinite(log_improvement(np.array([0.1, -0.1]), np.zeros(2))).all()


def test_draws_differ_by_what_is_not_known() -> None:
    def spread() -> float:
        drawn = [list(model.draw(random.Random(seed)).values()) for seed in range(50)]
        return float(np.std(drawn, axis=0).sum())

    model = ScoreModel(PRIOR, 1.0)
    before = spread()
    model.fit({arch: accuracy(arch) for arch in SPACE.sample(60, 0)})
    assert spread() < 0.8 * before


def test_a_ruined_branch_spoils_nothing_else() -> None:
    """However far it is off, the subnets without it are predicted as well."""

    def agreement(error: float) -> float:
        given = distortion(SPACE)
        errors = given.errors.copy()
        errors[0] = error
        prior = Prior(replace(given, errors=errors, products=np.diag(errors)))
        known = {
            arch: margins_of(arch) - np.float32(20 * (given.branches[0] in arch.branches))
            for arch in SPACE.sample(60, 0)
        }
        model = MarginModel(prior, known)
        sound = [arch for arch in OTHERS if given.branches[0] not in arch.branches]
        predicted = model.predict(sound).accuracy
        return float(np.corrcoef(predicted, [accuracy(arch) for arch in sound])[0, 1])

    assert agreement(1e14) > agreement(1.0) - 0.1


def test_an_unknown_branch_can_be_learned_to_be_bad() -> None:
    given = distortion(SPACE)
    unknown = np.arange(len(given.branches)) == 0
    model = ScoreModel(Prior(replace(given, unknown=unknown)), 1.0)
    bad = given.branches[0]
    model.fit({a: 0.3 if bad in a.branches else 0.9 for a in SPACE.sample(60, 0)})
    values = model.draw(random.Random(0), 0.0)
    assert values[bad] < 2 * min(value for branch, value in values.items() if branch != bad)
