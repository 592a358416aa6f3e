"""The lists that decide what the fast lane runs name what there is."""

from __future__ import annotations

import re

import pytest

from tests.cli.commands import ROOT
from tests.lanes import FAST_MODELS, SLOW, STAND_INS, is_fast, is_stood_for
from tests.models import CASES, TAGS


@pytest.mark.parametrize("prefix", SLOW)
def test_slow_tests_exist(prefix: str) -> None:
    file, _, function = prefix.partition("::")
    if (ROOT / file).is_dir():
        assert not function
        return
    source = (ROOT / file).read_text("utf-8")
    assert not function or re.search(rf"^def {function}\(", source, re.MULTILINE)


def test_models_of_the_fast_lane_have_every_tag() -> None:
    assert CASES.keys() >= FAST_MODELS
    found = {tag for name in FAST_MODELS for tag in CASES[name].tags}
    assert found == TAGS.keys() - {"real", "slow"}


def test_every_model_is_tested_or_stood_for() -> None:
    assert CASES.keys() >= STAND_INS.keys()
    for name, others in STAND_INS.items():
        assert others
        assert CASES.keys() - STAND_INS.keys() >= set(others)
        found = {tag for other in others for tag in CASES[other].tags}
        assert found >= CASES[name].tags - {"real", "slow"}


@pytest.mark.parametrize(
    ("values", "found"),
    [(["resnet18", 0.25], False), ([0.1, "mobilenet_v2, plain"], True), ([], False)],
)
def test_models_that_others_stand_for_are_known(values: list[object], found: bool) -> None:
    assert is_stood_for(values) == found


@pytest.mark.parametrize(
    ("nodeid", "values", "fast"),
    [
        ("tests/test_acceptance.py::test_blocks", ["vit", 0.25], True),
        ("tests/test_acceptance.py::test_blocks", ["resnet50", 0.25], False),
        ("tests/branches/test_new_branches.py::test_norms", ["gpt2, plain"], False),
        ("tests/test_examples.py::test_the_demo", [], False),
        ("tests/spec/test_arch.py::test_text", ["a"], True),
    ],
)
def test_the_fast_lane_leaves_out_other_models_and_what_is_slow(
    nodeid: str, values: list[object], fast: bool
) -> None:
    assert is_fast(nodeid, values) == fast
