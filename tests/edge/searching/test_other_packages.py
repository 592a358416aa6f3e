"""A search strategy of another package, from Python and from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fxelastic import edge
from fxelastic.cli import main
from fxelastic.edge.searching.study import strategy, strategy_names
from fxelastic.errors import UsageError
from tests.edge.serving.tiny_bundle import write_bundle

PACKAGE = Path(__file__).parents[2] / "fixtures" / "strategy_package"
X = np.random.default_rng(0).standard_normal((20, 8, 8, 8)).astype(np.float32)


@pytest.fixture
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PACKAGE))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> edge.Bundle:
    found = write_bundle(tmp_path_factory.mktemp("package") / "bundle")
    table = edge.profile(found, n_samples=3, n_subnets=0, n_held_out=0)
    table.save(found.path.with_name("bundle.latency.json"))
    np.savez(found.path.with_name("local.npz"), x=X)
    return found


@pytest.mark.usefixtures("_installed")
def test_it_is_used_from_python_by_name_and_as_an_object(bundle: edge.Bundle) -> None:
    assert "first-fitting" in strategy_names()
    table = edge.LatencyTable.load(bundle.path.with_name("bundle.latency.json"))
    made = strategy("first-fitting")(count=3, with_original=True)
    for given, n_subnets in (("first-fitting", 5), (made, 4)):
        # Branches that are slow here stay, since another resource is limited, too.
        limits = {"latency_ms": "100%", "flops": "100%"}
        result = edge.search(bundle, table, X, limits=limits, strategy=given, held_out=0.0)
        # The additive best comes before any strategy; it may be one of the others.
        assert n_subnets <= len(result.pool) <= n_subnets + 1
    assert bundle.space.original in {entry.arch for entry in result.pool}


@pytest.mark.usefixtures("_installed")
def test_it_is_used_from_the_command_line_with_options(
    bundle: edge.Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = []
    for text in ("first-fitting:count=2", "first-fitting:count=8,with_original=True"):
        out = tmp_path / f"{len(sizes)}.json"
        argv = ["search", str(bundle.path), "--data", str(bundle.path.with_name("local.npz"))]
        argv += ["--budget", "100%", "--limit", "weight_bytes=100%", "--strategy", text]
        argv += ["--held-out", "0", "--json", "--quiet", "-o", str(out)]
        assert main(argv) == 0
        found = json.loads(capsys.readouterr().out)
        assert set(found["budgets"][0]["limits"]) == {"latency_ms", "weight_bytes"}
        sizes.append(found["n_subnets"])
    assert sizes[0] in (2, 3)
    assert sizes[1] >= 8
    for text, message in (
        ("first-fitting:luck=2", "no option 'luck'"),
        ("first-fitting:2", "is not an option with a value"),
        ("second-fitting", "there is no search strategy"),
    ):
        assert main([*argv[:-8], "--strategy", text]) == 2
        assert message in capsys.readouterr().err


def test_it_is_unknown_where_it_is_not_installed() -> None:
    with pytest.raises(UsageError, match="unknown search strategy"):
        strategy("first-fitting")
