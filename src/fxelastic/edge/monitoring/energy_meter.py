"""`edge.EnergyMeter`: the energy that the device takes between two moments."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxelastic.edge.monitoring.energy_counters import Counter, find_counter
from fxelastic.edge.monitoring.power_model import PowerModel, PowerPoint, power_model
from fxelastic.edge.monitoring.system_files import CpuTimes, SystemFiles
from fxelastic.errors import UsageError

MODEL = "model"

# The error of a model that was calibrated on the device.
_CALIBRATED_ERROR = 0.2
# In shorter windows, the ticks of /proc/stat are too coarse.
_LEAST_TICKS = 5

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Energy:
    """The energy of a window of time.

    Attributes:
        joules: The energy of the whole processor, or of what the counter counts, in J; above 0.
        source: What measured it: ``rapl``, ``hwmon`` or ``battery``; or ``model``.
        band: The least and the largest energy that the source allows, in J.
        seconds: The length of the window.
        load: The share of the time of all threads in which they computed; None if unknown.
        notes: What is missing: the counters that can't be read, each with its file and the reason,
            and where the coefficients of the model come from.
    """

    joules: float
    source: str
    band: tuple[float, float]
    seconds: float
    load: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def watts(self) -> float:
        """The mean power, in W."""
        return self.joules / self.seconds

    def __str__(self) -> str:
        low, high = self.band
        band = f"{low:.4g} to {high:.4g}"
        return f"{self.joules:.4g} J ({band}) in {self.seconds:.4g} s, by {self.source}"


@dataclass(frozen=True)
class _State:
    """What is read at the beginning and at the end of a window."""

    time_s: float
    process_s: float
    times: CpuTimes | None
    frequency: float | None
    values: dict[str, float] | None


class EnergyMeter:
    """Measures the energy between `begin` and `end`.

    The sources are, in this order: RAPL, the sensors of ``/sys/class/hwmon`` (INA3221 of a Jetson,
    power meters), a battery that is discharging. Without a counter that can be read, the
    energy follows from the load and the frequency by a `PowerModel`, with a wider band. The energy
    is that of the whole device or processor, other processes included.

    Attributes:
        counter: The source; None for the model alone.
        power: The model.
        notes: Why better sources can't be used.
        threads: The number of hardware threads.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = "/",
        power: PowerModel | None = None,
        *,
        threads: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        process_clock: Callable[[], float] = time.process_time,
    ) -> None:
        """Look for a counter.

        Args:
            root: The root of the file system; another one for a recorded tree.
            power: The model of the processor's power; None to look it up in the table of known
                processors.
            threads: The number of hardware threads; None to read it from the system.
            clock: Returns the time, in s.
            process_clock: Returns the processor time of this process, in s.
        """
        self._files = SystemFiles(Path(root))
        info = self._files.text("proc/cpuinfo") or ""
        listed = len(re.findall(r"^processor\s*:", info, re.M))
        self.threads = max(1, threads or listed or os.cpu_count() or 1)
        self._clock, self._process_clock = clock, process_clock
        name = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", info, re.M)
        self.power = power or power_model(name[1] if name else "", self.threads)
        self.counter: Counter | None
        self.counter, notes = find_counter(self._files)
        self.notes = tuple(notes)
        self._begun: _State | None = None
        self._has_warned = False

    def begin(self) -> None:
        """Begin a window; a window that was begun before is dropped."""
        self._begun = self._state()

    def end(self) -> Energy:
        """The energy since `begin`.

        Raises:
            UsageError: `begin` was not called.
        """
        if self._begun is None:
            raise UsageError(
                "the meter measures no window", expected="begin() before end()", got="end() alone"
            )
        before, after = self._begun, self._state()
        self._begun = None
        seconds = max(1e-9, after.time_s - before.time_s)
        load, notes = self._load(before, after, seconds)
        watts = self.power.watts(load, _mean(before.frequency, after.frequency))
        expected_j = watts * seconds
        if self.counter is not None:
            found: Any = "it can't be read any more"
            if before.values is not None and after.values is not None:
                found = self.counter.between(before.values, after.values, seconds, expected_j)
            if not isinstance(found, str):
                return Energy(
                    found.joules, self.counter.source, found.band, seconds, load, self.notes
                )
            notes.insert(0, f"{self.counter.source}: {found}")
        notes = [*self.notes, *notes, f"power by a model: {self.power.source}"]
        self._warn(notes)
        factor = 1 + self.power.error
        band = (expected_j / factor, expected_j * factor)
        return Energy(expected_j, MODEL, band, seconds, load, tuple(notes))

    def calibrate(
        self,
        work: Callable[[float], object] | None = None,
        seconds: float = 2.0,
        rest: Callable[[float], object] = time.sleep,
    ) -> PowerModel:
        """Fit the model to the counter, once: at rest, and with all threads busy.

        The model then serves where the counter is not available, such as in a container of the
        same device: pass it as ``power``; `PowerModel.to_json` saves it. This meter uses it, too.

        Args:
            work: Keeps all threads busy for the time that it is called with, in s; None for
                checksums in as many threads.
            seconds: The length of each of the two windows.
            rest: Does nothing for the time that it is called with.

        Returns:
            The model.

        Raises:
            UsageError: No counter can be read, or the load at work is not above the one at rest.
        """
        if self.counter is None:
            raise UsageError(
                "a calibration needs a counter",
                expected="a counter of energy that can be read",
                got="; ".join(self.notes),
                fix="give the power: EnergyMeter(power=PowerModel.of(idle_w=…, full_w=…))",
            )
        points = []
        for wait in (rest, work or self._keep_busy):
            wait(seconds / 4)  # the frequency follows the load a little later
            first = self._state()
            self.begin()
            wait(seconds)
            energy = self.end()
            if energy.source == MODEL or energy.load is None:
                raise UsageError(
                    "the counter measured nothing",
                    expected="a window in which it moves",
                    got="; ".join(energy.notes),
                    fix="pass a longer time: calibrate(seconds=10)",
                )
            frequency = _mean(first.frequency, self._state().frequency)
            points.append(PowerPoint(energy.watts, energy.load, frequency))
        source = f"calibrated on this device by {self.counter.source}"
        self.power = PowerModel(points[0], points[1], _CALIBRATED_ERROR, source)
        return self.power

    def _keep_busy(self, seconds: float) -> None:
        """Compute checksums in all threads; they run side by side."""
        block, end_s = bytes(2**20), self._clock() + seconds

        def work() -> None:
            while self._clock() < end_s:
                hashlib.sha256(block).digest()

        workers = [threading.Thread(target=work, daemon=True) for _ in range(self.threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    def _state(self) -> _State:
        mhz = self._files.frequencies_mhz()
        frequency = mhz[0] / mhz[1] if mhz else None
        return _State(
            self._clock(),
            self._process_clock(),
            self._files.cpu_times(),
            frequency,
            None if self.counter is None else self.counter.read(self._files),
        )

    def _load(self, before: _State, after: _State, seconds: float) -> tuple[float, list[str]]:
        """The load of all threads; that of this process, where the system does not report it."""
        one, other = before.times, after.times
        if one is not None and other is not None and other.total - one.total >= _LEAST_TICKS:
            share = (other.busy - one.busy) / (other.total - one.total)
            return min(1.0, max(0.0, share)), []
        own = (after.process_s - before.process_s) / (seconds * self.threads)
        missing = "the window is shorter than its ticks" if one else "it can't be read"
        return min(1.0, max(0.0, own)), [
            f"the load is that of this process alone; /proc/stat: {missing}"
        ]

    def _warn(self, notes: list[str]) -> None:
        """Log once that there is no measurement, and why."""
        if not self._has_warned:
            self._has_warned = True
            logger.warning("energy is estimated: %s", "; ".join(notes))


def _mean(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else (one + other) / 2
