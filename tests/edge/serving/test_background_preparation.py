"""Files that are prepared by another process while requests go on."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fxelastic.edge.background_preparation import BackgroundPreparation
from fxelastic.edge.bundle import Bundle
from fxelastic.edge.prepared import Item, PreparedFiles
from fxelastic.errors import BundleError, ServingError
from tests.cli.commands import environment
from tests.edge.serving.fakes import n_threads, wait_until
from tests.edge.serving.tiny_bundle import write_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "bundle")


@pytest.fixture
def background(bundle: Bundle) -> Iterator[BackgroundPreparation]:
    before = n_threads()
    made = BackgroundPreparation(PreparedFiles.of(bundle))
    yield made
    made.close()
    assert n_threads() == before


def items(bundle: Bundle) -> list[Item]:
    return [Item.branch(segment.id) for segment in bundle.manifest.segments]


def test_the_process_has_a_low_priority(
    bundle: Bundle, background: BackgroundPreparation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fxelastic.edge.background_preparation._NICENESS", 15)
    background.want(items(bundle))
    wait_until(lambda: background._process is not None)
    process = background._process
    assert process is not None
    wait_until(lambda: psutil.Process(process.pid).nice() == max(psutil.Process().nice(), 15))


def test_missing_files_are_made_by_one_process(
    bundle: Bundle, background: BackgroundPreparation
) -> None:
    wanted = items(bundle)
    background.want(wanted)
    path = background.file(Item.subnet(bundle.space.original))
    assert path == background.files.find(Item.subnet(bundle.space.original))
    process = background._process
    assert process is not None
    assert background.wait(60)
    assert all(background.files.find(item) is not None for item in wanted)
    assert background._process is process


@pytest.mark.parametrize("ask", ["want", "file"])
def test_an_idle_process_is_asked_at_once(
    bundle: Bundle,
    background: BackgroundPreparation,
    monkeypatch: pytest.MonkeyPatch,
    ask: str,
) -> None:
    """It waited until it would have ended, some seconds later."""
    monkeypatch.setattr("fxelastic.edge.background_preparation._LINGER_S", 600.0)
    first, second, *_ = items(bundle)
    background.want([first])
    assert background.wait(60)
    if ask == "want":
        background.want([second])
        assert background.wait(60)
    else:
        asked = threading.Thread(target=background.file, args=(second,), daemon=True)
        asked.start()
        asked.join(60)
        assert not asked.is_alive()
    assert background.files.find(second) is not None


def test_an_urgent_file_needs_no_process(bundle: Bundle, background: BackgroundPreparation) -> None:
    assert background.file(Item.subnet(bundle.space.original), urgent=True).exists()
    assert background._process is None


def test_a_damaged_branch_is_an_error_of_the_load_that_needs_it(
    bundle: Bundle, background: BackgroundPreparation
) -> None:
    first, *rest = bundle.space.original.branches
    (bundle.path / bundle.segment(first).file).write_bytes(b"")
    background.want(map(Item.branch, (first, *rest)))
    assert background.wait(60)
    assert background.files.find(Item.branch(first)) is None
    assert all(background.files.find(Item.branch(branch)) is not None for branch in rest)
    with pytest.raises(BundleError, match=r"can't be prepared[\s\S]*size"):
        background.file(Item.branch(first))


def test_another_bundle_in_the_same_place_is_an_error(
    bundle: Bundle, background: BackgroundPreparation
) -> None:
    bundle.path.rename(bundle.path.with_name("away"))
    write_bundle(bundle.path, seed=1)
    with pytest.raises(BundleError, match="has changed since it was loaded"):
        background.file(Item.subnet(bundle.space.original))


def test_a_process_that_is_killed_is_an_error_and_is_replaced(
    bundle: Bundle, background: BackgroundPreparation
) -> None:
    first, second, *_ = items(bundle)
    background.file(first)
    process = background._process
    assert process is not None
    process.kill()
    process.wait()
    with pytest.raises(BundleError, match="exit code"):
        background.file(second)
    assert background.file(second).exists()


def test_an_idle_process_ends_and_another_one_starts(
    bundle: Bundle, background: BackgroundPreparation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fxelastic.edge.background_preparation._LINGER_S", 0.05)
    first, second, *_ = items(bundle)
    background.file(first)
    wait_until(lambda: background._process is None and background._thread is None)
    assert background.file(second).exists()


def test_closing_at_work_ends_the_process_and_the_load_that_waits(
    bundle: Bundle, background: BackgroundPreparation
) -> None:
    errors: list[BaseException] = []

    def load() -> None:
        try:
            background.file(Item.subnet(bundle.space.original))
        except ServingError as e:
            errors.append(e)

    thread = threading.Thread(target=load)
    thread.start()
    wait_until(lambda: background._process is not None)
    process = background._process
    background.close()
    background.close()
    thread.join(20)
    assert process is not None
    assert process.poll() is not None
    assert [str(e) for e in errors] == ["the runtime is closed"]
    with pytest.raises(ServingError, match="closed"):
        background.file(items(bundle)[0])


_SERVE = """
import sys
from fxelastic import edge
from fxelastic.edge.prepared import Item, PreparedFiles
from fxelastic.edge.background_preparation import BackgroundPreparation

bundle = edge.load(sys.argv[1])
background = BackgroundPreparation(PreparedFiles.of(bundle))
background.file(Item.subnet(bundle.space.original))
background.want(Item.branch(segment.id) for segment in bundle.manifest.segments)
print(background._process.pid, flush=True)
sys.stdin.read()
"""


def test_the_process_does_not_outlive_one_that_is_killed(bundle: Bundle) -> None:
    serving = subprocess.Popen(
        [sys.executable, "-c", _SERVE, str(bundle.path)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert serving.stdout is not None
    pid = int(serving.stdout.readline())
    process = psutil.Process(pid)
    serving.kill()
    serving.communicate()
    wait_until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, 60)


_BUSY = """
import sys, time
from fxelastic.edge import background_preparation
from fxelastic.edge.prepared import PreparedFiles

def make(*_):
    print("at work", flush=True)
    time.sleep(600)

PreparedFiles.make = make
background_preparation.main(*sys.argv[1:])
"""
_PARENT = """
import subprocess, sys
process = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], stdin=subprocess.PIPE)
process.stdin.write(b'{"kind": "branch", "name": "original@0"}\\n')
process.stdin.flush()
print(process.pid, flush=True)
sys.stdin.read()
"""


def test_the_process_does_not_outlive_one_that_is_killed_in_the_middle_of_an_item(
    bundle: Bundle, tmp_path: Path
) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, _BUSY, str(bundle.path), bundle.digest, str(tmp_path)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    process = psutil.Process(int(parent.stdout.readline()))
    assert parent.stdout.readline() == "at work\n"
    parent.kill()
    wait_until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, 60)
    parent.stdout.close()
    parent.wait()


def test_where_the_folder_can_t_be_written_files_are_temporary(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = PreparedFiles.of(bundle)
    there = files.make(Item.branch("original@0"))
    monkeypatch.setattr(PreparedFiles, "is_writable", lambda self: False)
    made = BackgroundPreparation(PreparedFiles.of(bundle))
    assert not made.keeps_files
    assert made.file(Item.branch("original@0")) == there
    path = made.file(Item.branch("original@1"))
    assert not path.is_relative_to(files.folder)
    made.close()
    assert not path.exists()
    assert there.exists()
