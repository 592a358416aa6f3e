"""Kinds are values with options: given by name, as objects, and by packages of their own."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxelastic
from fxelastic import Supernet, UsageError, edge, kinds
from fxelastic.branches import branch_kinds
from fxelastic.cli import export_main
from fxelastic.cli.kinds import parse_kind
from tests.cli.commands import environment

PACKAGE = Path(__file__).parents[1] / "fixtures" / "scaled_kind"
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))

MODEL = """
from torch import nn
def build():
    unit = lambda: nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *(unit() for _ in range(4)),
                         nn.Flatten(), nn.Linear(1024, 4))
"""


def net() -> nn.Module:
    namespace: dict[str, Any] = {}
    exec(MODEL, namespace)
    torch.manual_seed(0)
    model: nn.Module = namespace["build"]()
    return model


def expand(**options: Any) -> Supernet:
    return fxelastic.expand(net(), 0.5, example_inputs=X, **options)


def same(one: Supernet, other: Supernet) -> bool:
    """Whether two supernets have the same branches with the same bytes."""
    a, b = one.state_dict(), other.state_dict()
    return (
        one.space == other.space
        and one.skips == other.skips
        and a.keys() == b.keys()
        and all(torch.equal(a[name], b[name]) for name in a)
    )


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is on the path, as an installed one is."""
    monkeypatch.syspath_prepend(str(PACKAGE))


@pytest.mark.parametrize(
    ("named", "given"),
    [
        (
            {"max_size": 9},
            (kinds.Merged(), kinds.Pruned(), kinds.Skip(), kinds.Separable()),
        ),
        ({"kinds": ("merged",), "spans": (1,)}, (kinds.Merged(spans=(1,)),)),
        ({"kinds": ("pruned",), "prune": [0.5]}, (kinds.Pruned(ratios=(0.5,)),)),
        (
            {"kinds": ("skip", "pruned"), "importance": "bn"},
            ("skip", kinds.Pruned(importance="bn")),
        ),
    ],
)
def test_names_are_shorthands_for_objects(named: dict[str, Any], given: tuple[Any, ...]) -> None:
    assert same(expand(**named), expand(kinds=given))


def test_a_kind_given_twice_makes_its_branches_once() -> None:
    assert same(expand(kinds=("skip",)), expand(kinds=("skip", kinds.Skip(), "original")))


def test_each_kind_may_have_data_of_its_own() -> None:
    """Symptom: kinds whose data is tensors could not be compared."""
    one, other = (
        kinds.LowRank(ranks=(rank,), calibration=(((torch.randn(4, 3, 8, 8),), {}),))
        for rank in (0.5, 0.25)
    )
    alone, both = expand(kinds=(one,)), expand(kinds=(one, one, other))
    assert set(alone.branches) < set(both.branches)


def test_activations_get_the_calibration_data_of_the_call() -> None:
    data = torch.randn(4, 3, 8, 8)
    ranked = kinds.Pruned(importance="activation")
    named = expand(kinds=("pruned",), importance="activation", calibration=data)
    assert same(named, expand(kinds=(ranked,), calibration=data))
    with pytest.raises(UsageError, match="needs calibration data"):
        fxelastic.expand("no model", kinds=(ranked,))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [kinds.Merged, 3, object()])
def test_what_is_not_a_kind_is_refused(kind: object) -> None:
    with pytest.raises(UsageError, match="kinds must be a sequence of names and kinds"):
        fxelastic.expand("no model", kinds=(kind,))  # type: ignore[arg-type]


def test_exits_are_at_numbers_of_blocks() -> None:
    with pytest.raises(UsageError, match="at must be 'auto' or numbers of blocks, got 'half'"):
        kinds.Exit(at="half")


def test_built_in_kinds_are_frozen_dataclasses() -> None:
    for kind in (kinds.Merged(), kinds.Pruned(), kinds.Skip()):
        assert dataclasses.is_dataclass(kind)
        with pytest.raises(dataclasses.FrozenInstanceError):
            kind.anything = 1  # type: ignore[union-attr]


