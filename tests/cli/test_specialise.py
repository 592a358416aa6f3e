"""``fxelastic specialise``: the module, the ONNX files and the bundle are one and the same."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

import fxelastic
from fxelastic import edge
from fxelastic.backends.onnxruntime.quantisation.exact import with_unsigned_weights
from fxelastic.cli import main
from fxelastic.edge.executor import Executor

MODEL = """
import torch
from torch import nn

torch.manual_seed(0)
unit = lambda: nn.Sequential(nn.Linear(16, 16), nn.ReLU())
NET = nn.Sequential(nn.Linear(8, 16), unit(), unit(), unit(), nn.Linear(16, 4)).eval()
"""
X = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
ARCH = "original@0,skip@1,original@2,original@3"
COMMON = ("net.py:NET", "--gamma", "0.35", "--kinds", "skip", "--example-input", "2x8", "--quiet")


def specialise(folder: Path, *argv: str) -> tuple[int, str]:
    found = io.StringIO()
    argv = ("--data", str(folder / "data.npz"), "--epochs", "2", "--batch-size", "8", *argv)
    model = (str(folder / COMMON[0]), *COMMON[1:])
    with contextlib.redirect_stdout(found):
        code = main(["specialise", *model, "--threads", "1", *argv])
    return code, found.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("specialise")
    (folder / "net.py").write_text(MODEL)
    np.savez(folder / "data.npz", x=X, y=np.arange(16) % 4)
    return folder


@pytest.fixture(scope="module")
def written(folder: Path) -> dict[str, Any]:
    """What the command reports, with 8 bits."""
    int8 = ("--int8", "--int8-formats", "u8s8", "--calibration", str(folder / "data.npz"))
    code, out = specialise(folder, "--arch", ARCH, "--out", str(folder / "out"), "--json", *int8)
    assert code == 0
    report: dict[str, Any] = json.loads(out)
    return report


def module_of(folder: Path) -> torch.nn.Module:
    """The module again, from the finished run's checkpoints."""
    namespace: dict[str, Any] = {}
    exec(MODEL, namespace)
    supernet = fxelastic.expand(
        namespace["NET"], 0.35, example_inputs=torch.zeros(2, 8), kinds=("skip",)
    )
    return fxelastic.specialise(supernet, ARCH, [torch.from_numpy(X)], steps=1, lr=0.0)


def results(path: str) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(path)
    (given,) = session.get_inputs()
    assert given.shape[1] == 8
    found: np.ndarray[Any, Any] = session.run(None, {given.name: X[: _rows(given.shape[0])]})[0]
    return found


def _rows(size: Any) -> int:
    return size if isinstance(size, int) else len(X)


def test_files_hold_the_module(folder: Path, written: dict[str, Any]) -> None:
    module = module_of(folder)
    before = module(torch.from_numpy(X))
    module.load_state_dict(load_file(written["weights"]))
    expected = module(torch.from_numpy(X)).detach().numpy()
    assert not np.allclose(expected, before.detach().numpy(), atol=1e-3)
    np.testing.assert_allclose(results(written["onnx"]), expected, rtol=1e-4, atol=1e-5)
    assert written["stage"]["steps"] == 4
    # The bundle is smaller than the model's, and its original is the specialised subnet.
    bundle = edge.load(written["bundle"])
    assert bundle.space.count() > 1
    assert bundle.manifest.model.n_params == written["n_params"]
    with Executor(bundle) as executor:
        (name,) = [value.name for value in bundle.inputs]
        (found,) = executor.run(bundle.space.original, {name: X})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_8_bits_are_near_the_module(written: dict[str, Any]) -> None:
    """With exact sums: those of 8-bit weights saturate on x86 without VNNI."""
    unsigned = Path(written["int8_onnx"]).with_name("unsigned.onnx")
    onnx.save(with_unsigned_weights(onnx.load(written["int8_onnx"])), unsigned)
    exact, near = results(written["onnx"]), results(str(unsigned))
    assert 0 < np.square(near - exact).mean() < 0.02 * exact.var()
    assert isinstance(written["int8_refused"], dict)


def test_a_file_for_processors_without_vnni_is_near_the_module(written: dict[str, Any]) -> None:
    """No sum saturates there, since the weights use 7 bits."""
    nodes = onnx.load(written["int8_reduced_onnx"]).graph.node
    halved = [name for node in nodes for name in node.input if name.endswith("_7bit")]
    assert len(halved) == sum(node.op_type == "Gemm" for node in nodes) > 1
    exact, near = results(written["onnx"]), results(written["int8_reduced_onnx"])
    assert 0 < np.square(near - exact).mean() < 0.05 * exact.var()


def test_a_fixed_batch_and_no_bundle(folder: Path, written: dict[str, Any]) -> None:
    out = folder / "fixed"
    argv = ("--fixed-batch", "3", "--no-bundle", "--arch", "original", "--out", str(out))
    code, text = specialise(folder, *argv)
    assert code == 0
    assert f"wrote {out / 'model.onnx'}" in text
    assert not list(out.glob("*int8*"))
    assert not (out / "bundle").exists()
    assert results(str(out / "model.onnx")).shape == (3, 4)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--arch", "original", "--fixed-batch", "0"), "--fixed-batch: must be at least 1, got 0"),
        (("--arch", "original", "--int8"), "belong together"),
        (("--arch", "original@0,wide@1-5"), "wide@1-5"),
        (("--arch", ARCH.replace("original", "u8s8+original")), "8-bit branches can't be trained"),
    ],
)
def test_wrong_options_are_refused(
    folder: Path, argv: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert specialise(folder, "--out", str(folder / "refused"), *argv)[0] == 2
    assert message in capsys.readouterr().err
