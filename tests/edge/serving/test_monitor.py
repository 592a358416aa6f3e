"""What the monitor makes of requests."""

from __future__ import annotations

import math
import random
import threading

import pytest

from fxelastic.edge.serving.monitor import Load, Monitor, Observation
from tests.edge.serving.simulation import entry

STEP = entry(10.0, 0.5)


def fed(monitor: Monitor, ratios: list[float], start_s: float = 0.0, gap_s: float = 0.01) -> float:
    now_s = start_s
    for ratio in ratios:
        now_s += gap_s
        monitor.record(Observation(now_s, STEP, 10.0 * ratio))
    return now_s


def test_there_is_no_ratio_before_enough_requests() -> None:
    monitor = Monitor(min_samples=5)
    now_s = fed(monitor, [2.0] * 4)
    assert monitor.read(now_s).ratio is None
    assert monitor.read(fed(monitor, [2.0], now_s)).ratio == 2.0


def test_the_ratio_is_the_window_s_median() -> None:
    monitor = Monitor(window_s=1.0)
    rng = random.Random(0)
    ratios = [rng.uniform(1, 2) for _ in range(51)]
    load = monitor.read(fed(monitor, ratios))
    assert load.ratio == sorted(ratios)[25]
    assert load.n_samples == 51


def test_requests_outside_the_window_do_not_count() -> None:
    monitor = Monitor(window_s=0.5)
    now_s = fed(monitor, [9.0] * 50)
    load = monitor.read(fed(monitor, [1.0] * 20, now_s + 1))
    assert load.ratio == 1.0
    assert load.n_samples == 20


def test_slow_requests_reach_further_back() -> None:
    monitor = Monitor(window_s=0.1, min_samples=5)
    load = monitor.read(fed(monitor, [1.0, 1.0, 3.0, 3.0, 3.0], gap_s=1.0))
    assert load.ratio == 3.0
    assert load.n_samples == 5


def test_of_many_requests_some_stand_for_the_whole_window() -> None:
    monitor = Monitor(window_s=1.0, max_samples=100)
    load = monitor.read(fed(monitor, [1.0] * 1200 + [2.0] * 800, gap_s=0.0004))
    assert (load.ratio, load.recent) == (1.0, 2.0)
    assert load.n_samples == 2000


def test_high_is_the_upper_level_of_a_load_that_comes_and_goes() -> None:
    monitor = Monitor(window_s=1.0)
    load = monitor.read(fed(monitor, [1.0] * 60 + [1.2, 1.2, 1.6] * 10))
    assert (load.ratio, load.recent, load.high) == (1.0, 1.2, 1.6)


def test_begin_is_the_first_request_that_says_something() -> None:
    monitor = Monitor()
    assert monitor.read(0.0).begin_s is None
    monitor.record(Observation(1.0, STEP, 30.0, first=True))
    assert monitor.read(1.0).begin_s is None
    now_s = fed(monitor, [1.0] * 9, start_s=2.0)
    assert monitor.read(now_s).begin_s == pytest.approx(2.01)
    fed(monitor, [1.0], start_s=0.5)
    load = monitor.read(0.51)
    assert load.clock_jumped
    assert load.begin_s == pytest.approx(0.51)


def test_ratios_of_several_subnets_share_a_window() -> None:
    monitor = Monitor()
    for i in range(10):
        step = entry(5.0 if i % 2 else 50.0, 0.5)
        monitor.record(Observation(i / 100, step, step.latency_ms * 1.5))
    assert monitor.read(0.1).ratio == 1.5


def test_recent_is_at_the_new_level_as_soon_as_the_median_moves() -> None:
    monitor = Monitor(window_s=10.0)
    now_s = fed(monitor, [1.0] * 50)
    load = monitor.read(fed(monitor, [2.0 + i / 1000 for i in range(51)], now_s))
    assert load.ratio == 2.0
    assert load.recent == pytest.approx(2.034, abs=0.001)


def test_half_of_the_window_may_be_spikes() -> None:
    monitor = Monitor(window_s=10.0)
    assert monitor.read(fed(monitor, [1.0, 50.0] * 20 + [1.0])).ratio == 1.0
    assert monitor.read(fed(monitor, [50.0] * 3, 1.0)).ratio == 50.0


def test_peaks_are_the_readings_that_no_later_one_reached() -> None:
    monitor = Monitor(window_s=0.05)
    now_s = 0.0
    for ratio in (1.0, 3.0, 1.5, 2.0, 1.0):
        now_s = fed(monitor, [ratio] * 10, now_s)
        load = monitor.read(now_s)
    assert [ratio for _, ratio in load.peaks] == [3.0, 2.0, 1.0]
    assert load.peak_since(0.0) == 3.0
    assert load.peak_since(load.peaks[0][0] + 0.001) == 2.0
    assert load.peak_since(now_s + 1) is None


