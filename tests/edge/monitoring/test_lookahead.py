"""The latency under load, and what is expected of it."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from fxelastic.edge.monitoring.forecast import LAST_VALUE, Contest, repeated, trend
from fxelastic.edge.monitoring.load_model import LoadModel
from fxelastic.edge.monitoring.lookahead import Lookahead
from fxelastic.edge.monitoring.resource_monitor import Resources
from tests.edge.serving.simulation import FakeReader


def test_the_latency_is_learnt_as_a_function_of_the_load() -> None:
    model, rng = LoadModel(), random.Random(0)

    def actual(load: float) -> float:
        return 1.0 + 0.2 * load + 4.0 * max(0.0, load - 0.8)

    assert model.predict(0.9, Resources(0.0, load_index=0.1)) == 1.0
    for _ in range(300):
        load = rng.random()
        model.add(Resources(0.0, load_index=load), actual(load) + rng.gauss(0, 0.02))
    for load in (0.1, 0.5, 0.95):
        found = model.predict(load, Resources(0.0, load_index=load))
        assert found == pytest.approx(actual(load), abs=0.06)


def test_a_lower_frequency_is_slower_at_the_same_load() -> None:
    model, rng = LoadModel(), random.Random(0)
    for _ in range(300):
        mhz = rng.choice((1000.0, 1500.0, 3000.0))
        reading = Resources(
            0.0, load_index=rng.random(), frequency_mhz=mhz, max_frequency_mhz=3000.0
        )
        model.add(reading, 3000.0 / mhz)
    slow = Resources(0.0, frequency_mhz=1200.0, max_frequency_mhz=3000.0)
    assert model.predict(0.5, slow) == pytest.approx(2.5, abs=0.05)


def test_a_load_that_never_changes_does_not_blow_the_model_up() -> None:
    model = LoadModel()
    still = Resources(0.0, load_index=0.3)
    for _ in range(20_000):
        model.add(still, 1.1)
    model.add(Resources(0.0, load_index=0.9), 2.0)
    assert 0.0 <= model.predict(0.6, still) < 4.0


def looked(
    r: Callable[[float], float], until_s: float, load: Callable[[float], float] = lambda _: 0.5
) -> tuple[Lookahead, list[tuple[float, float | None]]]:
    """A look ahead in each twentieth of a second; returns it and ``(time, high)``."""
    now = [0.0]
    ahead, highs = Lookahead(FakeReader(load, lambda: now[0])), []
    while now[0] < until_s:
        outlook = ahead.update(now[0], r(now[0]))
        assert outlook is not None
        highs.append((now[0], outlook.high))
        now[0] += 0.05
    return ahead, highs


def test_a_ramp_is_expected_to_go_on() -> None:
    ahead, _ = looked(lambda t: 1.0 + 0.1 * max(0.0, t - 5.0), 12.0)
    assert ahead.outlook is not None
    assert ahead.outlook.ratio == pytest.approx(1.8, abs=0.08)
    assert ahead.outlook.source in ("trend", "autoregression", "load")


def test_a_burst_is_expected_after_two_of_them() -> None:
    _, highs = looked(lambda t: 2.5 if t % 10 < 4 else 1.0, 40.0)
    before = [high for time, high in highs if 29.2 < time < 29.9]
    assert all(high is not None and high > 2 for high in before)
    calm = [high for time, high in highs if 36.0 < time < 38.0]
    assert all(high is None or high < 1.5 for high in calm)


def test_noise_is_nothing_to_act_on() -> None:
    rng = random.Random(0)
    _, highs = looked(lambda _: rng.lognormvariate(0, 0.05), 60.0)
    assert max((high for _, high in highs if high is not None), default=1.0) < 1.2


def test_the_load_tells_before_the_requests_do() -> None:
    def load(t: float) -> float:
        return 0.3 + 0.6 * min(1.0, max(0.0, t % 40 - 20) / 10)

    def actual(t: float) -> float:
        return 1 + 2 * max(0.0, load(t) - 0.5)

    ahead, _ = looked(actual, 69.0, load)
    assert ahead.outlook is not None
    assert actual(69.0) + 0.03 < ahead.outlook.ratio <= actual(70.0) + 0.06  # type: ignore[operator]
    assert ahead.outlook.source != LAST_VALUE


def test_a_pause_begins_the_series_anew_and_a_clock_set_back_is_survived() -> None:
    ahead, _ = looked(lambda t: 2.5 if t % 10 < 4 else 1.0, 30.0)
    for now_s in (300.0, 5.0):
        outlook = ahead.update(now_s, 1.5)
        assert outlook is not None
        assert (outlook.ratio, outlook.source, outlook.high) == (1.5, LAST_VALUE, None)


def test_without_requests_or_a_load_index_there_is_still_an_outlook() -> None:
    now = [0.0]

    class Blind(FakeReader):
        def read(self) -> Resources:
            return Resources(now[0])

        def forecast(self, steps: int) -> float | None:
            return None

    ahead = Lookahead(Blind(lambda _: 0.0, lambda: 0.0))
    outlook = ahead.update(0.0, None)
    assert outlook is not None
    assert (outlook.ratio, outlook.load_index) == (None, None)
    for i in range(40):
        now[0] = i / 2
        outlook = ahead.update(now[0], 1.0 + 0.05 * i)
    assert outlook is not None
    assert outlook.ratio == pytest.approx(1.0 + 0.05 * 41, abs=0.05)


def test_a_model_that_is_right_by_chance_is_not_believed() -> None:
    contest, rng = Contest(1), random.Random(0)
    errors = {"model": 0.0, "last": 0.0}
    before, found = 0.0, 0.0
    for _ in range(2000):
        value = before + rng.gauss(0, 1)
        errors["model"] += abs(found - value)
        errors["last"] += abs(before - value)
        found, _ = contest.add(value, {"guess": value + rng.gauss(0, 1)})
        before = value
    assert errors["model"] <= 1.01 * errors["last"]


def test_trends_weaken_and_periods_repeat() -> None:
    line = np.linspace(0.0, 0.6, 7)
    np.testing.assert_allclose(trend(line, 3), [0.7, 0.79, 0.871], atol=1e-9)
    assert trend(np.array([0.5, 0.1]), 2).tolist() == [0.1, 0.1]
    wave = np.tile([0.1, 0.1, 0.9, 0.9, 0.1, 0.1], 8)
    np.testing.assert_allclose(repeated(wave, 8), wave[:8])
    assert repeated(np.full(60, 0.4), 2).tolist() == [0.4, 0.4]
