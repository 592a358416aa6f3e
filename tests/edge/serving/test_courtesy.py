"""A process that works beside requests is stopped while they run, and never left stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from fxelastic import edge
from fxelastic.edge.serving import courtesy as module
from fxelastic.edge.serving.courtesy import RARELY, Courtesy
from fxelastic.edge.serving.preparation import Preparation
from fxelastic.edge.serving.upkeep import Restated
from tests.cli.commands import environment
from tests.edge.serving.fakes import wait_until
from tests.edge.serving.tiny_bundle import write_bundle

X = np.ones((1, 8, 8, 8), np.float32)


@pytest.fixture
def other() -> Iterator[psutil.Process]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    yield psutil.Process(process.pid)
    process.kill()
    process.wait()


def is_stopped(process: psutil.Process) -> bool:
    return bool(process.status() == psutil.STATUS_STOPPED)


def has_ended(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:  # also where it ends just while it is asked for
        return True


def settled(process: psutil.Process, *, stopped: bool) -> None:
    wait_until(lambda: is_stopped(process) == stopped)


def seconds_of(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def test_it_works_between_requests(other: psutil.Process) -> None:
    courtesy = Courtesy()
    assert not courtesy.waits
    courtesy.begin(0.01)  # There is nobody to stop.
    with courtesy.watched(other.pid):
        assert courtesy.waits
        assert not is_stopped(other)
        for _ in range(2):
            courtesy.begin(0.01)
            settled(other, stopped=True)
            time.sleep(0.01)
            courtesy.end()
            settled(other, stopped=False)
            time.sleep(0.01)
        courtesy.begin(0.01)
    assert not courtesy.waits
    settled(other, stopped=False)
    courtesy.begin(0.01)
    assert not is_stopped(other)


def test_where_requests_leave_no_time_each_waits_a_little(
    other: psutil.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAUSE_S", 60.0)
    courtesy = Courtesy(share=0.05)
    with courtesy.watched(other.pid):
        courtesy.begin(1.0)
        courtesy.end()  # Nothing is known yet of the time between two requests.
        courtesy.begin(1.0)
        settled(other, stopped=True)
        before_s = seconds_of(other)
        waited_s = []
        for _ in range(20):
            courtesy._due_s = 0.0  # As long ago as a request takes.
            begin_s = time.perf_counter()
            courtesy.begin(1.0)
            waited_s.append(time.perf_counter() - begin_s)
            settled(other, stopped=True)
            courtesy.end()
            assert is_stopped(other)
        assert min(waited_s) > 0.045
        assert seconds_of(other) - before_s > 0.2
        courtesy.rest()
        settled(other, stopped=False)


def test_requests_that_overlap_do_not_all_wait(
    other: psutil.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAUSE_S", 60.0)
    resumed: list[float] = []
    courtesy = Courtesy(share=0.01)
    monkeypatch.setattr(courtesy, "_wait", resumed.append)
    with courtesy.watched(other.pid):
        courtesy.begin(60.0)
        for _ in range(5):
            courtesy.begin(60.0)
    assert resumed == [pytest.approx(0.6, rel=0.01)]


@pytest.mark.parametrize(("latency_s", "slice_s"), [(0.001, 0.00007), (0.1, 0.00295)])
def test_a_slice_is_a_share_of_the_request_but_long_enough_to_begin(
    other: psutil.Process, monkeypatch: pytest.MonkeyPatch, latency_s: float, slice_s: float
) -> None:
    waited: list[float] = []
    courtesy = Courtesy(share=0.03, busy=lambda: True)
    monkeypatch.setattr(courtesy, "_wait", waited.append)
    with courtesy.watched(other.pid):
        courtesy.begin(latency_s)
    assert waited == [pytest.approx(slice_s)]


def test_it_begins_stopped_where_requests_run(other: psutil.Process) -> None:
    courtesy = Courtesy(busy=lambda: True)
    with courtesy.watched(other.pid):
        settled(other, stopped=True)
    settled(other, stopped=False)


def test_where_processes_can_not_be_stopped_none_is(
    other: psutil.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(signal, "SIGSTOP", raising=False)
    courtesy = Courtesy(busy=lambda: True)
    with courtesy.watched(other.pid):
        assert not courtesy.waits
        assert courtesy.begin(0.01) == 0.0
        assert not is_stopped(other)


def test_it_goes_first_where_somebody_waits_for_it(other: psutil.Process) -> None:
    courtesy = Courtesy()
    with courtesy.watched(other.pid):
        courtesy.begin(0.01)
        settled(other, stopped=True)
        with courtesy.hurry(), courtesy.hurry():
            settled(other, stopped=False)
            courtesy.begin(0.01)
            assert not courtesy.waits
            assert not is_stopped(other)
        courtesy.begin(0.01)
        settled(other, stopped=True)


@pytest.mark.parametrize(("piece_s", "share", "apart_s"), [(3e-4, 0.03, 0.01), (5e-4, RARELY, 0.1)])
def test_pieces_of_work_are_apart_while_requests_run(
    piece_s: float, share: float, apart_s: float
) -> None:
    courtesy = Courtesy(busy=lambda: True)
    courtesy.pace(piece_s, share)
    assert courtesy.elsewhere_s >= apart_s


@pytest.mark.parametrize("what", ["pace", "hold"])
def test_work_goes_on_where_somebody_waits_for_it(what: str) -> None:
    courtesy = Courtesy(busy=lambda: True)
    courtesy.hold(what == "hold")
    waits = partial(courtesy.pace, 60.0) if what == "pace" else courtesy.await_pause
    thread = threading.Thread(target=waits)
    thread.start()
    thread.join(0.5)
    assert thread.is_alive()
    with courtesy.hurry():
        thread.join(20)
    assert not thread.is_alive()


def test_pieces_of_work_follow_each_other_while_no_request_runs() -> None:
    courtesy = Courtesy(busy=lambda: False)
    courtesy.pace(60.0)
    assert courtesy.elsewhere_s < 60.0


def test_a_pause_is_awaited_but_not_for_ever() -> None:
    # Between two requests that follow each other, none runs either.
    looks = [True] * 5 + [False, True] * 5 + [False] * 2
    courtesy = Courtesy(busy=lambda: looks.pop(0))
    courtesy.await_pause()
    assert len(looks) <= 1
    courtesy = Courtesy(busy=lambda: True)
    courtesy.await_pause()
    assert courtesy.elsewhere_s >= 0.25


def test_a_process_that_has_gone_is_no_error() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    courtesy = Courtesy()
    with courtesy.watched(process.pid):
        courtesy.begin(0.01)
        courtesy.end()


def test_nobody_to_stop_takes_no_time_elsewhere() -> None:
    courtesy = Courtesy()
    with courtesy.watched(None):
        assert not courtesy.waits
    assert courtesy.elsewhere_s == 0.0


def test_a_subnet_is_prepared_though_requests_never_rest(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    courtesy = Courtesy()
    preparation = Preparation(bundle, courtesy=courtesy)
    archs = list(bundle.space.sample(3, seed=0))
    preparation.file(archs[0])  # The process is there.
    seen: list[bool] = []
    watched = courtesy.watched

    def busy(pid: int | None) -> object:
        process = preparation._process
        seen.append(process is not None and pid == process.worker != process._process.pid)
        return watched(pid)

    courtesy.watched = busy  # type: ignore[method-assign, assignment]
    stop = []

    def ask() -> None:
        while not stop:
            courtesy.begin(0.002)
            time.sleep(0.002)
            courtesy.end()

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        assert preparation.file(archs[1]).exists()
    finally:
        stop.append(True)
        thread.join()
    assert seen == [True]
    assert courtesy.elsewhere_s > 0
    preparation.close()


_SERVER = """
import json, os, signal, sys, time
from pathlib import Path
from fxelastic.edge import load
from fxelastic.edge.serving.preparation import Preparation
bundle = load(sys.argv[1])
preparation = Preparation(bundle, scratch=Path(sys.argv[2]))
preparation.file(bundle.space.original)
process = preparation._process
os.kill(process.worker, signal.SIGSTOP)
print(json.dumps([process._process.pid, process.worker]), flush=True)
time.sleep(600)
"""


def test_a_stopped_process_does_not_outlive_a_killed_runtime(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(bundle.path), str(tmp_path)],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    guardian, worker = (psutil.Process(pid) for pid in json.loads(server.stdout.readline()))
    settled(worker, stopped=True)
    os.kill(server.pid, signal.SIGKILL)
    server.wait()
    wait_until(lambda: has_ended(worker))
    wait_until(lambda: has_ended(guardian))


def test_closing_ends_a_stopped_process(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    preparation = Preparation(bundle)
    preparation.file(bundle.space.original)
    assert preparation._process is not None
    worker = psutil.Process(preparation._process.worker)
    worker.send_signal(signal.SIGSTOP)
    settled(worker, stopped=True)
    preparation.close()
    wait_until(lambda: has_ended(worker))


def test_a_runtime_closes_while_a_subnet_is_prepared_beside_requests(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    archs = list(dict.fromkeys([bundle.space.original, *bundle.space.sample(6, seed=0)]))
    pool = [Restated(arch, 5.0 + i, i / 10) for i, arch in enumerate(archs)]
    for n in (1, 20, 60):
        runtime = edge.serve(bundle, None, pool, budget_ms=1e6, mode="assembled", threads=1)
        while not runtime._courtesy.waits:  # A subnet for standby is being prepared.
            runtime(X)
        for _ in range(n):
            runtime(X)
        closing = threading.Thread(target=runtime.close)
        closing.start()
        closing.join(20)
        assert not closing.is_alive()