def test_peaks_beyond_the_horizon_are_forgotten() -> None:
    monitor = Monitor(window_s=0.05, horizon_s=10.0)
    monitor.read(fed(monitor, [3.0] * 10))
    load = monitor.read(fed(monitor, [1.0] * 10, 20.0))
    assert [ratio for _, ratio in load.peaks] == [1.0]


def test_a_clock_that_is_set_back_begins_anew() -> None:
    monitor = Monitor()
    monitor.read(fed(monitor, [5.0] * 10, 1000.0))
    now_s = fed(monitor, [1.0] * 6, 3.0)
    load = monitor.read(now_s)
    assert load.clock_jumped
    assert load.ratio == 1.0
    assert load.peaks == ((now_s, 1.0),)
    assert not monitor.read(now_s).clock_jumped


def test_threads_that_end_out_of_order_are_no_jump() -> None:
    monitor = Monitor()
    for time_s in (1.0, 0.9, 1.1, 0.95, 1.2):
        monitor.record(Observation(time_s, STEP, 10.0))
    assert not monitor.read(1.2).clock_jumped


@pytest.mark.parametrize("actual_ms", [0.0, -5.0, math.inf, math.nan])
def test_impossible_latencies_are_dropped(actual_ms: float) -> None:
    monitor = Monitor()
    monitor.record(Observation(0.5, STEP, actual_ms))
    assert monitor.read(fed(monitor, [1.0] * 5, 0.5)).n_samples == 5


def test_slow_requests_are_counted_once() -> None:
    monitor = Monitor()
    now_s = fed(monitor, [1.0] * 20)
    monitor.read(now_s)
    now_s = fed(monitor, [1.0, 9.0, 1.0], now_s)
    assert monitor.read(now_s).n_slow == 1
    assert monitor.read(now_s).n_slow == 0


def test_many_threads_may_record() -> None:
    monitor = Monitor(window_s=100.0, max_samples=1000)
    threads = [
        threading.Thread(target=fed, args=(monitor, [1.0] * 200, 0.0, 1e-3)) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert monitor.read(2.0).n_samples == 1000


def test_what_was_recorded_is_handed_on_once() -> None:
    monitor = Monitor()
    fed(monitor, [1.0, 2.0])
    assert [seen.actual_ms for seen in monitor.read(1.0).fresh] == [10.0, 20.0]
    assert monitor.read(1.0).fresh == []


def test_nothing_known_is_a_load_too() -> None:
    assert Monitor().read(5.0) == Load(fresh=[])


def test_the_first_requests_of_a_session_say_nothing_but_count() -> None:
    monitor = Monitor()
    for i in range(3):
        monitor.record(Observation(0.1 * i, STEP, 50.0, first=True))
    for i in range(5):
        monitor.record(Observation(0.3 + 0.01 * i, STEP, STEP.latency_ms))
    load = monitor.read(0.4)
    assert load.ratio == 1.0
    assert load.n_samples == 5
    assert len(load.fresh) == 8


def test_a_long_input_is_not_mistaken_for_a_load() -> None:
    monitor = Monitor()
    for i in range(30):
        scale = 16.0 if i % 3 else 1.0
        monitor.record(Observation(0.01 * i, STEP, 1.2 * scale * STEP.ms, scale=scale))
    load = monitor.read(0.3)
    assert (load.ratio, load.recent, load.high) == pytest.approx((1.2, 1.2, 1.2))
    assert load.n_slow == 0
    same = Monitor()
    for i in range(30):
        same.record(Observation(0.01 * i, STEP, 1.2 * (16.0 if i % 3 else 1.0) * STEP.ms))
    assert (same.read(0.3).ratio or 0) > 10  # if the sizes were not known


def test_requests_of_sizes_without_an_estimate_are_left_out_and_counted() -> None:
    monitor = Monitor()
    for i in range(5):
        monitor.record(Observation(0.01 * i, STEP, 90.0 * STEP.ms, scale=None, sizes={"seq": 9}))
        monitor.record(Observation(0.01 * i, STEP, STEP.ms))
    load = monitor.read(0.1)
    assert (load.ratio, load.n_samples, load.n_unmeasured) == (1.0, 5, 5)
    assert len(load.fresh) == 10
    assert load.fresh[0].estimated_ms is None
    assert monitor.read(0.1).n_unmeasured == 0
