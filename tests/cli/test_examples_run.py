"""Every command line of the documents and of ``--help`` runs as it is written.

Each runs in a copy of one folder that holds what such lines name: a model, data, a bundle, a pool.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fxelastic
from fxelastic import edge
from fxelastic.cli import export_main, main
from fxelastic.cli.app import build_parser
from fxelastic.cli.recipe import Recipe
from fxelastic.edge.array_bytes import write_npy
from tests import warm
from tests.cli.commands import ROOT, environment
from tests.cli.docs_sessions import fenced
from tests.edge.serving.sized_table import SEQ, sized_table
from tests.edge.serving.tiny_bundle import steady, write_bundle
from tests.edge.signing import write_keys

PROGRAMS = {"fxelastic": main, "fxelastic-export": export_main}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# Small enough that every inferred input suits them, and its images are those of images.npz.
MODEL = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self, depth=3):
            super().__init__()
            torch.manual_seed(0)
            self.example_input_array = torch.zeros(2, 3, 32, 32)
            self.stem = nn.Conv2d(3, 32, 3, stride=2)
            blocks = [m for _ in range(depth) for m in (nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())]
            self.blocks = nn.Sequential(*blocks)
            self.head = nn.Linear(32, 10)

        def forward(self, x):
            return self.head(self.blocks(self.stem(x.float())).mean((2, 3)))

    class Tokens(nn.Module):
        def __init__(self, depth):
            super().__init__()
            self.embedding = nn.Embedding(50, 8)
            self.layers = nn.Sequential(*(nn.Linear(8, 8) for _ in range(depth)))

        def forward(self, input_ids, attention_mask=None):
            return self.layers(self.embedding(input_ids).mean(1))

    def build(depth=3):
        # The one example that asks for this depth is of a model that reads tokens.
        return Tokens(depth) if depth == 12 else Net(depth)

    def resnet50():
        return Net()
"""

DATA = """
    import torch

    def loaders():
        x = torch.randn(12, 3, 32, 32)
        return [(x, torch.arange(12) % 10)]
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that examples are run in copies of."""
    folder = tmp_path_factory.mktemp("examples") / "work"
    folders = ("my_project", "torchvision", "tests/golden", "golden", "images", "build/demo")
    for name in (*folders, "trained"):
        (folder / name).mkdir(parents=True)
    models = ("my_model.py", "my_project/models.py", "torchvision/models.py")
    for name in models:
        (folder / name).write_text(textwrap.dedent(MODEL))
    for name in ("my_project", "torchvision"):
        (folder / name / "__init__.py").write_text("")
    bert = MODEL.replace("Tokens(depth) if depth == 12 else Net(depth)", "Tokens(3)")
    (folder / "bert.py").write_text(textwrap.dedent(bert))
    (folder / "my_data.py").write_text(textwrap.dedent(DATA))
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((16, 3, 32, 32)).astype(np.float32), np.arange(16) % 10
    for name in ("images.npz", "train.npz", "samples.npz"):
        np.savez(folder / name, x=x, y=y)
    np.savez(folder / "inputs.npz", x=x)
    model = load(folder / "my_model.py")["build"]().eval()
    torch.save(model.state_dict(), folder / "model.pt")
    supernet = fxelastic.expand(model, 0.1)
    for name in ("net.safetensors", "trained/supernet.safetensors"):
        supernet.save(folder / name)
    bundle_of_images(folder, x, y)
    shutil.copytree(folder / "bundle", folder / "build" / "demo" / "bundle")
    shutil.copy(folder / "bundle.latency.json", folder / "build" / "demo")
    return folder


def bundle_of_images(folder: Path, x: Any, y: Any) -> None:
    """A bundle with what belongs to it, and inputs in every form."""
    bundle = write_bundle(folder / "bundle", depth=3)
    x = np.repeat(x[:, :1, :8, :8], 8, 1)
    np.savez(folder / "local.npz", x=x, targets=y % 5)
    table = steady(edge.profile(bundle, n_samples=3, n_subnets=0, n_held_out=0))
    table.save(folder / "bundle.latency.json")
    options: dict[str, Any] = {"budget": "120%", "max_subnets": 5}
    edge.search(bundle, table, (x, y % 5), path=folder / "bundle.pool.json", **options)
    for name in ("image.npy", "images/a.npy"):
        (folder / name).write_bytes(write_npy(x[:1]))
    (folder / "frames.npy").write_bytes(2 * write_npy(x[:1]))


