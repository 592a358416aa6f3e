"""Facts from the files of the system, under any root; what is missing or broken is None."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

# A limit of cgroup v1 near the largest integer means none.
_UNLIMITED = 2**60
# Places of a graphics processor's use, in percent or in per mille (Jetson).
_GPU_PERCENT = ("sys/class/drm/card*/device/gpu_busy_percent",)
_GPU_PER_MILLE = ("sys/devices/gpu.0/load", "sys/devices/platform/*gpu*/load")


@dataclass(frozen=True)
class CpuTimes:
    """Processor time of all cores since the start, in any unit.

    Attributes:
        busy: The time in which a core computed.
        total: The time of all cores.
    """

    busy: float
    total: float


class SystemFiles:
    """Reads the files below a root, ``/`` or a recorded tree."""

    def __init__(self, root: Path) -> None:
        """Read below this folder."""
        self._root = root

    def text(self, path: str) -> str | None:
        """The text of a file; None if it can't be read."""
        try:
            return (self._root / path).read_text(encoding="utf-8", errors="replace")
        except (OSError, ValueError):
            return None

    def is_denied(self, path: str) -> bool:
        """Whether a file exists and may not be read."""
        try:
            (self._root / path).read_text(encoding="utf-8", errors="replace")
        except PermissionError:
            return True
        except (OSError, ValueError):
            pass
        return False

    def number(self, path: str) -> float | None:
        """The number in a file; None if there is no finite one."""
        return _number(self.text(path))

    def paths(self, pattern: str) -> Iterator[str]:
        """The files that match a pattern, sorted, relative to the root."""
        try:
            found = sorted(self._root.glob(pattern))
        except OSError:
            return
        for path in found:
            yield path.relative_to(self._root).as_posix()

    def cpu_times(self) -> CpuTimes | None:
        """The times of the first line of ``/proc/stat``."""
        first = (self.text("proc/stat") or "").partition("\n")[0].split()
        values = [_number(part) for part in first[1:9]]
        if first[:1] != ["cpu"] or len(values) < 4 or None in values:
            return None
        times = [value for value in values if value is not None]
        # The time of guests is part of the user's, and waiting for a disk is not computing.
        idle = times[3] + (times[4] if len(times) > 4 else 0.0)
        return CpuTimes(sum(times) - idle, sum(times))

    def memory(self) -> tuple[float, float] | None:
        """The memory that is available, and all of it, in bytes."""
        fields = dict(re.findall(r"^(\w+):\s+(\d+) kB", self.text("proc/meminfo") or "", re.M))
        total, free = fields.get("MemTotal"), fields.get("MemAvailable", fields.get("MemFree"))
        if total is None or free is None or int(total) <= 0:
            return None
        return min(int(free), int(total)) * 1024.0, int(total) * 1024.0

    def pressure(self, resource: str) -> float | None:
        """The share of the last 10 s in which a task waited for ``cpu``, ``memory`` or ``io``."""
        text = self.text(f"proc/pressure/{resource}") or ""
        found = re.search(r"^some avg10=([\d.]+)", text, re.M)
        value = _number(found[1]) if found else None
        return None if value is None else min(1.0, value / 100)

    def frequencies_mhz(self) -> tuple[float, float] | None:
        """The mean frequency of the cores, and the highest that one can have."""
        pattern = "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"
        current = [found for path in self.paths(pattern) if (found := self.number(path))]
        highest = [
            found
            for path in self.paths(pattern.replace("scaling_cur_freq", "cpuinfo_max_freq"))
            if (found := self.number(path))
        ]
        if not current:
            return None
        mean = sum(current) / len(current)
        return mean / 1000, max([mean, *highest]) / 1000

    def temperature_c(self) -> float | None:
        """The highest temperature of a thermal zone, in degrees Celsius."""
        found = [
            value / 1000
            for path in self.paths("sys/class/thermal/thermal_zone*/temp")
            if (value := self.number(path)) is not None
        ]
        sane = [value for value in found if -50 < value < 200]
        return max(sane, default=None)

    def n_throttled(self) -> int | None:
        """How often a core was slowed down because of its temperature."""
        pattern = "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count"
        found = [value for path in self.paths(pattern) if (value := self.number(path)) is not None]
        return int(sum(found)) if found else None

    def gpu(self) -> float | None:
        """The use of the busiest graphics processor, from 0 to 1."""
        found = [
            value / whole
            for patterns, whole in ((_GPU_PERCENT, 100), (_GPU_PER_MILLE, 1000))
            for pattern in patterns
            for path in self.paths(pattern)
            if (value := self.number(path)) is not None
        ]
        return min(1.0, max(0.0, max(found))) if found else None

    def quota_cores(self) -> float | None:
        """The number of cores that the control group may use; None without a limit."""
        limits = []
        for folder in self._groups(""):
            quota, _, period = (self.text(f"{folder}/cpu.max") or "").strip().partition(" ")
            limits.append(_ratio(_number(quota), _number(period)))
        for folder in self._groups("cpu"):
            quota_us = self.number(f"{folder}/cpu.cfs_quota_us")
            limits.append(_ratio(quota_us, self.number(f"{folder}/cpu.cfs_period_us")))
        known = [limit for limit in limits if limit is not None]
        return min(known, default=None)

    def memory_limit_bytes(self) -> float | None:
        """The memory that the control group may use; None without a limit."""
        found = [self.number(f"{folder}/memory.max") for folder in self._groups("")]
        found += [
            self.number(f"{folder}/memory.limit_in_bytes") for folder in self._groups("memory")
        ]
        known = [limit for limit in found if limit is not None and 0 < limit < _UNLIMITED]
        return min(known, default=None)

    def group_memory_bytes(self) -> float | None:
        """The memory that the control group uses."""
        found = [self.number(f"{folder}/memory.current") for folder in self._groups("")]
        found += [
            self.number(f"{folder}/memory.usage_in_bytes") for folder in self._groups("memory")
        ]
        return next((value for value in found if value is not None), None)

    def group_cpu_s(self) -> float | None:
        """The processor time that the control group has used, in seconds."""
        for folder in self._groups(""):
            found = re.search(r"^usage_usec (\d+)", self.text(f"{folder}/cpu.stat") or "", re.M)
            if found:
                return int(found[1]) / 1e6
        for folder in self._groups("cpuacct"):
            value = self.number(f"{folder}/cpuacct.usage")
            if value is not None:
                return value / 1e9
        return None

    def _of_groups(self, of_v2: str, of_v1: str) -> list[float | None]:
        """A number of the memory controller in each group, of version 2 and of version 1."""
        found = [self.number(f"{folder}/{of_v2}") for folder in self._groups("")]
        return found + [self.number(f"{folder}/{of_v1}") for folder in self._groups("memory")]

    def _groups(self, controller: str) -> list[str]:
        """The folders of the process's control group and of those around it, the inner first.

        Args:
            controller: A controller of version 1; empty for version 2. Inside of a container, the
                path of the group may not exist: the root of the controller is the group then.
        """
        base = PurePosixPath("sys/fs/cgroup")
        for line in (self.text("proc/self/cgroup") or "").splitlines():
            number, _, rest = line.partition(":")
            names, _, path = rest.partition(":")
            if controller not in names.split(",") or (not controller and number != "0"):
                continue
            roots = [base / name for name in (names, controller) if name] or [base]
            for root in roots:
                own = root / path.lstrip("/")
                if ".." in own.parts or not (self._root / root).is_dir():
                    continue
                folders = [own, *own.parents]
                inside = folders[: folders.index(root) + 1] if root in folders else [root]
                return [folder.as_posix() for folder in inside]
        return [base.as_posix()] if not controller else []


def _number(text: str | None) -> float | None:
    try:
        value = float((text or "").strip())
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _ratio(quota: float | None, period: float | None) -> float | None:
    if quota is None or period is None or quota <= 0 or period <= 0:
        return None
    return quota / period
