"""Budgets without a unit that were meant otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from fxelastic import edge
from fxelastic.cli.budgets import budgets_of, check_units
from fxelastic.edge.bundle import Bundle
from fxelastic.errors import UsageError
from fxelastic.spec.latency_table import LatencyTable
from tests import int8_bundles
from tests.edge.serving.tiny_bundle import write_bundle


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, LatencyTable]:
    bundle = write_bundle(tmp_path_factory.mktemp("bundle") / "bundle", depth=2)
    return bundle, edge.profile(bundle, n_samples=3, n_subnets=0, n_held_out=0)


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("60", r"did you mean 60%\? Otherwise write 60ms"),
        ("0.0001", r"did you mean 0.01%\? Otherwise write 0.0001ms"),
        ("5000", r"write 5000ms"),
    ],
)
def test_a_number_that_may_be_a_share_is_questioned(
    text: str, fix: str, measured: tuple[Bundle, LatencyTable]
) -> None:
    with pytest.raises(UsageError, match=fix):
        budgets_of(["50%", text], *measured, "assembled")


def test_units_say_what_is_meant(measured: tuple[Bundle, LatencyTable]) -> None:
    bundle, table = measured
    plain = f"{0.99 * table.predict_ms(bundle.space.original)}"
    texts = ["60%", "60ms", "0.0001 ms", plain]
    assert budgets_of(texts, bundle, table, "assembled") == ["60%", "60", "0.0001", plain]
    assert budgets_of(None, bundle, table, "assembled") is None


def test_8_bit_branches_that_the_device_does_not_use_need_no_cost(tmp_path: Path) -> None:
    """Symptom: a search of a bundle with 8-bit branches ends with "has no cost"."""
    bundle = int8_bundles.tiny(tmp_path / "bundle")
    table = edge.profile(bundle, n_samples=3, n_subnets=0, n_held_out=0)
    assert {spec.id for spec in bundle.space.branches} - set(table.costs())
    assert budgets_of(["60%"], bundle, table, "assembled") == ["60%"]


def test_a_run_needs_units() -> None:
    check_units(["60%", "20ms"])
    with pytest.raises(UsageError, match="did you mean 60%"):
        check_units(["0.6"])
    for text in ("500", "-5", "nan"):
        with pytest.raises(UsageError, match=f"write {text}ms") as caught:
            check_units([text])
        assert "did you mean" not in str(caught.value)
