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
        ({"id": ""}, "invalid branch id: it is empty"),
        ({"id": "a,b"}, "invalid branch id: an id has only letters"),
        ({"id": "a b"}, "invalid branch id: an id has only letters"),
        ({"id": "../a"}, "invalid branch id: an id has only letters"),
        ({"id": "a/b"}, "invalid branch id: an id has only letters"),
        ({"id": "a\n"}, "invalid branch id: an id has only letters"),
        ({"id": 3}, "invalid branch id: an id must be a string, not int"),
        ({"kind": ""}, "the kind of branch 'merged@3-5' must be a non-empty string"),
        ({"start": -1}, "start of branch 'merged@3-5' must be at least 0"),
        ({"start": True}, "start of branch 'merged@3-5' must be at least 0"),
        ({"stop": 5.0}, "stop of branch 'merged@3-5' must be at least 0"),
        ({"n_params": -1}, "n_params of branch 'merged@3-5' must be at least 0"),
        ({"flops": None}, "flops of branch 'merged@3-5' must be at least 0"),
        ({"start": 5}, "must replace at least one block"),
        ({"start": 6}, "must replace at least one block"),
    ],
)
def test_malformed_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(GOOD, **change)


def test_usual_ids() -> None:
    assert branch_id("original", 3, 4) == "original@3"
    assert branch_id("merged", 3, 5) == "merged@3-5"
    assert str(GOOD) == "merged@3-5 [3, 5)"
