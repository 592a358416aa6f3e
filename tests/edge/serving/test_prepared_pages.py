"""Branches that are ready before they are paged in: the same numbers, and nothing left behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.serving.paged import PagedLoader
from fxelastic.edge.serving.preparation import Preparation
from fxelastic.edge.serving.prepared_pages import PreparedPages
from fxelastic.edge.sessions import SessionMaker
from fxelastic.errors import BundleError
from fxelastic.spec import Arch
from tests.edge.serving.fakes import wait_until
from tests.edge.serving.tiny_bundle import reference, write_bundle

X = np.random.default_rng(0).standard_normal((2, 8, 8, 8)).astype(np.float32)
LONG_S = 60.0


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "bundle")


@pytest.fixture
def pages(bundle: Bundle, tmp_path: Path) -> Iterator[PreparedPages]:
    made = PreparedPages(Preparation(bundle, keep=99, scratch=tmp_path))
    yield made
    made.close()
    assert leftovers(tmp_path) == []


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith("fxelastic")]


class Opened:
    """Makes sessions, and remembers how."""

    def __init__(self) -> None:
        self.raw: list[Path] = []
        self.prepared: list[Path] = []

    def loader(self, bundle: Bundle, pages: PreparedPages, *ahead: str) -> PagedLoader:
        sessions = SessionMaker(1)

        def raw(path: Path) -> Any:
            self.raw.append(path)
            return sessions.open_branch(path)

        def prepared(path: Path) -> Any:
            self.prepared.append(path)
            return sessions.open_prepared(path)

        return PagedLoader(bundle, raw, open_prepared=prepared, pages=pages, ahead=ahead)


def archs(bundle: Bundle) -> list[Arch]:
    return list(dict.fromkeys([bundle.space.original, *bundle.space.sample(6, seed=0)]))


def computes(loader: PagedLoader, arch: Arch) -> bool:
    executable = loader.load(arch)
    try:
        (found,) = executable.run({"x": X})
    finally:
        executable.close()
    return np.allclose(found, reference(loader.bundle, arch, {"x": X}), rtol=1e-4, atol=1e-4)


def test_what_is_ready_is_opened_and_computes_the_same(
    bundle: Bundle, pages: PreparedPages
) -> None:
    opened = Opened()
    first, *others = archs(bundle)
    ahead = list(dict.fromkeys(branch for arch in others for branch in arch))
    loader = opened.loader(bundle, pages, *ahead)
    assert computes(loader, first)
    assert opened.prepared == []
    assert pages.wait(LONG_S)
    n_raw = len(opened.raw)
    assert all(computes(loader, arch) for arch in [*others, first])
    # Nothing waited for the first subnet's own, but by now they are ready, too.
    assert len(opened.raw) == n_raw
    assert len(opened.prepared) >= len({*ahead})
    assert loader.resident_bytes == 0


@pytest.mark.parametrize("damage", ["changed", "cut off", "gone"])
def test_a_damaged_file_is_not_opened(bundle: Bundle, pages: PreparedPages, damage: str) -> None:
    branch = bundle.space.original.branches[0]
    pages.want([branch])
    assert pages.wait(LONG_S)
    path = pages.path(branch)
    assert path is not None
    file = path.with_suffix(".weights")
    data = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(data[:-1] + b"!" * (damage == "changed"))
    assert pages.path(branch) is None
    opened = Opened()
    assert computes(opened.loader(bundle, pages), bundle.space.original)
    assert opened.prepared == []
    if damage == "changed":
        # As it was: only its times have changed.
        file.write_bytes(data)
        assert pages.path(branch) == path


def test_a_damaged_branch_is_told_when_it_is_opened(bundle: Bundle, pages: PreparedPages) -> None:
    first, *rest = bundle.space.original.branches
    (bundle.path / bundle.segment(first).file).write_bytes(b"")
    pages.want([first, *rest])
    assert pages.wait(LONG_S)
    assert pages.path(first) is None
    assert all(pages.path(branch) is not None for branch in rest)
    with pytest.raises(BundleError):
        Opened().loader(bundle, pages).load(bundle.space.original)


def test_a_process_that_ends_leaves_the_bundle_s_own_files(
    bundle: Bundle, pages: PreparedPages
) -> None:
    branches = bundle.space.original.branches
    pages.want(branches[:1])
    assert pages.wait(LONG_S)
    preparation = pages._preparation
    # Its folder can't be written any more; to this user, if that is no administrator.
    preparation._scratch._closed = True
    pages.want(branches)
    assert pages.wait(LONG_S)
    assert pages.path(branches[1]) is None
    assert computes(Opened().loader(bundle, pages), bundle.space.original)


def test_closing_at_work(bundle: Bundle, tmp_path: Path) -> None:
    before = threading.active_count()
    pages = PreparedPages(Preparation(bundle, keep=99, scratch=tmp_path))
    pages.want(segment.id for segment in bundle.manifest.segments)
    wait_until(lambda: pages._preparation._process is not None)
    pages.close()
    pages.close()
    pages.want(["original@0"])
    assert threading.active_count() == before
    assert leftovers(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes can't fork")
def test_a_forked_child_leaves_them_alone(bundle: Bundle, pages: PreparedPages) -> None:
    branch = bundle.space.original.branches[0]
    pages.want([branch])
    assert pages.wait(LONG_S)
    child = os.fork()
    if child == 0:
        pages.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert pages.path(branch) is not None
