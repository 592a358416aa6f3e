"""Cascades as data: what they are checked for, their text, their JSON and their cost."""

from __future__ import annotations

from typing import Any

import pytest

from fxelastic.errors import UsageError
from fxelastic.spec import Arch, BranchSpec, SearchSpace
from fxelastic.spec.cascade import Cascade
from fxelastic.spec.costs import BranchCosts

FIRST = Arch(("original@0", "exit@1-3"))
SECOND = Arch(("original@0", "original@1", "exit@2-3"))
WHOLE = Arch(("original@0", "original@1", "original@2"))
CASCADE = Cascade((FIRST, SECOND, WHOLE), (0.9, 0.1 + 0.2), "margin")


def test_the_text_and_json_are_read_again() -> None:
    text = (
        "margin>=0.9: original@0,exit@1-3; margin>=0.30000000000000004: "
        "original@0,original@1,exit@2-3; original@0,original@1,original@2"
    )
    assert str(CASCADE) == text
    assert Cascade.parse(text) == CASCADE
    assert Cascade.from_json(CASCADE.to_json()) == CASCADE
    alone = Cascade((WHOLE,), ())
    assert Cascade.parse(str(alone)) == alone


@pytest.mark.parametrize(
    "text",
    [
        "",
        "original@0; original@0",
        "margin>=x: original@0,exit@1-3; original@0,original@1",
        "margin>=0.5: original@0,exit@1-3",
        "margin: original@0,exit@1-3; original@0,original@1",
        "margin>=0.9: original@0,exit@1-3; entropy>=0.5: original@0,a@1,exit@2-3; "
        "original@0,a@1,a@2",
    ],
)
def test_malformed_texts_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Cascade.parse(text)


@pytest.mark.parametrize(
    ("archs", "thresholds"),
    [
        ((FIRST, WHOLE), ()),
        ((FIRST, WHOLE), (0.5, 0.5)),
        ((), ()),
        ((FIRST, WHOLE), (float("inf"),)),
        ((FIRST, FIRST), (0.5,)),
        ((SECOND, FIRST), (0.5,)),
        ((SECOND, Arch(("original@0", "pruned@1", "original@2"))), (0.5,)),
    ],
)
def test_subnets_that_form_no_cascade_are_refused(archs: Any, thresholds: Any) -> None:
    with pytest.raises(UsageError):
        Cascade(archs, thresholds)


def test_the_subnets_are_in_the_search_space() -> None:
    specs = [
        *(BranchSpec(f"original@{i}", "original", i, i + 1, 1, 1) for i in range(3)),
        BranchSpec("exit@1-3", "exit", 1, 3, 1, 1),
    ]
    space = SearchSpace(3, tuple(specs))
    Cascade((FIRST, WHOLE), (0.5,)).validate(space)
    with pytest.raises(UsageError):
        CASCADE.validate(space)


def test_a_branch_costs_where_samples_get() -> None:
    costs = BranchCosts(
        {
            "original@0": 1.0,
            "original@1": 2.0,
            "original@2": 4.0,
            "exit@1-3": 0.25,
            "exit@2-3": 0.5,
        },
        overhead=10.0,
    )
    assert CASCADE.segments == (
        ("original@0", "exit@1-3"),
        ("original@1", "exit@2-3"),
        ("original@2",),
    )
    found = CASCADE.expected_cost(costs, (1.0, 0.5, 0.25))
    assert found == pytest.approx(10 + 1.25 + 0.5 * 2.5 + 0.25 * 4)


@pytest.mark.parametrize("value", [{}, {"archs": ["a@0"], "thresholds": 3, "confidence": "x"}])
def test_malformed_json_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Cascade.from_json(value)
