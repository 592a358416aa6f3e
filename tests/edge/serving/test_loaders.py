"""Subnets of a real bundle: the same numbers either way, and nothing left behind."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxelastic.edge.background_preparation import BackgroundPreparation
from fxelastic.edge.bundle import Bundle
from fxelastic.edge.prepared import Item, PreparedFiles
from fxelastic.edge.serving.loaders import AssembledLoader, LoadedSubnet, PagedLoader
from fxelastic.edge.sessions import SessionMaker
from fxelastic.edge.verified_model import VerifiedModel
from fxelastic.errors import BundleError
from fxelastic.spec import Arch
from tests.cli.commands import environment
from tests.edge.serving.tiny_bundle import reference, write_bundle

X = np.random.default_rng(0).standard_normal((2, 8, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("serving") / "bundle")


@pytest.fixture(scope="module")
def archs(bundle: Bundle) -> list[Arch]:
    return [bundle.space.original, *bundle.space.sample(4, seed=1)]


def preparation(bundle: Bundle) -> BackgroundPreparation:
    return BackgroundPreparation(PreparedFiles.of(bundle))


@pytest.fixture(scope="module")
def assembled(bundle: Bundle) -> Iterator[AssembledLoader]:
    loader = AssembledLoader(bundle, preparation(bundle), SessionMaker(1).open_prepared)
    yield loader
    loader.close()


def paged_loader(
    bundle: Bundle, open_branch: Callable[[VerifiedModel], Any] | None = None
) -> PagedLoader:
    """A loader that has the bundle's own files only."""
    empty = PreparedFiles(bundle, bundle.path / "nothing")
    sessions = SessionMaker(1)
    return PagedLoader(
        bundle,
        BackgroundPreparation(empty),
        sessions.open_prepared,
        open_branch or sessions.open_branch,
    )


def output(executable: LoadedSubnet) -> np.ndarray[Any, Any]:
    (array,) = executable.run({"x": X})
    return array


def test_both_ways_give_the_subnet_s_numbers(
    bundle: Bundle, archs: list[Arch], assembled: AssembledLoader
) -> None:
    paged = paged_loader(bundle)
    for arch in archs:
        expected = reference(bundle, arch, {"x": X})
        for loader in (assembled, paged):
            executable = loader.load(arch)
            np.testing.assert_allclose(output(executable), expected, rtol=1e-4, atol=1e-4)
            executable.close()
        assert paged.resident_bytes == assembled.resident_bytes == 0
    different = reference(bundle, archs[0], {"x": X}) - reference(bundle, archs[1], {"x": X})
    assert np.abs(different).max() > 1e-2


def test_branches_are_in_memory_once(bundle: Bundle, archs: list[Arch]) -> None:
    opened: list[VerifiedModel] = []

    def counting(model: VerifiedModel) -> Any:
        opened.append(model)
        return SessionMaker(1).open_branch(model)

    loader = paged_loader(bundle, counting)
    first, second = archs[0], archs[1]
    a = loader.load(first)
    assert loader.added_bytes(first) == 0
    assert loader.added_bytes(second) > 0
    before = loader.resident_bytes
    added = loader.added_bytes(second)
    b = loader.load(second)
    assert loader.resident_bytes == before + added
    assert len(opened) == len({*first, *second})
    a.close()
    np.testing.assert_allclose(output(b), reference(bundle, second, {"x": X}), atol=1e-4)
    b.close()
    assert loader.resident_bytes == 0


def test_threads_share_a_paged_subnet(bundle: Bundle, archs: list[Arch]) -> None:
    executable = paged_loader(bundle).load(archs[1])
    expected = [output(executable) * 1, executable.run({"x": X[:1]})[0]]
    wrong: list[int] = []

    def ask(i: int) -> None:
        for _ in range(20):
            (y,) = executable.run({"x": X if i % 2 == 0 else X[:1]})
            if not np.array_equal(y, expected[i % 2]):
                wrong.append(i)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_damaged_branch_leaves_nothing_in_memory(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    branch = bundle.space.original.branches[-1]
    path = bundle.path / bundle.segment(branch).file
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    loader = paged_loader(bundle)
    with pytest.raises(BundleError, match="different digest"):
        loader.load(bundle.space.original)
    assert loader.resident_bytes == 0
    assembled = AssembledLoader(bundle, preparation(bundle), SessionMaker(1).open_prepared)
    for urgent, what in (
        (True, "different digest"),
        (False, r"can't be prepared[\s\S]*different digest"),
    ):
        with pytest.raises(BundleError, match=what):
            assembled.load(bundle.space.original, urgent=urgent)
    assert assembled.resident_bytes == 0
    assembled.close()


@pytest.mark.parametrize("urgent", [True, False])
@pytest.mark.parametrize("damage", ["changed", "cut off", "gone"])
@pytest.mark.parametrize("suffix", [".onnx", ".weights"])
def test_a_damaged_file_is_prepared_again(
    archs: list[Arch],
    assembled: AssembledLoader,
    bundle: Bundle,
    suffix: str,
    damage: str,
    urgent: bool,
) -> None:
    path = assembled.preparation.file(Item.subnet(archs[0]), urgent=True)
    file = path.with_suffix(suffix)
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1] + b"!" * (damage == "changed"))
    executable = assembled.load(archs[0], urgent=urgent)
    expected = reference(bundle, archs[0], {"x": X})
    np.testing.assert_allclose(output(executable), expected, rtol=1e-4, atol=1e-4)
    executable.close()


def prepared_bytes(files: PreparedFiles, branch: str) -> bytes:
    path = files.find(Item.branch(branch))
    assert path is not None
    return path.read_bytes()


def test_prepared_branches_are_opened_from_their_files_and_compute_the_same(
    bundle: Bundle, archs: list[Arch]
) -> None:
    files = PreparedFiles.of(bundle)
    opened: list[VerifiedModel] = []

    def prepared(model: VerifiedModel) -> Any:
        opened.append(model)
        return SessionMaker(1).open_prepared(model)

    first, *others = archs[0].branches
    for branch in others:
        files.make(Item.branch(branch))
    made = preparation(bundle)
    loader = PagedLoader(bundle, made, prepared, SessionMaker(1).open_branch)
    executable = loader.load(archs[0])
    expected = reference(bundle, archs[0], {"x": X})
    np.testing.assert_allclose(output(executable), expected, rtol=1e-4, atol=1e-4)
    assert [model.name for model in opened] == others
    assert [model.data for model in opened] == [prepared_bytes(files, b) for b in others]
    assert files.find(Item.branch(first)) is None
    executable.close()
    assert loader.resident_bytes == 0
    loader.close()


_PROCESS_WIDE = """
import sys
import numpy as np
import onnxruntime as ort
from fxelastic.edge import load
from fxelastic.edge.serving.options import Serving
from fxelastic.edge.serving.serve import loader_of

if sys.argv[2] == "made":
    ort.set_global_thread_pool_sizes(1, 1)
bundle = load(sys.argv[1])
executable = loader_of(bundle, "paged", options=Serving(threads=1)).load(bundle.space.original)
executable.run({"x": np.ones((1, 8, 8, 8), np.float32)})
options = [call.session.get_session_options() for call in executable.calls]
own = {each.use_per_session_threads for each in options}
print(own, "torch" in sys.modules)
"""


@pytest.mark.parametrize(("pool", "own"), [("made", False), ("none", True)])
def test_a_pool_that_somebody_else_has_made_is_used(bundle: Bundle, pool: str, own: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROCESS_WIDE, str(bundle.path), pool],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == f"{{{own}}} False", done.stderr
