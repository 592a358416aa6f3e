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
from onnx import TensorProto, helper, numpy_helper

from fxelastic.edge import sessions
from fxelastic.edge.assembling import assemble
from fxelastic.edge.background_preparation import BackgroundPreparation
from fxelastic.edge.bundle import Bundle, load
from fxelastic.edge.cascades.running import run_cascade
from fxelastic.edge.executor import Executor
from fxelastic.edge.prepared import Item, PreparedFiles
from fxelastic.edge.preparing import items_of
from fxelastic.edge.serving.loaders import AssembledLoader, PagedLoader
from fxelastic.edge.sessions import SessionMaker
from fxelastic.errors import BundleError, ServingError, UsageError
from fxelastic.spec import Arch
from fxelastic.spec.bundle_files import MANIFEST_NAME
from fxelastic.spec.cascade import Cascade
from tests.edge.bundles import file_info
from tests.edge.serving.tiny_bundle import write_bundle
from tests.lanes import EXHAUSTIVE

X = 2 * np.random.default_rng(0).standard_normal((4, 8, 8, 8)).astype(np.float32)
# About half of these samples leave early.
THRESHOLD = 0.31
# It reads weights of 8 and of 16 bits, of one file.
SMALL = Arch(("pruned50@0", "exit@1"))

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
        return np.stack([executor.run(a, {"x": X})[0] for a in (bundle.space.original, SMALL)])


def run_paged(bundle: Bundle, folder: Path) -> Any:
    maker = SessionMaker(1)
    preparation = BackgroundPreparation(PreparedFiles(bundle, folder / "prepared"))
    loader = PagedLoader(bundle, preparation, maker.open_prepared, maker.open_branch)
    return np.stack([loader.load(a).run({"x": X})[0] for a in (bundle.space.original, SMALL)])


def run_assembled(bundle: Bundle, folder: Path) -> Any:
    preparation = BackgroundPreparation(PreparedFiles(bundle, folder / "prepared"))
    loader = AssembledLoader(bundle, preparation, SessionMaker(1).open_prepared)
    return loader.load(bundle.space.original, urgent=True).run({"x": X})[0]


def run_assembled_file(bundle: Bundle, folder: Path) -> Any:
    with tempfile.TemporaryDirectory() as name:
        path = assemble(bundle, bundle.space.original, Path(name) / "model.onnx")
        return SessionMaker(1).open_branch(path).run(None, {"x": X})[0]


def cascade(bundle: Bundle) -> Cascade:
    """One that samples leave at its exit and at its end."""
    first = Arch(("original@0", "exit@1"))
    return Cascade((first, bundle.space.original), (THRESHOLD,))


def run_cascade_by_executor(bundle: Bundle, folder: Path) -> Any:
    with Executor(bundle, 1) as executor:
        return run_cascade(executor, cascade(bundle), {"x": X})[0]


def run_paged_cascade(bundle: Bundle, folder: Path) -> Any:
    maker = SessionMaker(1)
    preparation = BackgroundPreparation(PreparedFiles(bundle, folder / "prepared"))
    loader = PagedLoader(bundle, preparation, maker.open_prepared, maker.open_branch)
    return loader.load(cascade(bundle)).run({"x": X})[0]


def run_assembled_cascade(bundle: Bundle, folder: Path) -> Any:
    preparation = BackgroundPreparation(PreparedFiles(bundle, folder / "prepared"))
    loader = AssembledLoader(bundle, preparation, SessionMaker(1).open_prepared)
    return loader.load(cascade(bundle), urgent=True).run({"x": X})[0]


def prepare_and_run(bundle: Bundle, folder: Path) -> Any:
    """As ``fxelastic prepare`` in one process, and later serving in another."""
    for files in (PreparedFiles(bundle, folder / "new"), PreparedFiles(bundle, folder / "new")):
        files.make(Item.subnet(bundle.space.original))
    model = files.read(Item.subnet(bundle.space.original))
    if model is None:
        raise ServingError("what was prepared has changed")
    return SessionMaker(1).open_prepared(model).run(None, {"x": X})[0]


RUNS: dict[str, Callable[[Bundle, Path], Any]] = {
    "executor": run_by_executor,
    "paged": run_paged,
    "assembled": run_assembled,
    "assembled file": run_assembled_file,
    "cascade": run_cascade_by_executor,
    "paged cascade": run_paged_cascade,
    "assembled cascade": run_assembled_cascade,
    "prepare": prepare_and_run,
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
    """Store weights in all the ways that exports have.

    Originals have files of their own, with 32 bits. The others share one file, of which each reads
    a part: the exit with 16 bits and a cast, and stand-ins with 8 bits and a scale.
    """
    (bundle.path / "branches" / "data").mkdir(exist_ok=True)
    shared, written, uses = b"", {}, {}
    for segment in bundle.manifest.segments:
        model = onnx.ModelProto.FromString(bundle.read(segment.id))
        graph, kind = model.graph, segment.id.partition("@")[0]
        tensor = graph.initializer[0]
        weights = numpy_helper.to_array(tensor)
        if kind == "original":
            location, offset, packed = f"data/{segment.id}.bin", 0, weights
        else:
            location, offset = "data/shared.bin", len(shared)
            packed = weights.astype(np.float16)
            node = helper.make_node("Cast", ["stored"], [tensor.name], to=TensorProto.FLOAT)
            if kind != "exit":
                scale = np.abs(weights).max() / np.float32(127)
                packed = np.round(weights / scale).astype(np.int8)
                graph.initializer.append(numpy_helper.from_array(scale, "scale"))
                node = helper.make_node("DequantizeLinear", ["stored", "scale"], [tensor.name])
            graph.node.insert(0, node)
            tensor.name = "stored"
            tensor.data_type = helper.np_dtype_to_tensor_dtype(packed.dtype)
            # Where a file is mapped, parts begin at pages.
            shared += packed.tobytes().ljust(4096, b"\0")
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        entries = {"location": location, "offset": offset, "length": packed.nbytes}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        uses[segment.id] = f"branches/{location}"
        written[segment.file] = model.SerializeToString()
        written[f"branches/{location}"] = packed.tobytes() if kind == "original" else shared
    for name, data in written.items():
        (bundle.path / name).write_bytes(data)
    infos = {name: file_info(name, data) for name, data in written.items()}
    segments = tuple(
        replace(segment, model=infos[segment.file], data=(uses[segment.id],))
        for segment in bundle.manifest.segments
    )
    data = tuple(infos[name] for name in dict.fromkeys(uses.values()))
    manifest = replace(bundle.manifest, segments=segments, data=data)
    (bundle.path / MANIFEST_NAME).write_bytes(manifest.to_json())
    return load(bundle.path)


def write_folders(root: Path) -> tuple[Path, Path]:
    """A bundle and another one with the same files but other weights, both prepared."""
    for seed, name in enumerate(("good", "bad")):
        plain = write_bundle(root / name / "bundle", depth=1, seed=seed, exits=(1,))
        bundle = move_weights_out(plain)
        files = PreparedFiles(bundle, root / name / "prepared")
        files.make(Item.subnet(bundle.space.original))
        for item in (Item.branch("original@0"), *items_of(bundle, cascade(bundle), "assembled")):
            files.make(item)
    return root / "good", root / "bad"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_folders(tmp_path_factory.mktemp("replaced"))


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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_opens_in_a_race_run_verified_bytes(tmp_path: Path) -> None:
    from tests.edge.racing_opens import race

    found = race(20_000 if EXHAUSTIVE else 300, tmp_path)
    assert found["unverified"] == 0
    assert min(found["verified"], found["refused"]) > 0
