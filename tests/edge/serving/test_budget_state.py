"""What is told about the budget."""

from __future__ import annotations

from fxelastic.edge.serving.policy import BudgetState


def heard(verdict: BudgetState, *said: tuple[float, bool], budget_ms: float = 10.0) -> list[float]:
    """When it changed."""
    return [now_s for now_s, met in said if verdict.update(met, budget_ms, now_s)]


def test_that_it_cannot_be_kept_holds_at_once_and_the_opposite_after_a_while() -> None:
    verdict = BudgetState(kept_s=1.0)
    assert verdict.met
    assert heard(verdict, (0.0, True), (0.1, False)) == [0.1]
    assert not verdict.met
    assert verdict.again_s is None
    assert heard(verdict, (0.2, False), (0.3, True)) == []
    assert verdict.again_s == 1.0
    assert heard(verdict, (1.2, True), (1.3, True)) == [1.3]
    assert verdict.met
    assert verdict.again_s is None


def test_another_budget_is_judged_at_once() -> None:
    verdict = BudgetState(kept_s=1.0)
    assert heard(verdict, (0.0, False), (0.1, True)) == [0.0]
    assert heard(verdict, (0.2, True), budget_ms=20.0) == [0.2]


def test_a_load_on_the_edge_is_told_once() -> None:
    verdict = BudgetState(kept_s=1.0)
    edge = [(i / 20, i % 15 < 7) for i in range(600)]
    assert heard(verdict, *edge) == [7 / 20]
    assert not verdict.met


def test_where_the_clock_is_set_back_the_while_begins_anew() -> None:
    verdict = BudgetState(kept_s=1.0)
    assert heard(verdict, (100.0, False), (101.0, True), (50.0, True), (50.9, True)) == [100.0]
    assert heard(verdict, (51.0, True)) == [51.0]
