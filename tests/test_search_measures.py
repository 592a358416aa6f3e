"""What searches took to the same accuracy is read off their histories."""

from __future__ import annotations

import math
from typing import Any

import pytest

from benchmarks.search_measures import seed_by_seed, to_the_same_average, until


def row(plain: list[tuple[int, float]], guided: list[tuple[int, float]]) -> dict[str, Any]:
    """Histories in which every subnet takes a second."""
    return {
        name: {"steps": [[n, float(n), accuracy] for n, accuracy in steps]}
        for name, steps in (("plain", plain), ("evolutionary", guided))
    }


ROWS = [
    row([(10, 0.5), (100, 0.8)], [(10, 0.6), (20, 0.8), (30, 0.9)]),
    row([(10, 0.5), (300, 0.9)], [(10, 0.6), (60, 0.8), (90, 0.9)]),
]


def test_means_of_seeds_reach_the_plain_search() -> None:
    assert to_the_same_average(ROWS, "plain", "subnets") == (60, 300)
    assert to_the_same_average(ROWS, "plain", "seconds") == (60.0, 300.0)


def test_seed_by_seed_counts_from_when_the_plain_search_had_it() -> None:
    assert seed_by_seed(ROWS, "plain", "subnets") == pytest.approx((20 / 100 + 90 / 300) / 2)


def test_what_is_never_reached_takes_for_ever() -> None:
    assert until([[[10, 1.0, 0.5]]], 0.6, 0) == math.inf


def test_a_search_that_has_nothing_yet_has_no_mean() -> None:
    assert until([[[10, 1.0, 0.9]], [[50, 5.0, 0.1]]], 0.5, 0) == 50
