"""Ctrl-C and SIGTERM come between requests."""

from __future__ import annotations

import os
import signal
import time

import pytest

from fxelastic.cli.interrupts import Interrupts


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_within_a_request_waits_for_its_end(number: int) -> None:
    done = []

    def serve() -> None:
        with Interrupts() as interrupts, interrupts.request():
            send(number)
            done.append("request")

    with pytest.raises(KeyboardInterrupt):
        serve()
    assert done == ["request"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_one_does_not_wait(number: int) -> None:
    """What runs may never end."""
    done = []

    def serve() -> None:
        with Interrupts() as interrupts, interrupts.request():
            send(number)
            done.append("first")
            send(number)
            done.append("second")

    with pytest.raises(KeyboardInterrupt):
        serve()
    assert done == ["first"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_between_requests_it_comes_at_once(number: int) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    done = []

    def serve() -> None:
        with Interrupts() as interrupts:
            with interrupts.request():
                done.append("request")
            send(number)
            done.append("more")

    with pytest.raises(KeyboardInterrupt):
        serve()
    assert done == ["request"]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
