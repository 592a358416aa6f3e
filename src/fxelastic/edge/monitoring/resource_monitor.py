"""`edge.ResourceMonitor`: the use of the device's resources, a load index, and its forecast."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fxelastic.edge.monitoring.forecast import Forecast
from fxelastic.edge.monitoring.portable_files import files_of
from fxelastic.edge.monitoring.system_files import CpuTimes
from fxelastic.errors import UsageError

#: The weights of the resources in the load index. What can't be read does not count.
WEIGHTS: Mapping[str, float] = {"cpu": 0.6, "memory": 0.15, "io": 0.1, "gpu": 0.15}
_PRESSURES = ("cpu", "memory", "io")


@dataclass(frozen=True)
class Resources:
    """One reading. Shares are from 0 to 1; what the system does not report is None.

    Attributes:
        time_s: When it was read, by a clock that never goes back.
        cpu: The use of all cores since the reading before; None in the first.
        quota_used: The share of the control group's quota of processor time that it used.
        memory: The share of the memory, or of the control group's limit, that is used.
        pressure: The share of the last 10 s in which a task waited, for ``cpu``, ``memory`` and
            ``io``.
        gpu: The use of the busiest graphics processor.
        quota_cores: The number of cores that the control group may use.
        memory_limit_bytes: The memory that the control group may use.
        frequency_mhz: The mean frequency of the cores.
        max_frequency_mhz: The highest frequency of a core.
        temperature_c: The highest temperature, in degrees Celsius.
        n_throttled: How often a core was slowed down because of its temperature.
        load_index: The weighted mean of the uses; 0 if none is known.
    """

    time_s: float
    cpu: float | None = None
    quota_used: float | None = None
    memory: float | None = None
    pressure: Mapping[str, float] = field(default_factory=dict)
    gpu: float | None = None
    quota_cores: float | None = None
    memory_limit_bytes: float | None = None
    frequency_mhz: float | None = None
    max_frequency_mhz: float | None = None
    temperature_c: float | None = None
    n_throttled: int | None = None
    load_index: float = 0.0

    @property
    def missing(self) -> tuple[str, ...]:
        """The names of what the system does not report."""
        return tuple(name for name, value in asdict(self).items() if value is None or value == {})

    def to_json(self) -> dict[str, Any]:
        """The reading as an object for ``json.dumps``."""
        return asdict(self)


class ResourceMonitor:
    """Reads the use of the device's resources.

    The load index is the weighted mean of the use of the processor (or of the control group's
    quota, if that is higher), memory, graphics processor, and the pressure on input and output.

    Source: AdaScale, Eq. 2.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = "/",
        weights: Mapping[str, float] = WEIGHTS,
        *,
        steps: tuple[int, ...] = (1, 2, 5),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            root: The root of the file system; another one for a recorded tree.
            weights: Weights of ``cpu``, ``memory``, ``io`` and ``gpu`` in the load index.
            steps: How many readings ahead `forecast` can look.
            clock: Returns the time, in s.

        Raises:
            UsageError: A weight is unknown or negative, or all are 0, or a step is below 1.
        """
        for name in weights:
            if name not in WEIGHTS:
                raise UsageError(
                    f"weights has an unknown resource, {name!r}",
                    expected="some of " + ", ".join(WEIGHTS),
                    got=", ".join(map(repr, weights)),
                )
        if not all(value >= 0 for value in weights.values()) or not any(weights.values()):
            raise UsageError(
                "weights must be numbers of at least 0, not all of them 0",
                expected="weights of " + ", ".join(WEIGHTS),
                got=repr(dict(weights)),
            )
        if not steps or min(steps) < 1:
            raise UsageError("steps must be at least 1", expected="(1, 2, 5)", got=repr(steps))
        self._files = files_of(Path(root))
        self._weights = dict(weights)
        self._clock = clock
        self._before: tuple[float, CpuTimes | None, float | None] | None = None
        self._steps = steps
        self.restart()

    def restart(self) -> None:
        """Begin the series that the forecast is of anew, after a pause between readings."""
        self._forecast = Forecast(self._steps, bounds=(0.0, 1.0))

    def read(self) -> Resources:
        """Read everything once. The use of the processor is that since the reading before."""
        files, now_s = self._files, self._clock()
        times, group_s = files.cpu_times(), files.group_cpu_s()
        quota, limit = files.quota_cores(), files.memory_limit_bytes()
        cpu = used = None
        if self._before is not None:
            before_s, before, before_group_s = self._before
            if times is not None and before is not None and times.total > before.total:
                cpu = _share((times.busy - before.busy) / (times.total - before.total))
            if quota and group_s is not None and before_group_s is not None and now_s > before_s:
                used = _share((group_s - before_group_s) / (now_s - before_s) / quota)
        self._before = now_s, times, group_s
        mean_mhz, highest_mhz = files.frequencies_mhz() or (None, None)
        pressure = {n: found for n in _PRESSURES if (found := files.pressure(n)) is not None}
        memory, gpu = self._memory(limit), files.gpu()
        busiest = max((u for u in (cpu, used) if u is not None), default=None)
        uses = {"cpu": busiest, "memory": memory, "io": pressure.get("io"), "gpu": gpu}
        index = self._index(uses)
        if busiest is not None:
            self._forecast.add(index)
        return Resources(
            now_s,
            cpu,
            used,
            memory,
            pressure,
            gpu,
            quota,
            limit,
            mean_mhz,
            highest_mhz,
            files.temperature_c(),
            files.n_throttled(),
            index,
        )

    def forecast(self, steps: int = 1) -> float | None:
        """The load index so many readings ahead; None before the second reading.

        Readings must be at equal distances in time. The forecast is the last value where a model
        was not better lately; see `Forecast`.

        Args:
            steps: One of the numbers that the monitor was made for.

        Raises:
            UsageError: It was not made for this number.
        """
        if steps not in self._forecast.steps:
            raise UsageError(
                f"the monitor does not look {steps} readings ahead",
                expected=f"one of {', '.join(map(str, self._forecast.steps))}",
                got=repr(steps),
                fix=f"make it with steps=(…, {steps})",
            )
        return self._forecast.at(steps)

    def _memory(self, limit: float | None) -> float | None:
        machine = self._files.memory()
        own = self._files.group_memory_bytes()
        shares = [] if machine is None else [1 - machine[0] / machine[1]]
        if limit and own is not None:
            shares.append(_share(own / limit))
        return max(shares, default=None)

    def _index(self, uses: Mapping[str, float | None]) -> float:
        known = {name: use for name, use in uses.items() if use is not None}
        total = sum(self._weights.get(name, 0.0) for name in known)
        if not total:
            return 0.0
        return sum(self._weights.get(name, 0.0) * use for name, use in known.items()) / total


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))
