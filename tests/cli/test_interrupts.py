"""Ctrl-C in the middle of each long command: it says so, and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fxelastic import edge
from tests import warm
from tests.cli.commands import environment, fxelastic
from tests.edge.serving.tiny_bundle import write_bundle

MODEL = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    layers = [m for _ in range(6) for m in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())]
    return nn.Sequential(nn.Conv2d(3, 8, 3), *layers, nn.Flatten(), nn.Linear(8 * 30 * 30, 5))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 3, 32, 32)).astype(np.float32)
    np.savez(tmp_path / "images.npz", x=x, y=np.arange(200) % 5)
    bundle = write_bundle(tmp_path / "bundle", depth=8, width=32, size=24)
    table = edge.profile(bundle, n_samples=3, n_subnets=0, n_held_out=0)
    table.save(tmp_path / "known.json")
    x = rng.standard_normal((400, 32, 24, 24)).astype(np.float32)
    np.savez(tmp_path / "local.npz", x=x, targets=np.arange(400) % 5)
    return tmp_path


def interrupt(folder: Path, *argv: str, when: Callable[[], bool]) -> str:
    """Start a command, send it Ctrl-C as soon as something is seen; what it said."""
    with tempfile.TemporaryFile("w+") as output:
        fd = output.fileno()
        process = warm.start("fxelastic.cli", *argv, cwd=folder, stdout=fd, stderr=fd)
        until = time.monotonic() + 120
        while not when() and process.is_alive() and time.monotonic() < until:
            time.sleep(0.02)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
        process.join(120)
        output.seek(0)
        said = output.read()
    assert process.exitcode == 130, said
    assert "Traceback" not in said
    return said


def test_training_goes_on(folder: Path) -> None:
    argv = ["train", "model.py:build", "--example-input", "1x3x32x32", "--data", "images.npz"]
    argv += ["--gamma", "0.6", "--out", "out", "--batch-size", "8", "--checkpoint-every", "5"]
    argv += ["--distill-epochs", "3", "--tune-epochs", "1"]
    checkpoints = folder / "out" / "checkpoints"
    interrupt(folder, *argv, when=lambda: any(checkpoints.glob("distill-*")))
    assert not (folder / "out" / "supernet.safetensors").exists()
    done = fxelastic(*argv, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "resumed at step" in done.stdout
    assert (folder / "out" / "supernet.safetensors").exists()


def test_a_profile_goes_on(folder: Path) -> None:
    partial = folder / "bundle.latency.json.partial"
    argv = ["profile", "bundle", "--samples", "400", "--subnets", "3", "--held-out", "0"]
    interrupt(folder, *argv, when=partial.exists)
    assert partial.exists()
    assert not (folder / "bundle.latency.json").exists()
    done = fxelastic(*argv[:2], "--samples", "3", *argv[4:], cwd=folder)
    assert done.returncode == 0, done.stderr
    assert not partial.exists()
    assert (
        max(row.n for row in edge.LatencyTable.load(folder / "bundle.latency.json").rows.values())
        > 3
    )


def test_a_search_keeps_what_it_evaluated(folder: Path) -> None:
    pool = folder / "bundle.pool.json"
    argv = ["search", "bundle", "--table", "known.json", "--data", "local.npz", "--budget", "90%"]
    said = interrupt(folder, *argv, when=pool.exists)
    assert "interrupted" in said
    kept = {entry.arch for entry in edge.SubnetPool.load(pool).entries}
    assert kept
    done = fxelastic(*argv, "--max-subnets", "20", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert kept <= {entry.arch for entry in edge.SubnetPool.load(pool).entries}


def test_an_export_leaves_nothing_behind(folder: Path) -> None:
    """In a process of its own, which begins with its imports, as all commands do."""
    before = set(folder.iterdir())
    argv = ["model.py:build", "exported", "--example-input", "1x3x32x32"]
    code = "from fxelastic.cli import export_main; raise SystemExit(export_main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *argv],
        cwd=folder,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 120
    while set(folder.iterdir()) <= before | {folder / "__pycache__"} and time.monotonic() < until:
        time.sleep(0.02)  # until the folder that it works in is there
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert set(folder.iterdir()) - {folder / "__pycache__"} == before
