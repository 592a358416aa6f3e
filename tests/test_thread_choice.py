"""The number of threads that steps compute with, by a clock that tests move."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import fxelastic
from fxelastic.threads import ThreadChoice, processors, thread_counts
from fxelastic.train import Callback, StepReport
from tests.train.killed_runs import Stop
from tests.train.supernets import linear_supernet, vector_batches


class Machine:
    """Steps take as long as a function of the number of threads and of the step says."""

    def __init__(self, seconds: Callable[[int, int], float], *counts: int) -> None:
        self.seconds = seconds
        self.now = 0.0
        self.threads = 0
        self.used: list[int] = []
        self.choice = ThreadChoice(
            counts or (2, 1), clock=lambda: self.now, set_threads=self.set_threads
        )

    def set_threads(self, number: int) -> None:
        self.threads = number

    def run(self, steps: int) -> list[int]:
        """Make steps; the numbers of threads that they computed with."""
        for _ in range(steps):
            with self.choice.step():
                self.now += self.seconds(self.threads, len(self.used))
            self.used.append(self.threads)
        return self.used[-steps:]


def test_the_faster_number_is_chosen() -> None:
    for two, one, expected in ((1.0, 1.8, 2), (1.0, 0.5, 1), (1.0, 0.95, 2), (30.0, 1.0, 1)):
        machine = Machine(lambda n, _, two=two, one=one: two if n == 2 else one)  # type: ignore[misc]
        assert machine.choice.chosen is None
        used = machine.run(20)
        assert {1, 2} == set(used), "both were tried"
        assert machine.choice.chosen == machine.choice.number == expected
        assert machine.run(5) == [expected] * 5


def test_a_single_slow_step_decides_nothing() -> None:
    # The first steps with a number make what later ones reuse, and one is disturbed.
    machine = Machine(lambda n, i: (9.0 if i in (0, 3, 7) else 1.0) / n)
    machine.run(20)
    assert machine.choice.number == 2


def test_a_number_that_is_hopeless_is_tried_twice() -> None:
    machine = Machine(lambda n, _: 30.0 if n == 2 else 1.0)
    assert machine.run(20)[3:].count(2) == 2


def test_all_halves_are_tried() -> None:
    machine = Machine(lambda n, _: abs(n - 4) + 1.0, 16, 8, 4, 2, 1)
    machine.run(60)
    assert set(machine.used) == {16, 8, 4, 2, 1}
    assert machine.choice.number == 4


def test_a_collapse_leads_to_fewer_threads(caplog: pytest.LogCaptureFixture) -> None:
    busy = [False]
    machine = Machine(lambda n, _: (30.0 if n == 2 else 1.5) if busy[0] else 1.0 / n)
    with caplog.at_level(logging.WARNING):
        machine.run(50)
        assert machine.choice.number == 2
        assert not caplog.records
        busy[0] = True
        machine.run(20)
    assert machine.choice.number == 1
    (record,) = caplog.records
    assert "a step takes 30 s instead of 0.5 s" in record.getMessage()
    assert "continues with 1 of 2 threads, which take 1.5 s" in record.getMessage()


def test_a_collapse_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    busy = [False]
    machine = Machine(lambda n, _: (30.0 if n == 2 else 1.5) if busy[0] else 1.0 / n)
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            busy[0] = not busy[0]
            machine.run(300)
    assert len(caplog.records) == 1


def test_a_brief_disturbance_does_not_pin_a_run_to_one_thread() -> None:
    for begin in (0, 40):
        machine = Machine(
            lambda n, i, begin=begin: (  # type: ignore[misc]
                (30.0 if n == 2 else 1.5) if begin <= i < begin + 60 else 1.0 / n
            )
        )
        machine.run(begin + 60)
        assert machine.choice.number == 1
        machine.run(250)
        assert machine.choice.number == 2


def test_steps_of_unequal_size_are_no_collapse(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(lambda n, i: (1 + i % 3) / n)
    with caplog.at_level(logging.WARNING):
        used = machine.run(200)
    assert not caplog.records
    assert 1 not in used[20:]


def test_a_step_that_fails_is_no_measurement() -> None:
    machine = Machine(lambda n, _: 1.0 / n)
    machine.run(40)
    with pytest.raises(ZeroDivisionError), machine.choice.step():
        raise ZeroDivisionError
    assert machine.run(5) == [2] * 5


def test_a_single_number_is_left_alone() -> None:
    machine = Machine(lambda *_: 1.0, 3)
    assert machine.choice.chosen == 3
    assert machine.run(10) == [0] * 10


def test_a_resumed_run_measures_nothing() -> None:
    machine = Machine(lambda n, _: 1.0 / n)
    machine.choice.resume(1)
    assert machine.run(30) == [1] * 30
    machine.choice.resume(7)
    assert machine.choice.number == 1


@pytest.fixture
def _two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxelastic.threads.usual_threads", lambda: 2)


@pytest.mark.usefixtures("_two_threads")
def test_a_number_is_fixed_where_it_is_given_or_bits_count() -> None:
    assert thread_counts(None, fixed=False) == (2, 1)
    assert thread_counts(None, fixed=True) == (2,)
    assert thread_counts(5, fixed=False) == (5,)
    torch.use_deterministic_algorithms(True)
    try:
        assert thread_counts(None, fixed=False) == (2,)
    finally:
        torch.use_deterministic_algorithms(False)


class Note(Callback):
    """Notes the numbers of threads."""

    def __init__(self) -> None:
        self.threads: list[int] = []

    def on_step(self, report: StepReport) -> None:
        self.threads.append(torch.get_num_threads())


@pytest.mark.usefixtures("_two_threads")
def test_training_tries_both_and_restores_torchs_number() -> None:
    for options in ({"steps": 10}, {"steps": 10, "callbacks": (Stop(8),)}):
        note, before = Note(), torch.get_num_threads()
        given = {**options, "callbacks": (note, *options.get("callbacks", ()))}  # type: ignore[misc]
        try:
            fxelastic.distill(linear_supernet(), vector_batches(), **given)
        except KeyboardInterrupt:
            assert len(note.threads) == 8
        assert {1, 2} == set(note.threads)
        assert torch.get_num_threads() == before


@pytest.mark.usefixtures("_two_threads")
def test_training_with_a_given_number_uses_no_other() -> None:
    for number in (1, 2, 3):
        note = Note()
        options = {"steps": 12, "threads": number, "callbacks": (note,)}
        fxelastic.tune(linear_supernet(), vector_batches(), **options)
        assert set(note.threads) == {number}


@pytest.mark.usefixtures("_two_threads")
def test_a_checkpoint_holds_the_number_of_threads(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fxelastic.distill(
            linear_supernet(),
            vector_batches(),
            epochs=20,
            checkpoints=tmp_path,
            callbacks=(Stop(20),),
        )
    newest = max(path for path in tmp_path.iterdir() if path.name.startswith("distill"))
    file = newest / "checkpoint.json"
    recorded = json.loads(file.read_text().split("\n", 1)[1])["data"]["position"]["threads"]
    assert recorded in (1, 2)
    for given, stop, expected in ((None, 22, recorded), (3, 27, 3)):
        note = Note()
        with pytest.raises(KeyboardInterrupt):
            fxelastic.distill(
                linear_supernet(),
                vector_batches(),
                epochs=20,
                checkpoints=tmp_path,
                threads=given,
                callbacks=(note, Stop(stop)),
            )
        assert len(note.threads) < 12, "the run went on"
        assert set(note.threads) == {expected}


def test_no_more_threads_than_processors_are_tried() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(processors() + 5)
    try:
        assert max(thread_counts(None, fixed=False)) == processors()
    finally:
        torch.set_num_threads(before)
