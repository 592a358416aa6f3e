"""Prepared files: they compute the same, and are complete or absent."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from fxelastic import edge
from fxelastic.edge.bundle import Bundle
from fxelastic.edge.candidates import Candidate
from fxelastic.edge.digests import digest
from fxelastic.edge.prepared import Item, PreparedFiles, optimise
from fxelastic.edge.sessions import SessionMaker
from fxelastic.errors import BundleError, ServingError
from tests.cli.commands import environment
from tests.edge.serving.fakes import wait_until
from tests.edge.serving.tiny_bundle import reference, write_bundle

RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 32)).astype(np.float32)


def weight(name: str, kind: int = TensorProto.FLOAT, shape: tuple[int, ...] = (32, 32)) -> object:
    values = RNG.standard_normal(shape)
    return helper.make_tensor(name, kind, shape, values.ravel().tolist())


def model(nodes: list[object], weights: list[object]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        weights,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return made.SerializeToString()


def branch(name: str) -> object:
    """A graph within a graph that has a large weight of its own."""
    inner = f"{name}/weight"
    return helper.make_graph(
        [helper.make_node("MatMul", ["x", inner], [f"{name}/y"])],
        name,
        [],
        [helper.make_tensor_value_info(f"{name}/y", TensorProto.FLOAT, None)],
        [weight(inner)],
    )


MODELS = {
    "two weights": model(
        [
            helper.make_node("MatMul", ["x", "a"], ["h"]),
            helper.make_node("MatMul", ["h", "b"], ["y"]),
        ],
        [weight("a"), weight("b", shape=(32, 17))],
    ),
    "none": model([helper.make_node("Relu", ["x"], ["y"])], []),
    "small ones only": model(
        [helper.make_node("Add", ["x", "a"], ["y"])], [weight("a", shape=(32,))]
    ),
    "bfloat16": model(
        [
            helper.make_node("Cast", ["a"], ["b"], to=TensorProto.FLOAT),
            helper.make_node("Gather", ["a", "i"], ["rows"]),
            helper.make_node("Cast", ["rows"], ["c"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["x", "b"], ["h"]),
            helper.make_node("MatMul", ["h", "c"], ["y"]),
        ],
        [
            weight("a", TensorProto.BFLOAT16),
            numpy_helper.from_array(np.arange(32)[::-1].copy(), "i"),
        ],
    ),
    "float16": model(
        [
            helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
            helper.make_node("MatMul", ["h", "a"], ["g"]),
            helper.make_node("Cast", ["g"], ["y"], to=TensorProto.FLOAT),
        ],
        [weight("a", TensorProto.FLOAT16, (32, 64))],
    ),
    "graphs within": model(
        [
            helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
            helper.make_node("Greater", ["s", "zero"], ["condition"]),
            helper.make_node(
                *("If", ["condition"], ["h"]),
                then_branch=branch("then"),
                else_branch=branch("else"),
            ),
            helper.make_node("MatMul", ["h", "a"], ["y"]),
        ],
        [weight("a"), helper.make_tensor("zero", TensorProto.FLOAT, (), [0.0])],
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_an_optimised_model_computes_what_the_model_computes(name: str, tmp_path: Path) -> None:
    plain = ort.InferenceSession(MODELS[name], providers=["CPUExecutionProvider"])
    optimise(MODELS[name], tmp_path / "model.onnx")
    has_weights = (tmp_path / "model.weights").exists()
    assert has_weights == (name not in ("none", "small ones only"))
    session = SessionMaker(1).open_prepared(tmp_path / "model.onnx")
    for x in (X, -X):
        (expected,), (found,) = plain.run(None, {"x": x}), session.run(None, {"x": x})
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_session_lives_on_when_its_files_are_deleted(tmp_path: Path) -> None:
    optimise(MODELS["two weights"], tmp_path / "model.onnx")
    session = SessionMaker(1).open_prepared(tmp_path / "model.onnx")
    before = session.run(None, {"x": X})[0]
    for path in tmp_path.iterdir():
        path.unlink()
    np.testing.assert_array_equal(session.run(None, {"x": X})[0], before)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "bundle")


def pool(bundle: Bundle, n: int = 4) -> list[Candidate]:
    archs = dict.fromkeys([*bundle.space.sample(n, seed=0), bundle.space.original])
    return [Candidate(arch, 1.0 + i, 0.5 + i / 100) for i, arch in enumerate(archs)]


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("mode", ["assembled", "paged"])
def test_what_a_pool_needs_is_prepared_once(bundle: Bundle, mode: str) -> None:
    entries = pool(bundle)
    dominated = Candidate(bundle.space.sample(20, seed=5)[-1], 99.0, 0.1)
    shown: list[tuple[int, int, str]] = []
    done = edge.prepare(
        bundle, [*entries, dominated], mode=mode, progress=lambda *row: shown.append(row)
    )
    archs = [entry.arch for entry in entries]
    branches = dict.fromkeys(branch for arch in archs for branch in arch)
    n = len(archs) if mode == "assembled" else len(branches)
    assert (done.n_subnets, done.n_made, done.n_ready, done.mode) == (len(archs), n, 0, mode)
    assert done.folder.parent == bundle.path.with_name("bundle.prepared")
    assert [row[:2] for row in shown] == [(i, n) for i in range(n + 1)]
    before = files_in(done.folder)
    assert done.size_bytes == sum(map(len, before.values()))
    again = edge.prepare(bundle, entries, mode=mode)
    assert (again.n_made, again.n_ready) == (0, n)
    assert files_in(done.folder) == before


def test_a_prepared_subnet_computes_what_its_branches_compute(bundle: Bundle) -> None:
    x = RNG.standard_normal((2, 8, 8, 8)).astype(np.float32)
    files = PreparedFiles.of(bundle)
    for entry in pool(bundle):
        session = SessionMaker(1).open_prepared(files.make(Item.subnet(entry.arch)))
        expected = reference(bundle, entry.arch, {"x": x})
        np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-4, atol=1e-4)


def test_limits_leave_subnets_out(bundle: Bundle) -> None:
    entries = pool(bundle)
    done = edge.prepare(bundle, entries, mode="assembled", limits={"weight_bytes": "99%"})
    assert done.n_subnets < len(entries)


def test_another_bundle_or_version_has_files_of_its_own(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    mine = PreparedFiles.of(bundle, shared)
    other = write_bundle(tmp_path / "other", seed=1)
    assert PreparedFiles.of(other, shared).folder != mine.folder
    monkeypatch.setattr("fxelastic.edge.prepared.processor_features", lambda: "avx512_of_2040")
    assert PreparedFiles.of(bundle, shared).folder != mine.folder


@pytest.mark.parametrize("damage", ["changed", "cut off", "gone", "entry", "entry of another"])
@pytest.mark.parametrize("name", ["model.onnx", "model.weights"])
def test_damaged_files_are_not_used_and_are_replaced(
    bundle: Bundle, name: str, damage: str
) -> None:
    item, files = Item.subnet(bundle.space.original), PreparedFiles.of(bundle)
    path = files.make(item)
    file = path.with_name(name)
    if damage == "gone":
        file.unlink()
    elif damage == "entry":
        path.with_name("entry.json").write_text("{")
    elif damage == "entry of another":
        entry = path.with_name("entry.json")
        entry.write_text(entry.read_text().replace("original@0", "pruned50@0"))
    else:
        file.write_bytes(file.read_bytes()[:-1] + b"!" * (damage == "changed"))
    assert files.find(item) is None
    assert files.make(item) == path == files.find(item)
    assert PreparedFiles.of(bundle).find(item) == path
    assert {p.name for p in files.folder.iterdir()} == {item.folder}


def test_copied_files_are_used_after_a_look_at_their_digests(
    bundle: Bundle, tmp_path: Path
) -> None:
    item, files = Item.subnet(bundle.space.original), PreparedFiles.of(bundle)
    files.make(item)
    shutil.copytree(files.folder, tmp_path / "copy" / files.folder.name)
    copied = PreparedFiles.of(bundle, tmp_path / "copy")
    path = copied.find(item)
    assert path is not None
    assert path.is_relative_to(tmp_path / "copy")
    path.with_name("model.weights").write_bytes(b"other")
    assert copied.find(item) is None


def test_a_damaged_bundle_prepares_nothing(bundle: Bundle) -> None:
    branch = bundle.space.original.branches[0]
    (bundle.path / bundle.segment(branch).file).write_bytes(b"")
    files = PreparedFiles.of(bundle)
    for item in (Item.branch(branch), Item.subnet(bundle.space.original)):
        with pytest.raises(BundleError):
            files.make(item)
        assert files.find(item) is None
    assert list(files.folder.iterdir()) == []


_PREPARE = """
import sys
from fxelastic import edge
bundle = edge.load(sys.argv[1])
edge.prepare(bundle, edge.SubnetPool.load(sys.argv[2]), mode="assembled")
"""


def start(bundle: Bundle, path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", _PREPARE, str(bundle.path), str(path)], env=environment()
    )


def saved_pool(bundle: Bundle, tmp_path: Path, n: int = 4) -> tuple[edge.SubnetPool, Path]:
    entries = [edge.PoolEntry(c.arch, c.ms, c.accuracy) for c in pool(bundle, n)]
    made = edge.SubnetPool.of(bundle.digest, entries)
    made.save(tmp_path / "pool.json")
    return made, tmp_path / "pool.json"


def test_two_processes_prepare_the_same_at_once(bundle: Bundle, tmp_path: Path) -> None:
    made, path = saved_pool(bundle, tmp_path)
    processes = [start(bundle, path) for _ in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    done = edge.prepare(bundle, made, mode="assembled")
    assert done.n_made == 0
    assert len(list(done.folder.iterdir())) == done.n_subnets


def test_files_that_another_process_writes_are_not_counted(bundle: Bundle, tmp_path: Path) -> None:
    done = edge.prepare(bundle, pool(bundle), prepared=tmp_path)
    written = done.folder / f".0123abcd-{os.getpid()}-89abcdef"
    written.mkdir()
    (written / "entry.json").write_bytes(b"{}")
    assert edge.prepare(bundle, pool(bundle), prepared=tmp_path).size_bytes == done.size_bytes


def test_a_killed_preparation_leaves_no_half_of_a_file(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", depth=8, width=64)
    made, path = saved_pool(bundle, tmp_path, 12)
    files = PreparedFiles.of(bundle)
    for n in (1, 3):
        process = start(bundle, path)
        wait_until(lambda n=n: len(list(files.folder.glob("[!.]*"))) >= n, 120)
        process.kill()
        process.wait()
    ready = [entry for entry in made if files.find(Item.subnet(entry.arch)) is not None]
    assert len(ready) == len(list(files.folder.glob("[!.]*")))
    done = edge.prepare(bundle, made, mode="assembled")
    assert done.n_ready == len(ready)
    assert [p.name for p in files.folder.iterdir() if p.name.startswith(".")] == []


@pytest.mark.skipif(getattr(os, "geteuid", int)() == 0, reason="root may write anywhere")
def test_a_folder_that_can_t_be_written_is_an_error(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir(mode=0o500)
    with pytest.raises(ServingError, match="can't write prepared files"):
        edge.prepare(bundle, pool(bundle), prepared=tmp_path / "shut")


def test_a_file_in_place_of_the_folder_is_an_error(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServingError, match="can't write prepared files"):
        edge.prepare(bundle, pool(bundle), prepared=tmp_path / "file")


def test_a_digest_of_a_long_file_is_its_sha256(tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = RNG.bytes(3 * 2**20 + 5)
    path.write_bytes(data)
    assert digest(path) == hashlib.sha256(data).hexdigest()
