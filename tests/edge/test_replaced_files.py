"""Files that are replaced between their verification and their use: no other bytes run."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fxelastic.edge import sessions
from fxelastic.edge.assembly import assemble
from fxelastic.edge.background_preparation import BackgroundPreparation
from fxelastic.edge.bundle import Bundle, load
from fxelastic.edge.executor import Executor
from fxelastic.edge.prepared import Item, PreparedFiles
from fxelastic.edge.serving.loaders import AssembledLoader, PagedLoader
from fxelastic.edge.sessions import SessionMaker
from fxelastic.errors import BundleError, ServingError, UsageError
from fxelastic.spec.bundle_files import MANIFEST_NAME
from tests.edge.bundles import file_info
from tests.edge.serving.tiny_bundle import write_bundle
from tests.lanes import EXHAUSTIVE

X = np.random.default_rng(0).standard_normal((2, 8, 8, 8)).astype(np.float32)

# The calls between which another process may write.
STEPS = (
    (os, "open"),
    (os, "fstat"),
    (os, "lstat"),
    (os, "stat"),
    (sessions, "BoundedSession"),
)


def run_by_executor(bundle: Bundle, folder: Path) -> Any:
    with Executor(bundle, 1) as executor:
        return executor.run(bundle.space.original, {"x": X})[0]


def run_paged(bundle: Bundle, folder: Path) -> Any:
    maker = SessionMaker(1)
    preparation = BackgroundPreparation(PreparedFiles(bundle, folder / "prepared"))
    loader = PagedLoader(bundle, preparation, maker.open_prepared, maker.open_branch)
    return loader.load(bundle.space.original).run({"x": X})[0]


def run_assembled(bundle: Bundle, folder: Path) -> Any:
    preparation = BackgroundPreparation(PreparedFiles(bundle, folder / "prepared"))
    loader = AssembledLoader(bundle, preparation, SessionMaker(1).open_prepared)
    return loader.load(bundle.space.original, urgent=True).run({"x": X})[0]


def run_assembled_file(bundle: Bundle, folder: Path) -> Any:
    with tempfile.TemporaryDirectory() as name:
        path = assemble(bundle, bundle.space.original, Path(name) / "model.onnx")
        return SessionMaker(1).open_branch(path).run(None, {"x": X})[0]


RUNS: dict[str, Callable[[Bundle, Path], Any]] = {
    "executor": run_by_executor,
    "paged": run_paged,
    "assembled": run_assembled,
    "assembled file": run_assembled_file,
}


class Writer:
    """Replaces the files of a folder before the n-th step."""

    def __init__(self, good: Path, bad: Path, at: int) -> None:
        self.good, self.bad, self.left = good, bad, at

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            for path in sorted(self.bad.rglob("*")):
                target = self.good / path.relative_to(self.bad)
                if path.is_file() and target.exists():
                    data = path.read_bytes()
                    if self.good.name == "in place":
                        target.write_bytes(data)
                    else:
                        new = target.with_name("new")
                        new.write_bytes(data)
                        new.replace(target)


def move_weights_out(bundle: Bundle) -> Bundle:
    """Move the weights of each block to a file of their own, as exports do with shared weights."""
    segments, data = [], []
    for segment in bundle.manifest.segments:
        model = onnx.ModelProto.FromString(bundle.read(segment.id))
        tensor = model.graph.initializer[0]
        location = f"data/{segment.id}.bin"
        path = bundle.path / "branches" / location
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(tensor.raw_data)
        data.append(file_info(f"branches/{location}", tensor.raw_data))
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        written = model.SerializeToString()
        (bundle.path / segment.file).write_bytes(written)
        info = file_info(segment.file, written)
        segments.append(replace(segment, model=info, data=(data[-1].path,)))
    manifest = replace(bundle.manifest, segments=tuple(segments), data=tuple(data))
    (bundle.path / MANIFEST_NAME).write_bytes(manifest.to_json())
    return load(bundle.path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle and another one with the same files but other weights, both prepared."""
    root = tmp_path_factory.mktemp("replaced")
    for seed, name in enumerate(("good", "bad")):
        bundle = move_weights_out(write_bundle(root / name / "bundle", depth=1, seed=seed))
        files = PreparedFiles(bundle, root / name / "prepared")
        files.make(Item.subnet(bundle.space.original))
        files.make(Item.branch("original@0"))
    return root / "good", root / "bad"


# The other pairs differ in nothing that one of these does not have.
PAIRS = [(name, ("in place", "renamed")[i % 2]) for i, name in enumerate(RUNS)]
if EXHAUSTIVE:
    PAIRS = [(name, way) for name in RUNS for way in ("in place", "renamed")]


@pytest.mark.parametrize(("name", "way"), PAIRS)
def test_files_replaced_at_any_step_never_run(
    name: str,
    way: str,
    folders: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good, bad = folders
    expected = RUNS[name](load(good / "bundle"), good)
    other = RUNS[name](load(bad / "bundle"), bad)
    assert np.abs(expected - other).max() > 1e-2
    ended = {"right": 0, "refused": 0}
    at = 0
    while True:
        at += 1
        folder = tmp_path / str(at) / way
        shutil.copytree(good, folder)
        # As an attacker knows it, the digests that the prepared files state remain.
        spared = tmp_path / f"{at}-bad"
        shutil.copytree(bad, spared, ignore=shutil.ignore_patterns("*.json"))
        bundle = load(folder / "bundle")
        writer = Writer(folder, spared, at)
        with monkeypatch.context() as patched:
            for module, step in STEPS:
                own = getattr(module, step)

                def stepped(
                    *args: Any, own: Any = own, writer: Writer = writer, **named: Any
                ) -> Any:
                    writer.step()
                    return own(*args, **named)

                patched.setattr(module, step, stepped)
            try:
                found = RUNS[name](bundle, folder)
            except (BundleError, ServingError, UsageError):
                ended["refused"] += 1
            else:
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
                ended["right"] += 1
        shutil.rmtree(folder)
        shutil.rmtree(spared)
        if writer.left > 0:
            break
    assert min(ended.values()) > 1, ended
