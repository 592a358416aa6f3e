"""Whatever step fails or is the last one, the next run recovers and leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxelastic.edge.pool import SubnetPool
from fxelastic.spec.latency_table import LatencyTable
from tests.cli.commands import ROOT, environment
from tests.edge.serving.tiny_bundle import steady, write_bundle
from tests.edge.signing import write_keys
from tests.lanes import EXHAUSTIVE

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# Commands that import torch take longer.
WITH_TORCH = ("export", "train", "run")
QUICK = ["--samples", "3", "--subnets", "0", "--held-out", "0"]
EXPANSION = ["--example-input", "2x4", "--gamma", "0.5", "--kinds", "merged"]
# Of some 370 steps; see `injected`.
WALK = "walk-120"
MODEL = """
from torch import nn


def build() -> nn.Module:
    import torch

    torch.manual_seed(0)
    layers = (nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4), nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(4, 2))
"""
COMMANDS = {
    "export": ["export", "model.py:build", "bundle", "--force", *EXPANSION],
    "train": [
        *("train", "model.py:build", "--data", "train.npz", "--out", "trained", *EXPANSION),
        *("--distill-epochs", "1", "--tune-epochs", "1", "--batch-size", "4"),
    ],
    "run": [
        *("run", "model.py:build", "--data", "train.npz", "--out", "made", *EXPANSION),
        *("--distill-epochs", "1", "--batch-size", "4", "--budget", "200%", "--max-subnets", "2"),
    ],
    "assemble": ["assemble", "bundle", "original", "model.onnx", "--force"],
    "prepare": ["prepare", "bundle", "--pool", "bundle.pool.json", "--mode", "paged"],
    "profile": ["profile", "bundle", "--out", "new.json", *QUICK],
    "search": ["search", "bundle", "--data", "local.npz", "--budget", "120%"],
    "sign": ["sign", "bundle", "--key", "key.pem", "--counter", "7"],
    "serve": [
        *("serve", "bundle", "--pool", "bundle.pool.json", "--budget-ms", "1000"),
        *("--inputs", "images", "--outputs", "results", "--mode", "paged"),
        *("--prepared", "ready"),
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands read."""
    from fxelastic import edge

    folder = tmp_path_factory.mktemp("faults") / "template"
    folder.mkdir()
    bundle = write_bundle(folder / "bundle", depth=1, width=2, size=2)
    x = np.random.default_rng(0).standard_normal((8, 2, 2, 2)).astype(np.float32)
    np.savez(folder / "local.npz", x=x, targets=np.arange(8) % 5)
    table = steady(edge.profile(bundle, n_samples=3, n_subnets=0, n_held_out=0))
    table.save(folder / "bundle.latency.json")
    edge.search(
        bundle,
        table,
        folder / "local.npz",
        budget="120%",
        max_subnets=2,
        path=folder / "bundle.pool.json",
    )
    pool = SubnetPool.load(folder / "bundle.pool.json")
    edge.prepare(bundle, pool, mode="paged", prepared=folder / "ready")
    (folder / "model.py").write_text(MODEL)
    y = np.arange(8) % 2
    np.savez(folder / "train.npz", x=x[:, :, 0, 0].repeat(2, axis=1), y=y)
    (folder / "images").mkdir()
    np.save(folder / "images" / "a.npy", x[:1])
    return folder


def stable(found: Any) -> Any:
    """Files, or their digests, but for prepared ones: a run chooses subnets by their latency."""
    if isinstance(found, dict):
        return {name: found[name] for name in stable(list(found))}
    return [name for name in found if not name.startswith("made/bundle.prepared/")]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_next_run_recovers(name: str, folder: Path) -> None:
    if name == "sign":
        pytest.importorskip("cryptography", reason="the extra sign is not installed")
        write_keys(folder)
    steps = WALK if name == "run" else "1" if name in WITH_TORCH else "3"
    steps = "all" if EXHAUSTIVE else steps
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.injected", str(folder), steps, *COMMANDS[name]],
        cwd=ROOT,
        env={**environment(), "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    good, *faults = map(json.loads, done.stdout.splitlines())
    assert good["code"] == 0, good["said"]
    assert good["steps"] > 2
    assert faults
    for fault in faults:
        what = json.dumps(fault, indent=1)
        assert "internal error" not in fault["said"], what
        assert fault["code"] != 0 if fault["kill"] else fault["code"] in (0, 1, 2), what
        assert fault["again"] == 0, what
        assert stable(fault["files"]) == stable(good["files"]), what
        if name in WITH_TORCH:
            # Others have bytes of onnxruntime, which depend on the run.
            assert stable(fault["digests"]) == stable(good["digests"]), what
    work = folder.with_name(f"{folder.name}-work")
    SubnetPool.load(work / "bundle.pool.json")
    LatencyTable.load(work / "bundle.latency.json")
