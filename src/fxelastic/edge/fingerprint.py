"""The properties of a device that decide latencies."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import onnxruntime as ort
import psutil


def fingerprint() -> dict[str, str]:
    """Processor, cores, memory, operating system and onnxruntime's version.

    Source: `platform`, ``/proc/cpuinfo`` where there is one, and `psutil`.
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
    """The processor's instruction sets as far as the system tells; empty where it does not.

    A virtual machine may hide some of a processor of the same name, and onnxruntime lays weights
    out for those that are there.

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