def test_another_packages_kind_takes_its_options_in_python(installed: None) -> None:
    from scaled_kind import Scaled

    assert "scaled" in branch_kinds()
    supernet = expand(kinds=(Scaled(factor=0.25, every=2), "skip"))
    scaled = [branch for branch in supernet.branches.values() if branch.kind == "scaled"]
    assert scaled
    original = supernet.branches[f"original@{scaled[0].start}"].module
    assert scaled[0].note == "weights times 0.25"
    for name, weight in scaled[0].module.named_parameters():
        assert torch.equal(weight, 0.25 * original.get_parameter(name))
    by_default = expand(kinds=("scaled",))
    assert len([b for b in by_default.branches.values() if b.kind == "scaled"]) > len(scaled)


def test_another_packages_kind_takes_its_options_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    env = environment()
    env["PYTHONPATH"] = f"{env['PYTHONPATH']}:{PACKAGE}"
    code = "import sys; from fxelastic.cli import export_main; sys.exit(export_main(sys.argv[1:]))"
    argv = ["model.py:build", "out", "--example-input", "2x3x8x8", "--gamma", "0.5", "--no-verify"]
    argv += ["--kind", "scaled:factor=0.25,every=2", "--quiet", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *argv],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["n_branches"] > 0
    found = {spec.kind for spec in edge.load(tmp_path / "out").space.branches}
    assert found == {"original", "scaled"}


def test_a_kind_is_named_by_its_module_or_file(installed: None) -> None:
    from scaled_kind import Scaled

    assert parse_kind("scaled_kind:Scaled:factor=2") == Scaled(factor=2.0)
    assert parse_kind("scaled_kind:Scaled") == Scaled()
    found = parse_kind(f"{PACKAGE}/scaled_kind/__init__.py:Scaled:every=3")
    assert dataclasses.asdict(found) == {"factor": 0.5, "every": 3}  # type: ignore[call-overload]


def test_options_are_parsed_by_the_types_of_the_fields() -> None:
    assert parse_kind("merged") == kinds.Merged()
    assert parse_kind("merged:spans=1") == kinds.Merged(spans=(1,))
    assert parse_kind("merged:spans=1,3") == kinds.Merged(spans=(1, 3))
    parsed = parse_kind("pruned:ratios=0.25,0.75,importance=bn,round_to=4")
    assert parsed == kinds.Pruned(ratios=(0.25, 0.75), importance="bn", round_to=4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "there is no branch kind 'nothing'"),
        ("nothing:factor=1", "there is no branch kind 'nothing'"),
        ("merged:depth=1", "Merged has no option 'depth'"),
        ("skip:depth=1", "Skip has no option 'depth'"),
        ("merged:spans=one", "spans must be an integer"),
        ("merged:spans=0", "spans must hold integers of at least 1"),
        ("merged:1,2", "'1' is not an option with a value"),
        ("pruned:round_to=4,8", "round_to must be one value"),
        ("pruned:round_to=4,round_to=8", "has the option 'round_to' twice"),
        ("pruned:ratios=2", "ratios must hold numbers above 0 and below 1"),
        ("pruned:calibration=1", "can't be given on the command line"),
        ("json:dumps", "does not refer to a branch kind"),
        ("pruned:round_to=0", "round_to must be at least 1, got 0"),
        ("no_such_module:Kind", "there is no module 'no_such_module'"),
    ],
)
def test_wrong_options_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_kind(text)
    assert message in str(caught.value)


def test_a_wrong_option_is_refused_before_the_model_is_built(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = ["no_such_model.py:build", str(tmp_path / "out"), "--kind", "merged:depth=1"]
    assert export_main(argv) == 2
    assert "Merged has no option 'depth'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("size: int", "missing 1 required positional argument"),
        ("size: Unknown = 1", "Wanted fails"),
        ("size: int = 1", "Wanted fails"),
    ],
)
def test_a_kind_of_ones_own_that_fails_is_named(tmp_path: Path, fields: str, message: str) -> None:
    """Symptom: an internal error, for a mistake in the user's file."""
    path = tmp_path / f"own_{abs(hash(fields))}.py"
    path.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n"
        f"@dataclass(frozen=True)\nclass Wanted:\n    {fields}\n    name = 'wanted'\n"
        "    def __post_init__(self):\n        raise ValueError('Wanted fails')\n"
        "    def make(self, partition, seed=0):\n        return iter(())\n"
    )
    option = "" if fields == "size: int" else ":size=2"
    with pytest.raises(UsageError, match="Wanted can't be created") as caught:
        parse_kind(f"{path}:Wanted{option}")
    assert message in str(caught.value)
