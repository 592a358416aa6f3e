"""The properties of a device that determine latencies."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort
import psutil

#: The key of the processor's instructions for products of bytes.
INT8_FEATURES = "int8"
#: These instructions, as the system names them: of x86 and of ARM.
_VNNI = ("avx_vnni", "avx512_vnni", "avx_vnni_int8")
_BYTE_PRODUCTS = ("avx2", *_VNNI, "amx_int8", "asimd", "asimddp", "i8mm")
_X86 = ("x86_64", "amd64", "i386", "i686", "x86")


def fingerprint() -> dict[str, str]:
    """The processor, cores, memory, operating system and version of onnxruntime.

    The key ``int8`` has the processor's instructions for products of bytes: VNNI, AVX2, or the dot
    products of NEON (``asimddp``).

    Source: `platform`, ``/proc/cpuinfo`` if it exists, and `psutil`.
    """
    return {
        "processor": _processor(),
        "machine": platform.machine(),
        INT8_FEATURES: byte_products(processor_features()),
        "cores": str(psutil.cpu_count(logical=False) or os.cpu_count() or 0),
        "logical_cores": str(os.cpu_count() or 0),
        "memory_gib": str(round(psutil.virtual_memory().total / 2**30)),
        "system": platform.system(),
        "onnxruntime": ort.__version__,
    }


def byte_products(features: str) -> str:
    """The instructions for products of bytes among all features of a processor."""
    known = set(features.split())
    return " ".join(name for name in _BYTE_PRODUCTS if name in known)


def needs_reduced_range(device: Mapping[str, str]) -> bool:
    """Whether weights may have 7 bits only: on x86 without VNNI, or if its features are unknown.

    There, onnxruntime adds products of an unsigned and a signed byte in pairs, in 16 bits.

    Args:
        device: The device, as `fingerprint` returns it.
    """
    vnni = set(_VNNI).intersection(device.get(INT8_FEATURES, "").split())
    return device.get("machine", "").lower() in _X86 and not vnni


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
