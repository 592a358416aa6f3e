"""Estimates of the time of steps that were never made."""

from __future__ import annotations

from pathlib import Path

import pytest

from fxelastic.cli.recipe import Recipe
from fxelastic.cli.run_times import expected_s, lasting, read_figures
from tests.edge.serving.tiny_bundle import write_bundle

FIGURES = {"sample_s": 0.01, "load_s": 1.0, "n_params": 5e6, "n_samples": 200}


def recipe(**search: object) -> Recipe:
    options = {"train": {"distill-epochs": 3}, "search": {"budget": ["60%"]}}
    return Recipe(Path(), options).changed({"search": search})


def test_a_search_takes_no_more_samples_and_subnets_than_there_are() -> None:
    whole = expected_s("search", recipe(), FIGURES)
    assert expected_s("search", recipe(), {**FIGURES, "n_samples": 100}) < 0.6 * whole
    assert expected_s("search", recipe(), {**FIGURES, "n_samples": 10**6}) < 6 * whole
    assert expected_s("search", recipe(), {**FIGURES, "n_subnets": 4}) < 0.1 * whole
    assert expected_s("search", recipe(), {**FIGURES, "n_subnets": 10**6}) == whole
    several = recipe(budget=["50%", "60%"])
    assert expected_s("search", several, FIGURES) > 1.9 * whole


def test_training_takes_longer_with_more_epochs() -> None:
    once = expected_s("distil", recipe(), FIGURES)
    more = recipe().changed({"train": {"distill-epochs": 6}})
    assert expected_s("distil", more, FIGURES) > 1.5 * once


def test_the_subnets_of_an_export_are_counted(tmp_path: Path) -> None:
    assert read_figures(tmp_path) == {}
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "inputs.txt").write_text('{"sample_s": 0.5}')
    assert read_figures(tmp_path) == {"sample_s": 0.5}
    bundle = write_bundle(tmp_path / "bundle")
    assert read_figures(tmp_path) == {"sample_s": 0.5, "n_subnets": bundle.space.count()}
    (bundle.path / "manifest.json").write_text("damaged")
    assert read_figures(tmp_path) == {"sample_s": 0.5}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "about 1 s"), (80, "about 80 s"), (300, "about 5 min"), (7200, "about 2.0 h")],
)
def test_times_are_rounded(seconds: float, text: str) -> None:
    assert lasting(seconds) == text
