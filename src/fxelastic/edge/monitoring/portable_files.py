"""Facts about the device on systems without ``/proc``, such as Windows and macOS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from fxelastic.edge.monitoring.system_files import CpuTimes, SystemFiles


class PortableFiles(SystemFiles):
    """Asks psutil for processor times, memory and frequency; what it does not know is None."""

    def cpu_times(self) -> CpuTimes | None:
        """The times of all cores, in seconds."""
        times = _told(psutil.cpu_times)
        if times is None:
            return None
        idle = times.idle + getattr(times, "iowait", 0.0)
        return CpuTimes(sum(times) - idle, sum(times))

    def memory(self) -> tuple[float, float] | None:
        """The memory that is available, and all of it, in bytes."""
        found = _told(psutil.virtual_memory)
        return None if found is None else (float(found.available), float(found.total))

    def frequencies_mhz(self) -> tuple[float, float] | None:
        """The mean frequency of the cores, and the highest that one can have."""
        found = _told(getattr(psutil, "cpu_freq", lambda: None))
        if found is None or not found.current:
            return None
        return float(found.current), float(max(found.current, found.max or 0.0))


def files_of(root: Path) -> SystemFiles:
    """The files below a root; for the root of a system without ``/proc``, what psutil knows."""
    if root == Path("/") and not (root / "proc/stat").exists():
        return PortableFiles(root)
    return SystemFiles(root)


def _told(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except Exception:  # noqa: BLE001 - psutil's errors differ between systems
        return None
