"""Fixtures of the tests of serving."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def usual_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare at the usual priority: at a low one, tests wait for other tests."""
    monkeypatch.setattr("fxelastic.edge.background_preparation._NICENESS", 0)
