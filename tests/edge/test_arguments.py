"""A path in place of what it holds is refused, and the message names what reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fxelastic import edge
from fxelastic.errors import UsageError

PATH: Any = Path("somewhere")
CALLS: dict[str, Callable[[Any], object]] = {
    "profile": lambda path: edge.profile(path),
    "assemble": lambda path: edge.assemble(path, None, "subnet.onnx"),  # type: ignore[arg-type]
    "search": lambda path: edge.search(path, None, None),  # type: ignore[arg-type]
    "serve": lambda path: edge.serve(path, None, [], budget_ms=1),
}


@pytest.mark.parametrize("path", [PATH, str(PATH)], ids=["path", "text"])
@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_a_path_is_no_bundle(call: Callable[[Any], object], path: Any) -> None:
    with pytest.raises(
        UsageError, match=r"bundle must be a Bundle, not a path[^$]*edge\.load\(path\)"
    ):
        call(path)


def test_a_path_is_no_table() -> None:
    bundle: Any = object()
    with pytest.raises(
        UsageError, match=r"table must be a LatencyTable, not a path[^$]*LatencyTable\.load"
    ):
        edge.search(bundle, PATH, None)
    with pytest.raises(
        UsageError, match=r"table must be a LatencyTable, not a path[^$]*LatencyTable\.load"
    ):
        edge.serve(bundle, PATH, [], budget_ms=1)


def test_a_path_is_no_pool() -> None:
    bundle: Any = object()
    with pytest.raises(
        UsageError, match=r"pool must be a SubnetPool, not a path[^$]*SubnetPool\.load"
    ):
        edge.serve(bundle, None, PATH, budget_ms=1)
