"""The resources that a subnet uses, and how the costs of its branches combine.

To add a resource, add an entry to `RESOURCES`: tables, limits, pools, searches and reports read
its name, unit and rule from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fxelastic.errors import UsageError

#: How the costs of branches combine: their sum, their maximum, or their sum with shared parts
#: counted once.
SUM, PEAK, UNION = "sum", "peak", "union"


@dataclass(frozen=True)
class Resource:
    """A resource.

    Attributes:
        name: Its key in tables and limits, with the unit at the end: ``latency_ms``.
        label: Its name in messages and reports.
        unit: The unit of its values.
        rule: How the costs of branches combine: `SUM`, `PEAK` or `UNION`.
    """

    name: str
    label: str
    unit: str
    rule: str = SUM

    def text(self, value: float) -> str:
        """Format a value with its unit: ``12.5 ms``, ``3.2 MiB``."""
        if self.unit == "bytes":
            scale, prefix = next(((2**n, p) for n, p in _BINARY if value >= 2**n), (1, ""))
            return f"{value / scale:.4g} {prefix}{'B' if prefix else 'bytes'}"
        return f"{value:.4g} {self.unit}"


_BINARY = ((30, "Gi"), (20, "Mi"), (10, "Ki"))

LATENCY = "latency_ms"
ENERGY = "energy_mj"
ACCESS_ENERGY = "access_energy_mj"
WEIGHTS = "weight_bytes"

#: Every resource by its name.
RESOURCES: Mapping[str, Resource] = {
    found.name: found
    for found in (
        Resource(LATENCY, "latency", "ms"),
        Resource(ENERGY, "energy", "mJ"),
        Resource(ACCESS_ENERGY, "energy by accesses", "mJ"),
        Resource("flops", "FLOPs", "FLOPs"),
        Resource("n_params", "parameters", "parameters"),
        Resource("traffic_bytes", "memory traffic", "bytes"),
        Resource("peak_memory_bytes", "peak memory", "bytes", PEAK),
        Resource(WEIGHTS, "weights", "bytes", UNION),
    )
}


def resource(name: object) -> Resource:
    """Look up a resource by name.

    Raises:
        UsageError: No resource has this name.
    """
    if not isinstance(name, str) or name not in RESOURCES:
        raise UsageError(
            f"unknown resource {name!r}",
            expected="one of " + ", ".join(RESOURCES),
            got=repr(name),
        )
    return RESOURCES[name]
