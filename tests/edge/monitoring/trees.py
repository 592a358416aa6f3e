"""Recorded trees of system files: the facts of machines, as their files say them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

MEMINFO = "MemTotal:       16000000 kB\nMemFree:  1000000 kB\nMemAvailable:   12000000 kB\n"
PSI = "some avg10={} avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0.00 total=0\n"
BARE = {
    "proc/stat": "cpu  100 0 100 700 100 0 0 0 0 0\ncpu0 100 0 100 700 100 0 0 0 0 0\n",
    "proc/meminfo": MEMINFO,
    "proc/pressure/cpu": PSI.format("12.50"),
    "proc/pressure/memory": PSI.format("0.00"),
    "proc/pressure/io": PSI.format("3.00"),
    "proc/self/cgroup": "0::/user.slice/session-1.scope\n",
    "sys/fs/cgroup/user.slice/session-1.scope/cpu.max": "max 100000\n",
    "sys/fs/cgroup/user.slice/session-1.scope/memory.max": "max\n",
    "sys/fs/cgroup/user.slice/session-1.scope/memory.current": "2000000000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1200000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "3600000\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "2400000\n",
    "sys/devices/system/cpu/cpu1/cpufreq/cpuinfo_max_freq": "3600000\n",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "2\n",
    "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "3\n",
    "sys/class/thermal/thermal_zone0/temp": "45000\n",
    "sys/class/thermal/thermal_zone1/temp": "61500\n",
}
# A container of version 1 sees the root of each controller, although its path is longer.
CONTAINER_V1 = {
    "proc/stat": BARE["proc/stat"],
    "proc/meminfo": MEMINFO,
    "proc/self/cgroup": "5:cpu,cpuacct:/docker/0123\n4:memory:/docker/0123\n1:name=systemd:/\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/cpu,cpuacct/cpuacct.usage": "5000000000\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "1000000000\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "900000000\n",
}
CONTAINER_V2 = {
    "proc/stat": BARE["proc/stat"],
    "proc/meminfo": MEMINFO,
    "proc/self/cgroup": "0::/\n",
    "sys/fs/cgroup/cpu.max": "50000 100000\n",
    "sys/fs/cgroup/cpu.stat": "usage_usec 5000000\nuser_usec 1\n",
    "sys/fs/cgroup/memory.max": "4000000000\n",
    "sys/fs/cgroup/memory.current": "3000000000\n",
}
# The group around it has the stricter limits.
NESTED_V2 = {
    **CONTAINER_V2,
    "proc/self/cgroup": "0::/outer/inner\n",
    "sys/fs/cgroup/outer/cpu.max": "25000 100000\n",
    "sys/fs/cgroup/outer/inner/cpu.max": "max 100000\n",
    "sys/fs/cgroup/outer/inner/memory.max": "max\n",
    "sys/fs/cgroup/outer/inner/memory.current": "1000000000\n",
}
JETSON = {
    "proc/stat": BARE["proc/stat"],
    "proc/meminfo": MEMINFO,
    "sys/devices/gpu.0/load": "423\n",
    "sys/class/thermal/thermal_zone0/temp": "-256000\n",
    "sys/class/thermal/thermal_zone1/temp": "52000\n",
}
NO_PSI = {name: text for name, text in BARE.items() if "pressure" not in name}
BROKEN = {
    "proc/stat": "cpu  abc\n",
    "proc/meminfo": "MemTotal: 0 kB\nMemAvailable: x\n",
    "proc/pressure/cpu": "some avg10=nan",
    "proc/self/cgroup": "garbage\n0::/../../etc\n:::\n",
    "sys/fs/cgroup/cpu.max": "-1 0\n",
    "sys/fs/cgroup/memory.max": "1e999\n",
    "sys/class/thermal/thermal_zone0/temp": "\x00\xff",
    "sys/devices/gpu.0/load": "",
}
TREES: Mapping[str, Mapping[str, str]] = {
    "bare": BARE,
    "container v1": CONTAINER_V1,
    "container v2": CONTAINER_V2,
    "nested v2": NESTED_V2,
    "jetson": JETSON,
    "no PSI": NO_PSI,
    "broken": BROKEN,
    "empty": {},
}


def write_tree(root: Path, files: Mapping[str, str]) -> Path:
    """Write files below a folder, and return it."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="latin-1")
    root.mkdir(exist_ok=True)
    return root
