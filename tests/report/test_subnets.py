"""The rows of a report, the recommended subnet, and the headline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fxelastic.report.run_folder import RunFolder
from fxelastic.report.subnets import headline, rows_of


def subnet(arch: str, ms: float, accuracy: float, budget: str) -> dict[str, Any]:
    return {
        "arch": arch,
        "predicted_ms": ms,
        "measured_ms": 1.1 * ms,
        "accuracy": accuracy,
        "budget": budget,
        "budget_ms": ms,
        "n_replaced": 1,
    }


def found(arch: str, ms: float, accuracy: float) -> dict[str, Any]:
    return {"arch": arch, "latency_ms": ms, "accuracy": accuracy, "budget_ms": ms}


def a_run(**parts: Any) -> RunFolder:
    original = {"arch": "whole", "predicted_ms": 2.0, "measured_ms": 2.2, "accuracy": 0.97}
    measured = {
        "original": original,
        "subnets": [
            subnet("a", 0.5, 0.7, "30%"),
            subnet("b", 1.0, 0.961, "60%"),
            subnet("b", 1.0, 0.961, "70%"),
            subnet("whole", 2.0, 0.97, "100%"),
        ],
    }
    search = {
        "budgets": [
            found("a", 0.5, 0.72),
            found("b", 1.0, 0.955),
            found("b", 1.0, 0.955),
            found("whole", 2.0, 0.96),
        ]
    }
    return RunFolder(Path("run"), **{"measured": measured, "search": search, **parts})


def test_each_subnet_has_one_row_with_all_of_its_budgets() -> None:
    rows = rows_of(a_run())
    assert [row.name for row in rows] == ["original", "subnet 1", "subnet 2"]
    assert [row.budgets for row in rows] == [("100%",), ("60%", "70%"), ("30%",)]


def test_the_quickest_that_is_nearly_as_good_is_recommended() -> None:
    (best,) = [row for row in rows_of(a_run()) if row.recommended]
    assert (best.arch, best.score, best.accuracy) == ("b", 0.955, 0.961)


def test_the_recommended_one_is_chosen_by_the_search_and_not_by_the_test() -> None:
    run = a_run()
    assert run.search is not None
    run.search["budgets"][0]["accuracy"] = 0.955  # Only the test says that it is bad.
    (best,) = [row for row in rows_of(run) if row.recommended]
    assert best.arch == "a"


def test_the_headline_compares_what_was_measured() -> None:
    expected = (
        "2.0× faster at −0.9 points on test data: subnet 1 takes 50% of the original's latency"
    )
    assert headline(rows_of(a_run())) == expected


def test_a_search_alone_has_a_headline_of_scores() -> None:
    run = a_run(measured=None)
    assert run.search is not None
    search = {**run.search, "original_ms": 2.0}
    rows = rows_of(a_run(measured=None, search=search))
    assert rows[0].is_original
    assert all(row.accuracy is None for row in rows)
    assert headline(rows).startswith("2.0× faster: ")


def test_a_search_that_scored_the_original_compares_scores() -> None:
    search = {
        "budgets": [found("b", 1.0, 0.955)],
        "original_ms": 2.0,
        "original": {"latency_ms": 2.0, "accuracy": 0.96, "energy_mj": 7.0},
    }
    rows = rows_of(a_run(measured=None, search=search))
    assert (rows[0].score, rows[0].energy_mj) == (0.96, 7.0)
    assert headline(rows).startswith("2.0× faster at −0.5 points by the search's score: ")


def test_without_an_original_there_is_no_headline() -> None:
    assert headline(rows_of(a_run(measured=None))) == ""


def test_cascades_come_last_with_their_bound() -> None:
    cascade = {"latency_ms": 0.8, "coverage": [0.6, 0.4], "bound": 0.019, "accuracy": 0.95}
    search = {**(a_run().search or {}), "cascades": [cascade]}
    row = rows_of(a_run(search=search))[-1]
    assert (row.name, row.ms, row.score, row.accuracy) == ("cascade 1", 0.8, 0.95, None)
    assert row.note == "60% of the samples leave early; the bound on its loss is 1.9%"
    assert not row.recommended
