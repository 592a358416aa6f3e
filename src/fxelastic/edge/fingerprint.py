"""The properties of a device that determine latencies."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import onnxruntime as ort
import psutil


def fingerprint() -> dict[str, str]:
    """The processor, cores, memory, operating system and version of onnxruntime.

    Source: `platform`, ``/proc/cpuinfo`` if it exists, and `psutil`.
    """
    return {
        "processor": _processor(),
        "machine": platform.machine(),
        "cores": str(psutil.cpu_count(logical=False) or os.cpu_count() or 0),
        "logical_cores": str(os.cpu_count() or 0),
        "memory_gib": str(round(psutil.virtual_memory().total / 2**30)),
        "system": platform.system(),
        "onnxruntime": ort.__version__,
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return platform.processor() or "unknown"
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware"):
            return " ".join(value.split())
    return platform.processor() or "unknown"


def processor_features() -> str:
    """The processor's instruction sets as reported by the system; empty if it doesn't report them.

    Virtual machines with the same processor name may expose different instruction sets, and
    onnxruntime arranges weights for the available ones.

    Source: ``/proc/cpuinfo``.
    """
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return " ".join(sorted(value.split()))
    return ""
