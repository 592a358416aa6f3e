"""How long the steps of ``fxelastic run`` take, before they were ever made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fxelastic.cli.recipe import Recipe
from fxelastic.files import read_regular

# Rough figures: to start a process that imports torch; of other work; of an expansion.
_START_S, _OTHER_S, _PARAMS_PER_S = 4.0, 5.0, 5e6
# The time of a step in that of the model's forward pass on a sample: training by sample; the
# profile as a whole; a search by subnet and sample.
_DISTIL, _TUNE, _PROFILE, _SEARCH = 8.0, 4.0, 500.0, 0.5
_N_TRAINED, _N_SUBNETS, _N_SAMPLES = 6400, 400, 1000


def read_figures(folder: Path, name: str = "steps/inputs.txt") -> Mapping[str, Any]:
    """What the first step measured, and the number of subnets after an export; empty before."""
    from fxelastic.spec.bounded_json import loads

    try:
        found = loads(read_regular(folder / name, follow=True))
        if not all(type(value) in (int, float) and value >= 0 for value in found.values()):
            raise ValueError("it has other figures")
    except (OSError, ValueError, AttributeError):
        return {}
    return {**found, **_subnets(folder / "bundle")}


def _subnets(bundle: Path) -> dict[str, int]:
    from fxelastic.edge.bundle import load
    from fxelastic.errors import FxElasticError

    if not bundle.is_dir():
        return {}
    try:
        return {"n_subnets": load(bundle).space.count()}
    except FxElasticError:
        # The step that reads it says why.
        return {}


def expected_s(name: str, recipe: Recipe, figures: Mapping[str, Any]) -> float:
    """A rough estimate of the time of a step, in s.

    Args:
        name: The step's name.
        recipe: The options.
        figures: What the first step measured.
    """
    sample_s = float(figures.get("sample_s") or 0.0)
    load_s = _START_S + float(figures.get("load_s") or 0.0)
    expand_s = load_s + _OTHER_S + float(figures.get("n_params") or 0.0) / _PARAMS_PER_S
    train, search = recipe.options("train"), recipe.options("search")
    n_data = float(figures.get("n_samples") or _N_TRAINED)
    epoch_s = sample_s * n_data
    budgets = search.get("budget")
    n_budgets = len(budgets) if isinstance(budgets, list) else 1
    n_samples = min(n_data, _number(recipe.options("run").get("samples"), _N_SAMPLES))
    n_tried = n_budgets * _number(search.get("max-subnets"), _N_SUBNETS)
    # No subnet is scored twice.
    n_tried = min(n_tried, int(figures.get("n_subnets") or n_tried))
    times = {
        "inputs": load_s,
        "distil": expand_s + _DISTIL * epoch_s * _number(train.get("distill-epochs"), 0),
        "tune": expand_s + _TUNE * epoch_s * _number(train.get("tune-epochs"), 0),
        "export": 2 * expand_s,
        "profile": _OTHER_S + _PROFILE * sample_s,
        "search": _OTHER_S + _SEARCH * sample_s * n_tried * n_samples,
    }
    return times.get(name, _OTHER_S)


def _number(value: object, default: float) -> float:
    """A count in a recipe; the default for one that the step refuses."""
    return float(value) if isinstance(value, (int, float)) and value >= 0 else default


def lasting(seconds: float, *, exact: bool = False) -> str:
    """A time as text: ``about 2 min``."""
    about = "" if exact else "about "
    if seconds < 90:
        return f"{about}{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{about}{round(seconds / 60)} min"
    return f"{about}{seconds / 3600:.1f} h"
