"""The package's public names exist, and nothing else pretends to."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest

import fxelastic
from fxelastic import errors


@pytest.mark.parametrize("name", fxelastic.__all__)
def test_public_name_can_be_had(name: str) -> None:
    assert getattr(fxelastic, name) is not None
    assert name in dir(fxelastic)


def test_every_error_is_public() -> None:
    assert set(errors.__all__) <= set(fxelastic.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'partitoin'"):
        fxelastic.partitoin  # noqa: B018


def test_a_name_is_the_same_object_each_time() -> None:
    assert fxelastic.partition is fxelastic.partition
    assert fxelastic.Block is importlib.import_module("fxelastic.ir").Block


def test_version_is_in_the_changelog() -> None:
    changelog = (Path(__file__).parents[1] / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[{re.escape(fxelastic.__version__)}\]", changelog, re.MULTILINE)


def test_installed_version_is_the_packages() -> None:
    assert importlib.metadata.version("fxelastic") == fxelastic.__version__
