"""``fxelastic-export``, ``fxelastic assemble`` and ``fxelastic inspect``."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from fxelastic import edge
from fxelastic.cli import export_main, main
from tests.cli.conftest import MODEL
from tests.edge import bundles

EXAMPLE = ["--example-input", "2x3x16x16", "--kinds", "", "--gamma", "0.5", "--quiet"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that the command wrote, and what it printed as JSON."""
    folder = tmp_path_factory.mktemp("exported")
    (folder / "model.py").write_text(MODEL)
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout):
        argv = [f"{folder}/model.py:build", f"{folder}/bundle", *EXAMPLE, "--json"]
        assert export_main(argv) == 0
    (folder / "report.json").write_text(stdout.getvalue())
    return folder


def test_export_reports_what_it_wrote(exported: Path) -> None:
    report = json.loads((exported / "report.json").read_text())
    bundle = edge.load(exported / "bundle")
    assert report["schema"] == "fxelastic.export/1"
    assert report["digest"] == bundle.digest
    assert report["n_branches"] == len(bundle.space.branches)
    assert (report["conversion"], report["verified"]) == ("at-once", True)
    assert report["fusion_verified"] is True


def test_an_existing_bundle_is_kept_without_force(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(exported)
    before = (exported / "bundle" / "manifest.json").read_bytes()
    assert export_main(["nowhere.py:build", "bundle"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (exported / "bundle" / "manifest.json").read_bytes() == before


def test_weights_are_loaded(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {}
    torch.manual_seed(3)
    for name, shape in {
        "stem.weight": (8, 3, 3, 3), "stem.bias": (8,), "body.0.0.weight": (8, 8, 3, 3),
        "body.0.0.bias": (8,), "head.weight": (5, 8), "head.bias": (5,),
    }.items():  # fmt: skip
        state[name] = torch.randn(shape)
    torch.save(state, "weights.pt")
    argv = ["model.py:build", "out", *EXAMPLE, "--model-arg", "depth=1", "--no-verify"]
    assert export_main([*argv, "--weights", "weights.pt"]) == 0
    found = [
        onnx.numpy_helper.to_array(tensor)
        for segment in edge.load("out").manifest.segments
        for tensor in onnx.load(Path("out") / segment.file).graph.initializer
    ]
    assert any(a.shape == (5, 8) and (a == state["head.weight"].numpy()).all() for a in found)
    del state["head.bias"]
    torch.save(state, "weights.pt")
    assert export_main([*argv, "--force", "--weights", "weights.pt"]) == 2
    assert "--weights weights.pt can't be loaded into Net" in capsys.readouterr().err


def test_options_reach_expand_and_export(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import fxelastic

    calls: list[dict[str, object]] = []

    def stop(model: object, *args: object, **options: object) -> None:
        calls.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(fxelastic, "expand", stop)
    argv = ["--kinds", "merged,skip", "--spans", "1,3", "--prune", "0.25", "--threads", "2"]
    argv += ["--max-size", "2.5"]
    assert export_main(["model.py:build", "out", *argv]) == 130
    (options,) = calls
    assert options["kinds"] == ("merged", "skip")
    assert options["spans"] == (1, 3)
    assert options["prune"] == (0.25,)
    assert options["max_size"] == 2.5
    assert options["threads"] == 2
    assert not Path("out").exists()
    assert export_main(["model.py:build", "out", "--spans", "one"]) == 2


def test_assemble_writes_a_subnet(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.onnx"
    argv = ["assemble", str(exported / "bundle"), "original", str(out), "--quiet"]
    assert main([*argv, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["inputs"], report["outputs"]) == (["x"], ["output"])
    assert report["size_bytes"] == out.stat().st_size
    assert [value.name for value in onnx.load(out).graph.output] == ["output"]
    assert main(argv) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*argv, "--force"]) == 0
    assert main(["assemble", str(exported / "bundle"), "original@7", "o.onnx"]) == 2
    assert "no branch 'original@7'" in capsys.readouterr().err


def test_inspect_shows_the_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = bundles.write(tmp_path / "bundle")
    assert main(["inspect", str(folder)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Net: 40 parameters (P0), any batch size; ONNX opset 20")
    assert "input   x: float32[N, 3]" in out
    assert "result  features: float32[64*N, 8]" in out
    assert re.search(r"merged@1-3 +\[1, 3\) +10 +100 +40 B  layer1 to layer2", out)
    assert "cuts change" not in out
    assert "fusions that cuts separate: 1 x add-layer-norm" in out
    assert main(["inspect", str(folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["n_subnets"] == 3
    assert [branch["id"] for branch in report["branches"]][:2] == ["original@0", "original@1"]


def test_inspect_verifies_files_when_asked(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(exported / "bundle", folder)
    assert main(["inspect", str(folder), "--files"]) == 0
    assert "all verified" in capsys.readouterr().out
    path = folder / edge.load(folder).manifest.segments[0].file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert main(["inspect", str(folder)]) == 0
    assert main(["inspect", str(folder), "--files"]) == 1
    assert "has a different digest" in capsys.readouterr().err


def test_help_names_the_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert export_main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "fxelastic export torchvision.models:resnet50 bundle/" in out
    assert "exit codes: 0 " in out
    assert export_main([]) == 2


def test_the_seed_is_passed_on(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def export(*args: object, seed: int, **options: object) -> edge.Bundle:
        seen.append(seed)
        return edge.load(exported / "bundle")

    monkeypatch.setattr("fxelastic.export", export, raising=False)
    argv = [f"{exported}/model.py:build", f"{exported}/other", *EXAMPLE, "--seed", "7"]
    assert export_main(argv) == 0
    assert seen == [7]


def test_8_bit_branches_are_exported(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    np.savez(folder / "inputs.npz", x=np.random.default_rng(0).random((8, 3, 16, 16), np.float32))
    argv = ["model.py:build", "eight", *EXAMPLE, "--no-verify", "--json", "--int8-formats", "u8s8"]
    assert export_main([*argv, "--int8", "--calibration", "inputs.npz"]) == 0
    report = json.loads(capsys.readouterr().out)
    bundle = edge.load(folder / "eight")
    made = [s for s in bundle.manifest.segments if s.quantised]
    assert report["n_int8_branches"] == len(made) > 0
    assert main(["inspect", "eight"]) == 0
    assert f"{len(made)} 8-bit branches of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--int8"], "--int8 and --calibration belong together"),
        (["--calibration", "inputs.npz"], "--int8 and --calibration belong together"),
        (["--int8", "--calibration", "missing.npz"], "missing.npz can't be read"),
        (["--int8", "--calibration", "other.npz"], "does not have the model's inputs"),
    ],
)
def test_options_of_8_bit_branches_are_checked(
    folder: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    np.savez(folder / "other.npz", images=np.zeros((4, 3, 16, 16), np.float32))
    assert export_main(["model.py:build", "refused", *EXAMPLE, *options]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "refused").exists()
