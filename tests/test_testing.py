"""The helper for test suites passes, fails and updates as it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fxelastic
from fxelastic.errors import UsageError
from fxelastic.testing import assert_partition
from tests.cli.commands import environment

X = torch.ones(2, 6)


def model(depth: int) -> nn.Module:
    return nn.Sequential(*[nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(depth)])


def test_update_then_pass_then_fail(tmp_path: Path) -> None:
    golden = tmp_path / "deep" / "golden.txt"
    made = assert_partition(model(3), golden, gamma=0.4, example_inputs=X, update=True)
    assert made.to_text() == golden.read_text()
    assert_partition(model(3), str(golden), gamma=0.4, example_inputs=X)
    with pytest.raises(AssertionError) as raised:
        assert_partition(model(4), golden, gamma=0.4, example_inputs=X)
    message = str(raised.value)
    assert "parameters 126 -> 168" in message
    assert f"--- {golden}" in message
    assert "update=True" in message


def test_golden_text_in_the_test_itself() -> None:
    text = fxelastic.partition(model(2), gamma=0.5, example_inputs=X).to_text()
    assert_partition(model(2), text, gamma=0.5, example_inputs=X)
    with pytest.raises(AssertionError, match="is not the golden one"):
        assert_partition(model(2), text, gamma=1.0, example_inputs=X)


def test_missing_golden_file_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"no golden file .*none\.txt.*update=True"):
        assert_partition(model(1), tmp_path / "none.txt")


def test_golden_text_cannot_be_updated() -> None:
    with pytest.raises(UsageError, match="can't be updated"):
        assert_partition(model(1), "a\nb\n", update=True)


def test_environment_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UPDATE", "UPDATE_GOLDEN", "FXELASTIC_UPDATE"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(AssertionError, match="no golden file"):
        assert_partition(model(1), tmp_path / "none.txt", example_inputs=X)


def test_importing_the_helper_imports_no_torch() -> None:
    script = "import sys, fxelastic.testing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], env=environment()).returncode == 0
