"""Percentiles of the latest requests, and the check of the option."""

from __future__ import annotations

import pytest

from fxelastic.edge.monitoring.recent_latencies import RecentLatencies, check_percentile
from fxelastic.errors import UsageError


def test_percentiles_and_the_share_over_the_budget() -> None:
    recent = RecentLatencies(window_s=10.0)
    assert recent.update(0.0) is None
    for i in range(100):
        recent.add(i / 100, 29.0 if i % 10 == 0 else 0.5, 0.98)
    found = recent.update(1.0)
    assert found is not None
    assert (found.p50_ms, found.p95_ms, found.p99_ms, found.n) == (0.5, 29.0, 29.0, 100)
    assert found.share_over == pytest.approx(0.1)
    assert recent.n_over == 10


def test_old_requests_leave_the_window_and_stay_in_the_count() -> None:
    recent = RecentLatencies(window_s=10.0)
    recent.add(0.0, 5.0, 1.0)
    recent.add(20.0, 0.5, 1.0)
    found = recent.update(20.0)
    assert found is not None
    assert (found.n, found.share_over, recent.n_over) == (1, 0.0, 1)


def test_a_summary_is_kept_for_half_a_second() -> None:
    recent = RecentLatencies()
    recent.add(0.0, 1.0, 1.0)
    first = recent.update(0.0)
    recent.add(0.1, 9.0, 1.0)
    assert recent.update(0.4) is first
    assert recent.update(0.4, now=True) is not first
    recent.add(0.5, 9.0, 1.0)
    later = recent.update(1.0)
    assert later is not None
    assert later.n == 3
    # The clock was set back.
    assert recent.update(0.0) is not later


@pytest.mark.parametrize("percentile", [49, 100, -1, "95", True])
def test_a_percentile_out_of_range_is_refused(percentile: float) -> None:
    with pytest.raises(UsageError, match="latency_percentile must be from 50"):
        check_percentile(percentile)