def bundle_of_lengths(folder: Path) -> None:
    """A bundle whose inputs vary in length, with its table and samples of several lengths."""
    shutil.rmtree(folder / "bundle")
    bundle = write_bundle(folder / "bundle", depth=1, width=2, size=2, sizes=(SEQ,))
    ms = {spec.id: 1.0 + i for i, spec in enumerate(bundle.space.branches)}
    sized_table(ms, bundle_digest=bundle.digest).save(folder / "bundle.latency.json")
    (folder / "bundle.pool.json").unlink()
    x = np.random.default_rng(0).standard_normal((8, 2, 64, 2)).astype(np.float32)
    np.savez(folder / "local.npz", x=x, lengths=8 * np.arange(1, 9), targets=np.arange(8) % 5)


def load(path: Path) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": "loaded"}
    exec(path.read_text(), namespace)
    return namespace


def subcommands() -> dict[str, argparse.ArgumentParser]:
    (action,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


def help_lines() -> list[str]:
    """The examples of every ``--help``."""
    found = []
    for parser in (build_parser(), *subcommands().values()):
        text = re.sub(r" \\\n\s+", " ", parser.epilog or "")
        found += re.findall(r"^  ((?:fxelastic|torchrun|curl).*)$", text, re.MULTILINE)
    return found


def page_lines(page: Path) -> list[str]:
    """The command lines of a page's console sessions."""
    found = []
    for block in fenced(page.read_text("utf-8"), "console"):
        found += re.findall(r"^\$ ((?:fxelastic|curl).*)$", block, re.MULTILINE)
    return found


# Those of the README run one after the other, below.
LINES = sorted(
    {*help_lines(), *(line for page in PAGES[1:] for line in page_lines(page))}
    - {*page_lines(PAGES[0])}
)


def test_every_command_has_an_example() -> None:
    words = {" ".join(line.split()[:2]) for line in help_lines()}
    assert {f"fxelastic {name}" for name in subcommands()} <= words


@pytest.mark.parametrize("line", LINES)
def test_example_runs(
    line: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(prepared, tmp_path / "work"))
    monkeypatch.chdir(folder)
    arrange(line, folder)
    run(line, monkeypatch)


def arrange(line: str, folder: Path) -> None:
    """What earlier lines of a page, or other commands, would have left."""
    if line.startswith("fxelastic export") and "--force" not in line:
        shutil.rmtree(folder / "bundle")
    if "--supernet-weights" not in line:
        shutil.rmtree(folder / "trained")
    if "staged/" in line:
        (before,) = (one for one in LINES if "--out staged " in one)
        assert main([*shlex.split(before)[1:], "--quiet"]) == 0
    if line.startswith("fxelastic check") and "--update" not in line:
        argv = shlex.split(line.partition(" > ")[0].replace(" --json", ""))[1:]
        assert main([*without_arguments(argv), "--update", "--quiet"]) == 0
    if "--sizes seq" in line or "--size-percentile" in line:
        bundle_of_lengths(folder)
        if line.startswith("fxelastic profile"):
            (folder / "bundle.latency.json").unlink()
    if "key.p" in line:
        pytest.importorskip("cryptography", reason="the extra sign is not installed")
        private, _ = write_keys(folder)
        if "key.pub" in line:
            assert main(["sign", "bundle", "--key", str(private), "--quiet"]) == 0
    if "table match" in line or "--devices" in line:
        for name in ("devices/board", "measured/board", "measured/phone"):
            (folder / name).mkdir(parents=True)
            shutil.copy(folder / "bundle.latency.json", folder / name)
        for name in ("phone", "board"):
            shutil.copy(folder / "bundle.latency.json", folder / f"{name}.latency.json")
        (folder / "bundle.latency.json").unlink()
    if "--score" in line:
        (folder / "bundle.pool.json").unlink()
    if "photos" in line:
        image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
        for name in ("photos/cat", "photos/dog"):
            (folder / name).mkdir(parents=True)
            image.new("RGB", (40, 36)).save(folder / name / "a.png")
    if "run --out run" in line or "run/bundle" in line:
        (folder / "run").mkdir()
        shutil.copytree(folder / "bundle", folder / "run" / "bundle")
        shutil.copy(folder / "bundle.latency.json", folder / "run")
        recipe = {"model": {"model": "my_model.py:build"}, "train": {"data": "images.npz"}}
        samples = {"search": {"data": "local.npz"}}
        Recipe(folder / "run").changed({**recipe, **samples}).write()
    if "trace.jsonl" in line:
        argv = ["serve", "bundle", "--pool", "bundle.pool.json", "--budget-ms", "1000"]
        assert main([*argv, "--inputs", "images", "--trace", "trace.jsonl", "--quiet"]) == 0
    if line.startswith("fxelastic assemble") and "skip@" in line:
        shutil.rmtree(folder / "bundle")
        export = "fxelastic export my_model.py:build bundle --kinds skip --gamma 0.4 --quiet"
        (folder / "my_model.py").write_text(fenced(CLI_PAGE.read_text(), "python")[0])
        assert main([*shlex.split(export)[1:], "--example-input", "1x3x32x32"]) == 0


CLI_PAGE = ROOT / "docs" / "cli.md"


def without_arguments(argv: list[str]) -> list[str]:
    """The command without what changes the model."""
    if "--model-arg" in argv:
        i = argv.index("--model-arg")
        argv = argv[:i] + argv[i + 2 :]
    return argv


def run(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a line; what serves over HTTP is called, and interrupted."""
    if line.startswith("curl") or "--http" in line:
        over_http()
    elif any(mark in line for mark in "<>|") or line.startswith("torchrun"):
        in_a_shell(line)
    else:
        program, *argv = shlex.split(line)
        names = ("my_model", "my_data", "my_project", "torchvision", "bert")
        for name in [m for m in sys.modules if m.split(".")[0] in names]:
            monkeypatch.delitem(sys.modules, name)
        # The one line of a page that shows what a changed model gives.
        assert PROGRAMS[program](argv) == int("check" in line and "--model-arg" in line)


def in_a_shell(line: str) -> None:
    bin_folder = Path("bin")
    bin_folder.mkdir()
    python = f"exec {shlex.quote(sys.executable)} -m"
    scripts = {
        "fxelastic": f'{python} fxelastic.cli "$@"',
        "torchrun": f'{python} torch.distributed.run "$@"',
        "dot": "grep digraph",  # Stands for Graphviz, which need not be here.
    }
    for name, script in scripts.items():
        script = f"#!/bin/sh\n{script}\n"
        (bin_folder / name).write_text(script)
        (bin_folder / name).chmod(0o755)
    path = f"{bin_folder.resolve()}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        env={**environment(), "PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def over_http() -> None:
    """The line that serves over HTTP, on a free port, and a request as curl makes it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    argv = [
        "serve",
        "bundle/",
        "--pool",
        "bundle.pool.json",
        "--budget-ms",
        "20",
        "--http",
        str(port),
    ]
    with open(os.devnull, "w") as nowhere:
        fd = nowhere.fileno()
        process = warm.start("fxelastic.cli", *argv, cwd=Path.cwd(), stdout=fd, stderr=fd)
    try:
        data = Path("image.npy").read_bytes()
        result = b""
        for _ in range(300):
            with contextlib.suppress(urllib.error.URLError):
                url = f"http://127.0.0.1:{port}/infer"
                headers = {"Content-Type": "application/x-npy"}
                request = urllib.request.Request(url, data, headers)
                result = urllib.request.urlopen(request, timeout=30).read()
                break
            time.sleep(0.1)
        assert result.startswith(b"\x93NUMPY")
    finally:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
        process.join(60)
    assert process.exitcode == 0


def test_the_lines_of_the_readme_run_one_after_the_other(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train.npz", "model.pt", "images"):
        source = prepared / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    (tmp_path / "my_model.py").write_text(textwrap.dedent(MODEL))
    with np.load("train.npz") as data:
        np.savez("local.npz", x=data["x"], targets=data["y"])
        (tmp_path / "images" / "a.npy").write_bytes(write_npy(data["x"][:1]))
    lines = page_lines(PAGES[0])
    assert len(lines) >= 6
    for line in lines:
        run(line, monkeypatch)
    assert list((tmp_path / "results").iterdir())
