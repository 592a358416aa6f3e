"""The counters and sensors of energy that a system has: RAPL, hwmon, INA3221, battery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from fxelastic.edge.monitoring.system_files import SystemFiles

RAPL, HWMON, BATTERY = "rapl", "hwmon", "battery"

# A counter is updated about once in a millisecond, and its scale is off by a few percent.
_UPDATE_S, _SCALE = 0.001, 0.03
# A sensor of power is read twice, at the beginning and at the end.
_SENSOR = 0.1
_SENSORS = ("ina", "power_meter", "amd_energy")
# The rail that all others hang on, by the labels of Jetson boards.
_TOTAL = ("VDD_IN", "POM_5V_IN", "5V_IN", "VIN_SYS_5V0")


@dataclass(frozen=True)
class Counted:
    """The energy that a counter measured.

    Attributes:
        joules: The energy, in J.
        band: The least and the largest energy that the reading allows.
    """

    joules: float
    band: tuple[float, float]


@dataclass(frozen=True)
class Counter:
    """Files that count energy, or that tell the power.

    Attributes:
        source: One of `RAPL`, `HWMON`, `BATTERY`.
        energies: The files that count energy in µJ, each with the value at which it starts again
            from 0; 0 if that is not known.
        powers: Pairs of files whose product is a power in W, each with its unit; the second file
            may be missing.
    """

    source: str
    energies: Mapping[str, float]
    powers: Sequence[tuple[str, str | None, float]] = ()

    def read(self, files: SystemFiles) -> dict[str, float] | None:
        """The value of each file; None if one can't be read any more."""
        found: dict[str, float] = {}
        for path in (*self.energies, *(p for own in self.powers for p in own[:2] if p)):
            value = files.number(path)
            if value is None:
                return None
            found[path] = value
        return found

    def watts(self, values: Mapping[str, float]) -> float:
        """The power that a reading tells, in W."""
        return sum(
            abs(values[one] * (values[other] if other else 1.0)) * unit
            for one, other, unit in self.powers
        )

    def between(
        self,
        before: Mapping[str, float],
        after: Mapping[str, float],
        seconds: float,
        expected_j: float,
    ) -> Counted | str:
        """The energy between two readings.

        Args:
            before: The reading at the beginning.
            after: The reading at the end.
            seconds: The time in between.
            expected_j: About how much is expected, which tells how often a counter started again.

        Returns:
            The energy, or why there is none.
        """
        if self.powers:
            low, high = sorted((self.watts(before), self.watts(after)))
            if low <= 0:
                return f"{self.powers[0][0]} reads 0"
            joules = (low + high) / 2 * seconds
            return Counted(joules, (low * seconds / (1 + _SENSOR), high * seconds * (1 + _SENSOR)))
        total = 0.0
        for path, largest in self.energies.items():
            counted = after[path] - before[path]
            if counted < 0:
                if largest <= 0:
                    return f"{path} went back, and its range is not known"
                counted += largest
            share_uj = 1e6 * expected_j / len(self.energies)
            if largest > 0 and share_uj > largest:
                counted += largest * max(0, round((share_uj - counted) / largest))
            total += counted / 1e6
        if total <= 0:
            return f"{next(iter(self.energies))} did not move in {1e3 * seconds:.3g} ms"
        step = total * _UPDATE_S / max(seconds, _UPDATE_S)
        scale = _SCALE * total
        return Counted(total, (max(0.0, total - step - scale), total + step + scale))


def find_counter(files: SystemFiles) -> tuple[Counter | None, list[str]]:
    """The best counter of a system, and why better ones can't be used.

    Args:
        files: The files of the system.

    Returns:
        The counter; None if there is none. And for each source that exists but can't be used, a
        message that names the file and the reason.
    """
    notes: list[str] = []
    for find in (_rapl, _hwmon, _battery):
        counter, note = find(files)
        if note:
            notes.append(note)
        if counter is not None:
            return counter, notes
    if not notes:
        notes.append(
            "no counter of energy: neither /sys/class/powercap, /sys/class/hwmon nor "
            "/sys/class/power_supply has one that is known"
        )
    return None, notes


