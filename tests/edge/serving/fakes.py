"""Subnets that need no model: each multiplies its input by a number of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fxelastic.edge.candidates import Candidate
from fxelastic.edge.executor import Array
from fxelastic.spec import Arch
from tests.edge.serving.simulation import entry

SIZE = 100


def factor(arch: Arch) -> float:
    """What a subnet multiplies by."""
    return float(sum(map(ord, str(arch))))


class OneArray:
    """Calls with one array, which is also what comes back."""

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, Array]:
        (x,) = args
        return {"x": x}

    def result(self, outputs: Sequence[Array]) -> Array:
        return outputs[0]


@dataclass
class FakeLoader:
    """Loads fakes, and fails where the test says so.

    Attributes:
        broken: Subnets that can't be loaded.
        raising: Subnets that raise when they run.
        nan: Subnets that give NaN.
        bulky: How many times the usual memory a subnet says that it needs.
        load_s: How long loading takes.
        run_s: How long a subnet runs.
        before_load: Called with each subnet to be loaded.
    """

    broken: set[Arch] = field(default_factory=set)
    raising: set[Arch] = field(default_factory=set)
    nan: set[Arch] = field(default_factory=set)
    bulky: dict[Arch, int] = field(default_factory=dict)
    load_s: float = 0.0
    run_s: Callable[[Arch], float] = lambda _: 0.0
    before_load: Callable[[Arch], None] = lambda _: None
    loaded: list[Arch] = field(default_factory=list)
    open: dict[Arch, int] = field(default_factory=dict)
    most_open: int = 0
    closed: bool = False
    faults: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def load(self, arch: Arch, *, urgent: bool = False) -> Fake:
        self.before_load(arch)
        if self.load_s:
            time.sleep(self.load_s)
        if arch in self.broken:
            raise OSError(f"no file for {arch}")
        with self.lock:
            self.loaded.append(arch)
            self.open[arch] = self.open.get(arch, 0) + 1
            self.most_open = max(self.most_open, sum(self.open.values()))
        return Fake(arch, self)

    def added_bytes(self, arch: Arch) -> int:
        return SIZE * self.bulky.get(arch, 1)

    @property
    def resident_bytes(self) -> int:
        with self.lock:
            return SIZE * sum(self.open.values())

    def close(self) -> None:
        self.closed = True


@dataclass(eq=False)
class Fake:
    arch: Arch
    loader: FakeLoader
    users: int = 0
    closed: bool = False

    def run(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        with self.loader.lock:
            self.users += 1
            if self.closed:
                self.loader.faults.append(f"{self.arch} runs after it was closed")
        try:
            seconds = self.loader.run_s(self.arch)
            if seconds:
                time.sleep(seconds)
            if self.arch in self.loader.raising:
                raise RuntimeError(f"{self.arch} can't run")
            scale = np.nan if self.arch in self.loader.nan else factor(self.arch)
            return [inputs["x"] * scale]
        finally:
            with self.loader.lock:
                self.users -= 1
                if self.closed:
                    self.loader.faults.append(f"{self.arch} was closed while it ran")

    def close(self) -> None:
        with self.loader.lock:
            if self.closed or self.users:
                self.loader.faults.append(f"{self.arch} is closed twice or in use")
            self.closed = True
            self.loader.open[self.arch] -= 1


def pool(*latencies_ms: float) -> list[Candidate]:
    return [entry(ms, 0.5 + ms / 1000) for ms in latencies_ms]


def archs(entries: Sequence[Candidate]) -> list[Arch]:
    return [candidate.arch for candidate in entries]


def n_threads() -> int:
    """The number of threads, without those that watch runs and end by themselves."""
    return sum(thread.name != "fxelastic-run-limit" for thread in threading.enumerate())


def wait_until(true: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait for another thread; fail when it takes very long."""
    end_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.001)
