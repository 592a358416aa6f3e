"""Measure how far the model of a processor's power is off on published profiles.

    python benchmarks/energy.py --data FOLDER [--out FILE]

FOLDER has the CPU load profiles of CodeCarbon (mlco2/codecarbon, data/hardware/cpu_load_profiling):
for each machine and kind of load some steps of the load, each with the energy that RAPL counted.
The power of a step is its energy divided by its time. The column ``rapl_power`` is not used: it has
the power of the step before.

Each profile is left out in turn. Three predictions of its steps:

* uncalibrated: the idle and the full power are the mean over the other profiles of the same
  processor. Profiles whose power exceeds what the maker states by more than a fifth, which count
  something twice, are not used for that. ``of others`` leaves the other profiles of the same
  processor out, too, and scales the rest by the number of threads.
* calibrated: the idle and the full power are those of the profile's steps of the lowest and the
  highest load; the error is on the other steps.
* affine: as calibrated, with a power that is linear in the load, as a baseline.

The exponents of load and frequency are fitted to the profiles that are not left out.

Bars: a mean error of 25 % uncalibrated, 15 % calibrated.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fxelastic.edge.monitoring.power_model import PROCESSORS, PowerModel, PowerPoint
from fxelastic.errors import UsageError

BARS = {"uncalibrated": 0.25, "calibrated": 0.15}
# The highest frequency in MHz, as the makers state it.
HIGHEST_MHZ = {
    "AMD EPYC 8024P": 3000.0,
    "AMD Ryzen Threadripper 1950X": 4000.0,
    "Xeon(R) CPU E3-1240 V2": 3800.0,
    "Xeon(R) CPU E5-2620 v3": 3200.0,
}
# Above this multiple of the stated power, a profile counts something twice.
PLAUSIBLE = 1.2
LOADS = [0.05 * i for i in range(1, 13)]
FREQUENCIES = [0.5 + 0.125 * i for i in range(17)]
Exponents = tuple[float, float, float]
AFFINE: Exponents = (1.0, 0.0, 1.0)


@dataclass(frozen=True)
class Profile:
    """A published profile.

    Attributes:
        name: The name of its file, shortened.
        processor: The name in the table of known processors.
        threads: The number of threads of the machine.
        steps: The power at each load, sorted by load.
        stated_w: The thermal design power of all packages, in W.
    """

    name: str
    processor: str
    threads: int
    steps: tuple[PowerPoint, ...]
    stated_w: float

    @property
    def is_plausible(self) -> bool:
        """Whether the power is one that the processor can take."""
        return max(point.watts for point in self.steps) <= PLAUSIBLE * self.stated_w


def read(path: Path) -> Profile:
    """Read a profile."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    known = next(p for p in PROCESSORS if p.name in rows[0]["cpu_name"])
    threads = max(int(float(row["cores_used"])) for row in rows)
    steps = [
        PowerPoint(
            3.6e6 * float(row["rapl_energy"]) / float(row["duration"]),
            float(row["cpu_load"]) / 100,
            min(1.0, float(row["cpu_freq"]) / HIGHEST_MHZ[known.name]),
        )
        for row in rows
    ]
    packages = max(1, round(threads / known.threads))
    steps.sort(key=lambda point: point.load)
    name = path.name.partition("-2025")[0]
    kind = "all cores" if "all_cores" in name else "some cores"
    short = name.partition("_all" if "all_cores" in name else "_some")[0]
    return Profile(f"{short}, {kind}", known.name, threads, tuple(steps), packages * known.tdp_w)


def error(model: PowerModel, steps: Sequence[PowerPoint]) -> float:
    """The mean relative error of a model."""
    off = [abs(model.watts(p.load, p.frequency) - p.watts) / p.watts for p in steps]
    return math.fsum(off) / len(off)


def own(profile: Profile, exponents: Exponents) -> tuple[PowerModel, Sequence[PowerPoint]]:
    """The model calibrated on a profile's first and last step, and the other steps."""
    first, *others, last = profile.steps
    return PowerModel(first, last, 0.2, profile.name, exponents), others


def fitted(profiles: Sequence[Profile]) -> Exponents:
    """The exponents with the least mean error on calibrated profiles."""

    def mean_error(a: float, b: float) -> float:
        return math.fsum(error(*own(profile, (a, b, 1.0))) for profile in profiles)

    a, b = min(itertools.product(LOADS, FREQUENCIES), key=lambda pair: mean_error(*pair))
    return a, b, 1.0


def mean_point(points: Sequence[PowerPoint]) -> PowerPoint:
    """The geometric mean of powers, at the mean load and frequency."""
    n = len(points)
    watts = math.exp(math.fsum(math.log(p.watts) for p in points) / n)
    load = math.fsum(p.load for p in points) / n
    return PowerPoint(watts, load, math.fsum(p.frequency or 0.0 for p in points) / n)


def uncalibrated(profile: Profile, others: Sequence[Profile], exponents: Exponents) -> float:
    """The error with coefficients from other profiles."""
    usable = [other for other in others if other.is_plausible]
    same = [other for other in usable if other.processor == profile.processor]
    points = []
    for i in (0, -1):
        scaled = [
            replace(
                o.steps[i], watts=o.steps[i].watts * (1 if same else profile.threads / o.threads)
            )
            for o in (same or usable)
        ]
        points.append(mean_point(scaled))
    return error(PowerModel(points[0], points[1], 0.25, "others", exponents), profile.steps)


def measure(profiles: Sequence[Profile]) -> list[dict[str, object]]:
    """The errors of each profile, left out."""
    rows = []
    for profile in profiles:
        others = [other for other in profiles if other is not profile]
        foreign = [other for other in others if other.processor != profile.processor]
        exponents = fitted(others)
        rows.append(
            {
                "profile": profile.name,
                "plausible": profile.is_plausible,
                "exponents": exponents[:2],
                "uncalibrated": uncalibrated(profile, others, exponents),
                "of others": uncalibrated(profile, foreign, fitted(foreign)),
                "calibrated": error(*own(profile, exponents)),
                "affine": error(*own(profile, AFFINE)),
            }
        )
    return rows


def main() -> int:
    """Print the errors; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, metavar="FOLDER", help="the profiles")
    parser.add_argument("--out", metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args()
    paths = sorted(Path(args.data).glob("*.csv"))
    if len(paths) < 2:
        raise UsageError(f"{args.data} has too few profiles", expected="*.csv", got=str(len(paths)))
    rows = measure([read(path) for path in paths])
    kinds = ("uncalibrated", "of others", "calibrated", "affine")
    print(f"{'profile':42}" + "".join(f"{kind:>14}" for kind in kinds))
    for row in rows:
        doubt = "" if row["plausible"] else "  counts something twice"
        print(f"{row['profile']!s:42}" + "".join(f"{row[k]:>14.1%}" for k in kinds) + doubt)
    means = {kind: math.fsum(float(str(row[kind])) for row in rows) / len(rows) for kind in kinds}
    print(f"{'mean':42}" + "".join(f"{means[kind]:>14.1%}" for kind in kinds))
    missed = [kind for kind, bar in BARS.items() if means[kind] > bar]
    if args.out:
        result = {"rows": rows, "means": means, "bars": BARS}
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("every bar is met" if not missed else f"missed: {', '.join(missed)}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
