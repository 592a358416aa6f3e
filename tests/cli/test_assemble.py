"""``fxelastic assemble``."""

from __future__ import annotations

from pathlib import Path

import pytest

from fxelastic import edge
from fxelastic.cli import main
from tests.edge.serving.tiny_bundle import write_bundle


@pytest.mark.parametrize("name", ["manifest.json", "branches/original@0.onnx", "subnet.onnx", ""])
def test_no_file_of_the_bundle_is_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    bundle = write_bundle(tmp_path / "bundle", depth=1)
    out = bundle.path / name
    assert main(["assemble", str(bundle.path), "original", str(out), "--force"]) == 2
    assert "would change the bundle" in capsys.readouterr().err
    assert edge.load(bundle.path).digest == bundle.digest
    assert main(["assemble", str(bundle.path), "original", str(tmp_path / "subnet.onnx")]) == 0
