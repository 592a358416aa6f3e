"""A branch spec is checked when it is made."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from fxelastic import UsageError
from fxelastic.spec import BranchSpec, branch_id

GOOD = BranchSpec("merged@3-5", "merged", 3, 5, 100, 2000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": ""}, "no usable id: it is empty"),
        ({"id": "a,b"}, "no usable id: an id has letters"),
        ({"id": "a b"}, "no usable id: an id has letters"),
        ({"id": "../a"}, "no usable id: an id has letters"),
        ({"id": "a/b"}, "no usable id: an id has letters"),
        ({"id": "a\n"}, "no usable id: an id has letters"),
        ({"id": 3}, "no usable id: int is no text"),
        ({"kind": ""}, "branch 'merged@3-5' has no kind"),
        ({"start": -1}, "start is no count"),
        ({"start": True}, "start is no count"),
        ({"stop": 5.0}, "stop is no count"),
        ({"n_params": -1}, "n_params is no count"),
        ({"flops": None}, "flops is no count"),
        ({"start": 5}, "stands in for no block"),
        ({"start": 6}, "stands in for no block"),
    ],
)
def test_malformed_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(GOOD, **change)


def test_usual_ids() -> None:
    assert branch_id("original", 3, 4) == "original@3"
    assert branch_id("merged", 3, 5) == "merged@3-5"
    assert str(GOOD) == "merged@3-5 [3, 5)"
