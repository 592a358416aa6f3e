"""The process that prepares subnets: what may happen to it, and to what it works with."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from fxelastic.edge.bundle import Bundle, load
from fxelastic.edge.serving import worker_process
from fxelastic.edge.serving.assembled import AssembledLoader
from fxelastic.edge.serving.preparation import Preparation
from fxelastic.edge.sessions import SessionMaker
from fxelastic.errors import BundleError, ServingError
from fxelastic.spec import Arch
from tests.cli.commands import environment
from tests.edge.serving.fakes import wait_until
from tests.edge.serving.tiny_bundle import reference, write_bundle

X = np.random.default_rng(0).standard_normal((2, 8, 8, 8)).astype(np.float32)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "a bündle")


@pytest.fixture
def preparation(bundle: Bundle, tmp_path: Path) -> Iterator[Preparation]:
    made = Preparation(bundle, scratch=tmp_path)
    yield made
    made.close()


def archs(bundle: Bundle) -> list[Arch]:
    return list(dict.fromkeys([bundle.space.original, *bundle.space.sample(6, seed=0)]))


def computes(preparation: Preparation, bundle: Bundle, arch: Arch) -> bool:
    """Whether a subnet is prepared and computes what it should."""
    session = SessionMaker(1).open_prepared(preparation.file(arch))
    expected = reference(bundle, arch, {"x": X})
    return bool(np.allclose(session.run(None, {"x": X})[0], expected, rtol=1e-4, atol=1e-4))


def test_another_bundle_in_the_same_place_is_refused(
    bundle: Bundle, preparation: Preparation
) -> None:
    shutil.rmtree(bundle.path)
    write_bundle(bundle.path, seed=1)
    with pytest.raises(BundleError, match="has changed since it was loaded"):
        preparation.file(bundle.space.original)


def test_a_damaged_branch_is_no_matter_of_other_subnets(
    bundle: Bundle, preparation: Preparation
) -> None:
    whole, *others = archs(bundle)
    other = next(arch for arch in others if not set(arch) <= set(whole))
    branch = next(branch for branch in other if branch not in whole)
    (bundle.path / bundle.segment(branch).file).unlink()
    assert computes(preparation, bundle, whole)
    with pytest.raises(BundleError, match="can't be prepared"):
        preparation.file(other)


def test_the_folder_to_work_in_may_change(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    preparation = Preparation(load(bundle.path.name), scratch=tmp_path)
    monkeypatch.chdir("/")
    assert computes(preparation, bundle, bundle.space.original)
    preparation.close()


def test_a_temporary_folder_that_is_gone_is_made_again(
    bundle: Bundle, preparation: Preparation
) -> None:
    first, second, *_ = archs(bundle)
    shutil.rmtree(preparation.file(first).parent)
    assert computes(preparation, bundle, first)
    assert computes(preparation, bundle, second)


def test_an_answer_that_nobody_waited_for_is_skipped(
    bundle: Bundle, preparation: Preparation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after Ctrl-C: the worker answers all the same."""
    first, second, third, *_ = archs(bundle)
    preparation.file(first)
    process = preparation._process
    assert process is not None
    read = process._read

    def interrupted(key: str, value: Any = None) -> dict[str, Any]:
        monkeypatch.setattr(process, "_read", read)
        raise KeyboardInterrupt

    monkeypatch.setattr(process, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        preparation.file(second)
    assert computes(preparation, bundle, third)
    assert computes(preparation, bundle, second)
    assert preparation._process is process


def test_what_libraries_print_is_skipped(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the interpreter's start, and when they are imported."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("print('hello')\nprint('{\"a\": 1}')\nprint(7)\n")
    monkeypatch.setenv("PYTHONPATH", str(site))
    preparation = Preparation(bundle, scratch=tmp_path)
    assert computes(preparation, bundle, bundle.space.original)
    preparation.close()


def test_what_was_not_done_leaves_no_files(bundle: Bundle, preparation: Preparation) -> None:
    first, second, *_ = archs(bundle)
    folder = preparation.file(first).parent
    before = sorted(path.name for path in folder.iterdir())
    process = preparation._process
    assert process is not None
    ask = process.ask

    def killed(kind: str, name: str, path: Path, *rest: Any) -> dict[str, Any]:
        path.write_bytes(b"half of it")
        path.with_suffix(".weights").write_bytes(b"half of it")
        (path.parent / f".{path.stem}.plain.onnx.abc").mkdir()
        process.kill()
        return ask(kind, name, path, *rest)

    process.ask = killed  # type: ignore[method-assign]
    with pytest.raises(ServingError, match="has ended"):
        preparation.file(second)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert computes(preparation, bundle, second)


def test_a_forked_child_keeps_nothing_from_ending(bundle: Bundle, tmp_path: Path) -> None:
    program = f"""
import os, sys, time
from pathlib import Path
from fxelastic.edge import load
from fxelastic.edge.serving.preparation import Preparation
bundle = load({str(bundle.path)!r})
preparation = Preparation(bundle, scratch=Path({str(tmp_path)!r}))
preparation.file(bundle.space.original)
child = os.fork()
if not child:
    preparation.close()
    time.sleep(600)
process = preparation._process
preparation._timer.cancel()
begin_s = time.monotonic()
process.end()
print(process._process.returncode, os.waitpid(child, os.WNOHANG) == (0, 0), flush=True)
os.kill(child, 9)
preparation.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    # By itself, at the end of its input.
    assert done.stdout.split() == ["0", "True"], done.stderr


def test_a_process_that_does_not_end_is_killed(
    preparation: Preparation, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "_PATIENCE_S", 0.2)
    preparation.file(bundle.space.original)
    process = preparation._process
    assert process is not None
    os.kill(process._process.pid, signal.SIGSTOP)
    process.end()
    assert not process.running


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_to_all_leaves_no_stopped_process(
    bundle: Bundle, tmp_path: Path, name: str
) -> None:
    program = f"""
import os, signal, time
from pathlib import Path
from fxelastic.edge import load
from fxelastic.edge.serving.preparation import Preparation
signal.signal(signal.{name}, signal.SIG_DFL)  # under nohup, SIGHUP is ignored
bundle = load({str(bundle.path)!r})
preparation = Preparation(bundle, scratch=Path({str(tmp_path)!r}))
preparation.file(bundle.space.original)
os.kill(preparation._process.worker, signal.SIGSTOP)
print(preparation._process.worker, flush=True)
time.sleep(60)
"""
    server = subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert server.stdout is not None
    worker = psutil.Process(int(server.stdout.readline()))
    wait_until(lambda: worker.status() == psutil.STATUS_STOPPED)
    os.killpg(server.pid, getattr(signal, name))
    assert server.wait(30) == -getattr(signal, name)
    wait_until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)


def test_closing_while_a_subnet_is_prepared(bundle: Bundle, tmp_path: Path) -> None:
    loader = AssembledLoader(
        bundle, Preparation(bundle, scratch=tmp_path), SessionMaker(1).open_prepared
    )
    errors: list[Exception] = []

    def load_all() -> None:
        try:
            for arch in archs(bundle):
                loader.load(arch).close()
        except Exception as e:  # noqa: BLE001 - looked at below
            errors.append(e)

    thread = threading.Thread(target=load_all)
    thread.start()
    wait_until(lambda: loader.preparation._process is not None)
    loader.close()
    loader.close()
    thread.join(20)
    assert not thread.is_alive()
    assert all(isinstance(e, (ServingError, BundleError)) for e in errors)
    assert [path for path in tmp_path.iterdir() if path.name.startswith("fxelastic")] == []
