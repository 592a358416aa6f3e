"""The steps that a pool's entries make."""

from __future__ import annotations

import random

import pytest

from fxelastic.edge.serving.ladder import Ladder
from fxelastic.errors import UsageError
from tests.edge.serving.simulation import Entry, entry, ladder


def test_beaten_entries_are_no_steps() -> None:
    made = Ladder.of([entry(3, 0.7, "c"), entry(1, 0.5, "a"), entry(2, 0.4, "b"), entry(3, 0.6)])
    assert [step.latency_ms for step in made.steps] == [1, 3]
    assert [step.accuracy for step in made.steps] == [0.5, 0.7]


def test_best_under_is_what_a_scan_finds() -> None:
    rng = random.Random(0)
    entries = [entry(rng.uniform(1, 50), rng.random(), f"s{i}") for i in range(300)]
    made = Ladder.of(entries)
    for limit_ms in [0.0, 1.0, 60.0, *[rng.uniform(0, 60) for _ in range(200)]]:
        fitting = [e for e in entries if e.latency_ms <= limit_ms]
        best = made.best_under(limit_ms)
        if not fitting:
            assert best is None
        else:
            assert best is not None
            assert best.latency_ms <= limit_ms
            assert best.accuracy == max(e.accuracy for e in fitting)


def test_the_limit_itself_fits() -> None:
    best = ladder(1, 2, 3).best_under(2)
    assert best is not None
    assert best.latency_ms == 2


def test_what_was_left_out_uncovers_what_it_beat() -> None:
    entries = [entry(2, 0.7, "a"), entry(3, 0.6, "b")]
    assert len(Ladder.of(entries)) == 1
    (step,) = Ladder.of(entries, without={entries[0].arch}).steps
    assert step.arch == entries[1].arch


def test_only_keeps_the_order() -> None:
    made = ladder(1, 2, 3, 4)
    kept = made.only({made.steps[3].arch, made.steps[1].arch})
    assert [step.latency_ms for step in kept.steps] == [2, 4]


def test_an_empty_ladder_has_nothing() -> None:
    assert Ladder(()).best_under(1e9) is None
    assert Ladder(()).quickest is None
    assert len(Ladder(())) == 0


@pytest.mark.parametrize(
    ("latency_ms", "accuracy"), [(float("nan"), 0.5), (-1.0, 0.5), (0.0, 0.5), (1.0, float("nan"))]
)
def test_what_can_t_be_ranked_is_refused(latency_ms: float, accuracy: float) -> None:
    bad = Entry(entry(1, 0.5).arch, latency_ms, accuracy)
    with pytest.raises(UsageError, match="can't be ranked"):
        Ladder.of([bad])