def _rapl(files: SystemFiles) -> tuple[Counter | None, str]:
    """The packages and their memory; else the platform, which contains the packages.

    The zones ``core`` and ``uncore`` are parts of a package, so they do not count.
    """
    packages: dict[str, str] = {}
    platform: dict[str, str] = {}
    found_paths = files.paths("sys/class/powercap/*rapl*:*/energy_uj")
    for path in sorted(found_paths, key=lambda p: ("mmio" in p, p)):
        zone = PurePosixPath(path).parent
        name = (files.text(f"{zone}/name") or "").strip()
        is_part = zone.name.count(":") > 1
        if not is_part and name.startswith("package"):
            packages.setdefault(name, path)  # rapl-mmio may have the same package again
        elif is_part and name == "dram":
            packages.setdefault(f"{name} {zone.name}", path)
        elif not is_part and name == "psys":
            platform.setdefault(name, path)
    found = packages or platform
    if not found:
        return None, ""
    for path in found.values():
        if files.is_denied(path):
            return None, (
                f"/{path} can't be read: permission denied; as root, run: chmod a+r /{path}"
            )
    largest = {
        path: files.number(f"{PurePosixPath(path).parent}/max_energy_range_uj") or 0.0
        for path in found.values()
    }
    counter = Counter(RAPL, largest)
    if counter.read(files) is None:
        return None, f"/{next(iter(largest))} holds no number"
    return counter, ""


def _hwmon(files: SystemFiles) -> tuple[Counter | None, str]:
    """A sensor whose driver is known: INA3221 and its relatives, power meters, AMD's counters."""
    note = ""
    for path in files.paths("sys/class/hwmon/hwmon*/name"):
        driver = (files.text(path) or "").strip()
        if not driver.startswith(_SENSORS):
            continue
        folder = PurePosixPath(path).parent.as_posix()
        for counter in (_sockets(files, folder), _power(files, folder), _rails(files, folder)):
            if counter is None:
                continue
            denied = [p for p in _paths(counter) if files.is_denied(p)]
            if denied:
                note = note or f"/{denied[0]} can't be read: no permission"
            elif counter.read(files) is not None:
                return counter, note
    return None, note


def _paths(counter: Counter) -> list[str]:
    return [*counter.energies, *(p for own in counter.powers for p in own[:2] if p)]


def _sockets(files: SystemFiles, folder: str) -> Counter | None:
    """The counters of AMD's sockets; those of single cores are parts of them."""
    found = [
        path
        for path in files.paths(f"{folder}/energy*_input")
        if _label(files, path).startswith("Esocket")
    ]
    return Counter(HWMON, dict.fromkeys(found, 0.0)) if found else None


def _power(files: SystemFiles, folder: str) -> Counter | None:
    """A sensor that tells the power, in µW."""
    paths = [
        *files.paths(f"{folder}/power*_input"),
        *files.paths(f"{folder}/power*_average"),
    ]
    chosen = _whole([(path, _label(files, path)) for path in paths])
    return Counter(HWMON, {}, [(path, None, 1e-6) for path in chosen]) if chosen else None


def _rails(files: SystemFiles, folder: str) -> Counter | None:
    """A sensor that tells voltages, in mV, and currents, in mA."""
    pairs = []
    for path in files.paths(f"{folder}/curr*_input"):
        voltage = path.replace("/curr", "/in")
        if files.text(voltage) is not None:
            pairs.append((path, _label(files, voltage)))
    chosen = _whole(pairs)
    powers = [(path, path.replace("/curr", "/in"), 1e-6) for path in chosen]
    return Counter(HWMON, {}, powers) if powers else None


def _whole(rails: Sequence[tuple[str, str]]) -> list[str]:
    """The rail that all others hang on, if there is one; else all rails."""
    total = [path for path, label in rails if label in _TOTAL]
    return total[:1] or [path for path, _ in rails]


def _label(files: SystemFiles, path: str) -> str:
    stem = path.removesuffix("_input").removesuffix("_average")
    return (files.text(f"{stem}_label") or "").strip()


def _battery(files: SystemFiles) -> tuple[Counter | None, str]:
    """A battery that is discharging: only then its power is that of the device."""
    note = ""
    for path in files.paths("sys/class/power_supply/*/type"):
        folder = PurePosixPath(path).parent.as_posix()
        if (files.text(path) or "").strip() != "Battery":
            continue
        state = (files.text(f"{folder}/status") or "").strip()
        if state != "Discharging":
            note = note or (
                f"/{folder}/status is {state or 'unknown'}: a battery shows the device's power "
                "only while it is discharging"
            )
            continue
        for powers in (
            [(f"{folder}/power_now", None, 1e-6)],
            [(f"{folder}/current_now", f"{folder}/voltage_now", 1e-12)],
        ):
            counter = Counter(BATTERY, {}, powers)
            values = counter.read(files)
            if values is not None and counter.watts(values) > 0:
                return counter, note
        note = note or f"/{folder} reports neither power nor current and voltage"
    return None, note
