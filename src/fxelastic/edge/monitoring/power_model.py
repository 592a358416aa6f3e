"""The power of a processor as a function of its load, and a table of known processors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fxelastic.errors import UsageError

# Fitted to the ten profiles of `_CODECARBON`: how a processor's power between idle and full load
# grows with its load and its frequency; and with its load alone, where no frequency is known.
_LOAD, _FREQUENCY, _LOAD_ALONE = 0.15, 1.5, 0.8
# Near full load, a processor may take this much more than at full load, where it lowers its clock.
_MOST = 1.1


@dataclass(frozen=True)
class PowerPoint:
    """The power of a processor in one state.

    Attributes:
        watts: The power, in W.
        load: The share of the time of all threads in which they compute, from 0 to 1.
        frequency: The mean frequency as a share of the highest; None if unknown.
    """

    watts: float
    load: float
    frequency: float | None = None


@dataclass(frozen=True)
class PowerModel:
    """The power of a processor between idle and full load.

    ``P = P_idle + (P_full - P_idle) * s``, where ``s`` grows from 0 at the idle point to 1 at the
    full one with ``load**a * frequency**b``, or with ``load**c`` if no frequency is known. With
    ``c = 1`` this is the affine model. Published profiles of four processors agree best with
    ``a = 0.15``, ``b = 1.5`` and ``c = 0.8``: the first busy threads take most of the power.

    Attributes:
        idle: The processor at rest.
        full: The processor with all threads busy.
        error: The error of the power, as a share: the true power is within a factor ``1 + error``.
        source: Where the coefficients come from.
        exponents: ``a``, ``b`` and ``c``.

    Raises:
        UsageError: A power is not above 0, or the power at full load is below the idle one.
    """

    idle: PowerPoint
    full: PowerPoint
    error: float
    source: str
    exponents: tuple[float, float, float] = (_LOAD, _FREQUENCY, _LOAD_ALONE)

    def __post_init__(self) -> None:
        """Check the points."""
        if not 0 < self.idle.watts <= self.full.watts < math.inf:
            raise UsageError(
                "the power at full load must be at least the idle one, and both above 0 W",
                expected="for example PowerModel.of(idle_w=5, full_w=50)",
                got=f"{self.idle.watts!r} W idle, {self.full.watts!r} W at full load",
            )
        if not self.idle.load < self.full.load:
            raise UsageError(
                "the load at full power must be above the idle one",
                expected=f"a load above {self.idle.load!r}",
                got=repr(self.full.load),
            )

    @classmethod
    def of(cls, idle_w: float, full_w: float, error: float = 0.25) -> PowerModel:
        """The model of a processor whose power the user knows.

        Args:
            idle_w: The power at rest, in W.
            full_w: The power with all threads busy, in W.
            error: See the class.

        Raises:
            UsageError: A power is not above 0, or ``full_w`` is below ``idle_w``.
        """
        return cls(PowerPoint(idle_w, 0.0), PowerPoint(full_w, 1.0), error, "given by the user")

    def watts(self, load: float, frequency: float | None = None) -> float:
        """The power in a state, in W; at least that of the idle point.

        Args:
            load: The share of the time of all threads in which they compute.
            frequency: The mean frequency as a share of the highest; None if unknown.
        """
        known = None not in (frequency, self.idle.frequency, self.full.frequency)

        def value(load: float, frequency: float | None) -> float:
            a, b, c = self.exponents
            own = min(1.0, max(0.0, load))
            if not known or frequency is None:
                return float(own**c)
            return float(own**a * min(1.0, max(0.0, frequency)) ** b)

        low = value(self.idle.load, self.idle.frequency)
        high = value(self.full.load, self.full.frequency)
        share = (value(load, frequency) - low) / (high - low) if high > low else load
        return self.idle.watts + (self.full.watts - self.idle.watts) * min(_MOST, max(0.0, share))

    def to_json(self) -> dict[str, Any]:
        """The model as an object for ``json.dumps``."""
        return {**asdict(self), "exponents": list(self.exponents)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PowerModel:
        """Read the object that `to_json` returns.

        Raises:
            KeyError, TypeError, ValueError, UsageError: The value is malformed.
        """
        a, b, c = map(float, value["exponents"])
        return cls(
            PowerPoint(**value["idle"]),
            PowerPoint(**value["full"]),
            float(value["error"]),
            str(value["source"]),
            (a, b, c),
        )


@dataclass(frozen=True)
class KnownProcessor:
    """A processor of the table; all figures are for one package.

    Attributes:
        name: A part of its name, as ``/proc/cpuinfo`` has it.
        threads: The number of its hardware threads.
        tdp_w: Its thermal design power, in W, as its maker states it.
        idle: Its power at rest; None if it was not measured.
        full: Its power with all threads busy.
        source: Who measured it.
    """

    name: str
    threads: int
    tdp_w: float
    idle: PowerPoint | None = None
    full: PowerPoint | None = None
    source: str = "the maker's data sheet"


# Measured by RAPL; the energy of each step divided by its time, at the lowest and at the highest
# load. Two more profiles of the E3-1240 V2 are left out: they state up to 97 W for a package of
# 69 W, so they count the cores twice, once in the package.
_CODECARBON = "CodeCarbon's CPU load profiles (github.com/mlco2/codecarbon)"

PROCESSORS: tuple[KnownProcessor, ...] = (
    KnownProcessor(
        "AMD EPYC 8024P",
        16,
        90.0,
        PowerPoint(18.0, 0.003, 0.527),
        PowerPoint(46.5, 1.0, 0.986),
        _CODECARBON,
    ),
    KnownProcessor(
        "AMD Ryzen Threadripper 1950X",
        32,
        180.0,
        PowerPoint(43.5, 0.04, 0.592),
        PowerPoint(166.2, 1.0, 0.840),
        _CODECARBON,
    ),
    KnownProcessor(
        "Xeon(R) CPU E3-1240 V2",
        8,
        69.0,
        PowerPoint(5.6, 0.025, 0.424),
        PowerPoint(49.5, 1.0, 0.945),
        _CODECARBON,
    ),
    KnownProcessor(
        "Xeon(R) CPU E5-2620 v3",
        12,
        85.0,
        PowerPoint(7.9, 0.0, 0.491),
        PowerPoint(50.3, 1.0, 0.727),
        _CODECARBON,
    ),
    KnownProcessor("Xeon(R) CPU E5-2690 v4", 28, 135.0),
    KnownProcessor("Xeon(R) Gold 6248 CPU", 40, 150.0),
    KnownProcessor("AMD EPYC 7742", 128, 225.0),
    KnownProcessor("AMD EPYC 7763", 128, 280.0),
    KnownProcessor("AMD Ryzen 5 5600X", 12, 65.0),
    KnownProcessor("AMD Ryzen 9 5950X", 32, 105.0),
    KnownProcessor("AMD Ryzen 9 7950X", 32, 170.0),
    KnownProcessor("Core(TM) i7-8700K", 12, 95.0),
    KnownProcessor("Core(TM) i5-8250U", 8, 15.0),
)

# The geometric means over the measured processors of the table: power as a share of the thermal
# design power, and in W for each thread.
_IDLE_OF_TDP, _FULL_OF_TDP = 0.14, 0.67
_IDLE_W_A_THREAD, _FULL_W_A_THREAD = 0.93, 4.5
# How far predictions were off for profiles left out of the fit: of a processor in the table the
# mean, of one outside the largest.
_MEASURED_ERROR, _TDP_ERROR, _UNKNOWN_ERROR = 0.25, 0.6, 1.0


def power_model(processor: str, threads: int) -> PowerModel:
    """The power model of a processor, from the table, or from its number of threads.

    Args:
        processor: Its name, as ``/proc/cpuinfo`` has it.
        threads: The number of hardware threads of the machine.
    """
    threads = max(1, threads)
    # Names have varying spaces, and virtual machines may leave out marks.
    text = " ".join(processor.split()).lower()
    for known in PROCESSORS:
        if known.name.lower() not in text:
            continue
        packages = max(1, round(threads / known.threads))
        if known.idle is not None and known.full is not None:
            idle, full = (
                PowerPoint(packages * point.watts, point.load, point.frequency)
                for point in (known.idle, known.full)
            )
            return PowerModel(idle, full, _MEASURED_ERROR, known.source)
        tdp_w = packages * known.tdp_w
        return PowerModel(
            PowerPoint(_IDLE_OF_TDP * tdp_w, 0.0),
            PowerPoint(_FULL_OF_TDP * tdp_w, 1.0),
            _TDP_ERROR,
            f"shares of the thermal design power, {tdp_w:g} W, from {known.source}",
        )
    return PowerModel(
        PowerPoint(_IDLE_W_A_THREAD * threads, 0.0),
        PowerPoint(_FULL_W_A_THREAD * threads, 1.0),
        _UNKNOWN_ERROR,
        f"{_IDLE_W_A_THREAD} to {_FULL_W_A_THREAD} W for each of {threads} threads: the processor "
        "is not in the table",
    )
